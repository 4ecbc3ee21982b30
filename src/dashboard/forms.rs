//! The run form: texts as typed, and the specification they stand for.
//!
//! Every field is read, so that all mistakes are told at once, and the texts stay as they were typed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toft_model::{
    gpu::GpuRequest,
    image::ImageRef,
    invalid::Invalid,
    name::Name,
    secret::SecretMount,
    units::{parse_bytes, parse_cpu_millis},
    workload::{Mount, NetworkMode, PortSpec, WorkloadSpec},
};

use crate::control::ControlError;

/// The form as typed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct RunForm {
    pub(super) image: String,
    pub(super) name: String,
    pub(super) ports: String,
    pub(super) env: String,
    pub(super) secrets: String,
    pub(super) mounts: String,
    pub(super) command: String,
    pub(super) replicas: String,
    pub(super) restart: String,
    pub(super) memory: String,
    pub(super) cpu: String,
    pub(super) gpus: String,
    pub(super) network: String,
}

/// What is wrong with a field, and the remedy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

/// Mistakes by field; those of no field are under `form`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mistakes(BTreeMap<&'static str, Mistake>);

impl Mistakes {
    /// What is wrong with `field`.
    pub(super) fn at(&self, field: &str) -> Option<&Mistake> {
        self.0.get(field)
    }

    pub(super) fn any(&self, fields: &[&str]) -> bool {
        fields.iter().any(|field| self.0.contains_key(field))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&'static str, &Mistake)> {
        self.0.iter().map(|(field, mistake)| (*field, mistake))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value, or its mistake noted at `field`.
    fn take<T>(&mut self, field: &'static str, parsed: Result<T, Invalid>) -> Option<T> {
        parsed.map_err(|Invalid { message, hint, .. }| self.note(field, message, Some(hint))).ok()
    }

    fn note(&mut self, field: &'static str, message: String, hint: Option<String>) {
        self.0.entry(field).or_insert(Mistake { message, hint });
    }

    /// An operation's refusal, at the field it speaks of.
    pub(super) fn refused(error: ControlError) -> Self {
        let path = error.field.unwrap_or_default();
        let field = match path.split(['.', '[']).next().unwrap_or_default() {
            "image" => "image",
            "name" => "name",
            "ports" => "ports",
            "env" => "env",
            "secrets" => "secrets",
            "mounts" => "mounts",
            "node" => "node",
            "options" => "options",
            "ttl" => "ttl",
            "uses" => "uses",
            "filter" => "filter",
            "value" => "value",
            "command" | "entrypoint" => "command",
            "replicas" => "replicas",
            "restart" => "restart",
            "gpus" => "gpus",
            "network" => "network",
            "resources" if path.contains("cpu") => "cpu",
            "resources" => "memory",
            _ => "form",
        };
        let mut mistakes = Self::default();
        mistakes.note(field, error.message, error.hint);
        mistakes
    }
}

impl RunForm {
    /// The demo that comes with the appliance.
    pub(super) fn demo() -> Self {
        Self { image: "toft/demo".into(), name: "demo".into(), ports: "18080:8080".into(), ..Self::default() }
    }

    /// The specification, or everything that is wrong with it. A name left out is made from the image's.
    pub(super) fn read(&self) -> Result<WorkloadSpec, Mistakes> {
        let mut wrong = Mistakes::default();
        let image = wrong.take("image", self.image.trim().parse::<ImageRef>());
        let name = match self.name.trim() {
            "" => Ok(Name::nearest(image.as_ref().map_or("", ImageRef::base_name), "workload")),
            name => name.parse(),
        };
        let name = wrong.take("name", name);
        let ports = wrong.take("ports", ports(&self.ports));
        let env = wrong.take("env", env(&self.env));
        let secrets = wrong.take("secrets", secrets(&self.secrets));
        let mounts = wrong.take("mounts", mounts(&self.mounts));
        let command = wrong.take("command", words(&self.command));
        let replicas = wrong.take("replicas", optional(&self.replicas, replicas));
        let restart = wrong.take("restart", optional(&self.restart, str::parse));
        let memory = wrong.take("memory", optional(&self.memory, parse_bytes));
        let cpu = wrong.take("cpu", optional(&self.cpu, parse_cpu_millis));
        let gpus = wrong.take("gpus", optional(&self.gpus, str::parse::<GpuRequest>));
        let network = wrong.take("network", optional(&self.network, network));
        let (Some(image), Some(name), true) = (image, name, wrong.is_empty()) else { return Err(wrong) };
        let mut spec = WorkloadSpec::new(name, image);
        spec.ports = ports.unwrap_or_default();
        spec.env = env.unwrap_or_default();
        spec.secrets = secrets.unwrap_or_default();
        spec.mounts = mounts.unwrap_or_default();
        spec.command = command.unwrap_or_default();
        spec.replicas = replicas.flatten().unwrap_or(spec.replicas);
        spec.restart = restart.flatten();
        spec.resources.memory_bytes = memory.flatten();
        spec.resources.cpu_millis = cpu.flatten();
        spec.gpus = gpus.flatten();
        spec.network = network.flatten().unwrap_or_default();
        spec.validate().map_err(|invalid| Mistakes::refused(invalid.into()))?;
        Ok(spec)
    }
}

fn optional<T>(text: &str, parse: impl FnOnce(&str) -> Result<T, Invalid>) -> Result<Option<T>, Invalid> {
    match text.trim() {
        "" => Ok(None),
        text => parse(text).map(Some),
    }
}

fn replicas(text: &str) -> Result<u32, Invalid> {
    let hint = format!("use a whole number from 0 to {}", WorkloadSpec::MAX_REPLICAS);
    text.parse().map_err(|_| Invalid::value(format!("`{}` is no number of copies", cut(text)), hint))
}

fn network(text: &str) -> Result<NetworkMode, Invalid> {
    match text {
        "bridge" => Ok(NetworkMode::Bridge),
        "host" => Ok(NetworkMode::Host),
        "none" => Ok(NetworkMode::None),
        _ => Err(Invalid::value(format!("`{}` is no network", cut(text)), "use `bridge`, `host` or `none`")),
    }
}

fn ports(text: &str) -> Result<Vec<PortSpec>, Invalid> {
    text.split([',', ' ', '\t', '\r', '\n']).filter(|part| !part.is_empty()).map(str::parse).collect()
}

fn secrets(text: &str) -> Result<Vec<SecretMount>, Invalid> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::parse).collect()
}

fn mounts(text: &str) -> Result<Vec<Mount>, Invalid> {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::parse).collect()
}

fn env(text: &str) -> Result<BTreeMap<String, String>, Invalid> {
    let mut env = BTreeMap::new();
    for (i, line) in text.lines().enumerate() {
        let at = |message: String, hint: &str| Invalid::value(format!("line {}: {message}", i + 1), hint);
        if line.trim().is_empty() {
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            return Err(at(format!("`{}` has no `=`", cut(line)), "write one `KEY=value` a line"));
        };
        let key = key.trim();
        if env.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(at(format!("`{}` is set twice", cut(key)), "keep one of the two lines"));
        }
    }
    Ok(env)
}

/// Splits a command as a shell would, without expanding anything: blanks and line ends separate, quotes and
/// backslashes keep together.
fn words(text: &str) -> Result<Vec<String>, Invalid> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' | '"' => quoted(c, &mut chars, word.get_or_insert_default())?,
            '\\' => match chars.next() {
                Some('\n') => {}
                Some(next) => word.get_or_insert_default().push(next),
                None => return Err(Invalid::value("it ends in a backslash", "write `\\\\` for a backslash itself")),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

fn quoted(quote: char, chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), Invalid> {
    while let Some(c) = chars.next() {
        match c {
            c if c == quote => return Ok(()),
            '\\' if quote == '"' => match chars.next() {
                Some(next @ ('"' | '\\' | '$' | '`')) => word.push(next),
                Some('\n') => {}
                Some(next) => word.extend(['\\', next]),
                None => break,
            },
            c => word.push(c),
        }
    }
    Err(Invalid::value(format!("a quote {quote} is never closed"), "close it, or write a backslash before it"))
}

fn cut(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_split_as_in_a_shell() {
        let check = |text: &str, want: &[&str]| assert_eq!(words(text).unwrap(), want, "{text}");
        check("", &[]);
        check("  sleep   10 \r\n -v", &["sleep", "10", "-v"]);
        check(r#"sh -c 'echo "a b"; exit 1'"#, &["sh", "-c", r#"echo "a b"; exit 1"#]);
        check(r#"a"b c"d '' """#, &["ab cd", "", ""]);
        check(r#""\"\\\$\n" \' a\ b"#, &[r#""\$\n"#, "'", "a b"]);
        for bad in ["'a", "\"a", "a\\", "\"a\\"] {
            assert!(words(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_whole_form_becomes_a_specification() {
        let form = RunForm {
            image: " toft/demo ".into(),
            ports: "18080:8080, 53/udp\r\n9000".into(),
            env: "A=1\r\n\r\nB = x=y ".into(),
            secrets: "db\r\n key,target=k,mode=0400 \r\n".into(),
            mounts: "data:/data\r\n /srv:/srv:ro \r\n".into(),
            command: "serve --port 1".into(),
            replicas: "2".into(),
            restart: "on-failure:3".into(),
            memory: "64MiB".into(),
            cpu: "0.5".into(),
            gpus: "vram=8GiB".into(),
            network: "bridge".into(),
            ..RunForm::default()
        };
        let spec = form.read().unwrap();
        assert_eq!(spec.name.as_str(), "demo", "made from the image's name");
        assert_eq!(spec.ports.len(), 3);
        assert_eq!((spec.env["A"].as_str(), spec.env["B"].as_str()), ("1", " x=y "));
        assert_eq!(spec.command, ["serve", "--port", "1"]);
        assert_eq!(spec.secrets.iter().map(SecretMount::file).collect::<Vec<_>>(), ["db", "k"]);
        assert_eq!(spec.mounts.iter().map(Mount::target).collect::<Vec<_>>(), ["/data", "/srv"]);
        assert_eq!((spec.replicas, spec.resources.cpu_millis), (2, Some(500)));
        assert_eq!(RunForm::demo().read().unwrap().restart, None);
    }

    #[test]
    fn every_mistake_is_told_at_its_field() {
        let form = RunForm {
            image: "A B".into(),
            name: "Not A Name".into(),
            ports: "80:".into(),
            env: "nothing".into(),
            secrets: "db,x".into(),
            mounts: "data:data".into(),
            command: "'".into(),
            replicas: "-1".into(),
            restart: "often".into(),
            memory: "much".into(),
            cpu: "all".into(),
            gpus: "?".into(),
            network: "token-ring".into(),
        };
        let wrong = form.read().unwrap_err();
        let fields: Vec<_> = wrong.all().map(|(field, _)| field).collect();
        let most = ["command", "cpu", "env", "gpus", "image", "memory", "mounts", "name", "network", "ports"];
        assert_eq!(fields, [&most[..], &["replicas", "restart", "secrets"]].concat());
        let check = |change: fn(&mut RunForm), field: &str| {
            let mut form = RunForm::demo();
            change(&mut form);
            assert!(form.read().unwrap_err().at(field).is_some(), "{field}");
        };
        check(|form| form.env = "A=1\nA=2".into(), "env");
        check(|form| form.memory = "1".into(), "memory");
        check(|form| form.secrets = "a\na".into(), "secrets");
        check(|form| form.mounts = "a:/d\nb:/d".into(), "mounts");
        check(|form| form.network = "host".into(), "ports");
        check(|form| form.replicas = "1001".into(), "replicas");
    }
}
