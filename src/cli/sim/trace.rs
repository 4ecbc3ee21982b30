//! Reads traces from CSV files.

use std::{fs::File, io::Read, path::Path, str::FromStr};

use csv::{ErrorKind, ReaderBuilder, StringRecord};
use toft_model::schedule::{
    place::CardSet,
    replay::{TraceNode, TracePod},
};

use crate::cli::{Failure, output::harmless};

/// No trace is larger, in bytes.
const BYTES: u64 = 64 << 20;
/// No trace has more rows.
const ROWS: usize = 1_000_000;
/// No row has more columns.
const COLUMNS: usize = 256;
/// No number is greater but where a column says otherwise: a thousand nodes' worth of CPU on one.
const MOST: u64 = 1_000_000_000;

/// The nodes of a file.
pub(super) fn nodes(path: &Path) -> Result<Vec<TraceNode>, Failure> {
    let table = Table::read(path)?;
    let [cpu, memory, gpus, model] = table.columns(["cpu_milli", "memory_mib", "gpu", "model"])?;
    table.rows(|row| {
        Ok(TraceNode {
            cpu_millis: row.number(cpu, 0, MOST)? as u32,
            memory_bytes: row.number(memory, 0, MOST)? << 20,
            gpus: row.number(gpus, 0, CardSet::LIMIT as u64)? as u16,
            model: row.text(model).to_owned(),
        })
    })
}

/// The pods of a file.
pub(super) fn pods(path: &Path) -> Result<Vec<TracePod>, Failure> {
    let table = Table::read(path)?;
    let [cpu, memory, gpus, millis] = table.columns(["cpu_milli", "memory_mib", "num_gpu", "gpu_milli"])?;
    let models = table.column("gpu_spec");
    table.rows(|row| {
        let count = row.number(gpus, 0, CardSet::LIMIT as u64)? as u16;
        // One GPU can be shared, several are whole.
        let (least, most) = match count {
            0 => (0, 0),
            1 => (1, 1000),
            _ => (1000, 1000),
        };
        Ok(TracePod {
            cpu_millis: row.number(cpu, 0, MOST)? as u32,
            memory_bytes: row.number(memory, 0, MOST)? << 20,
            gpus: count,
            gpu_millis: row.number(millis, least, most)? as u32,
            models: models.map_or("", |models| row.text(models)).to_owned(),
        })
    })
}

/// A file's header and text.
struct Table {
    /// As messages name it.
    file: String,
    header: StringRecord,
    text: Vec<u8>,
}

/// A column's place and name.
#[derive(Clone, Copy)]
struct Column(usize, &'static str);

struct Row<'a> {
    file: &'a str,
    record: StringRecord,
}

impl Table {
    fn read(path: &Path) -> Result<Self, Failure> {
        let file = harmless(&path.display().to_string());
        let cannot = |why: std::io::Error| Failure::of(1, format!("{file} cannot be read: {why}"));
        let mut text = Vec::new();
        File::open(path).and_then(|opened| opened.take(BYTES + 1).read_to_end(&mut text)).map_err(cannot)?;
        if text.len() as u64 > BYTES {
            return Err(Failure::of(1, format!("{file} is longer than {} MiB", BYTES >> 20)));
        }
        let header = ReaderBuilder::new().from_reader(&text[..]).headers().cloned().map_err(|e| broken(&file, &e))?;
        if header.len() > COLUMNS {
            return Err(Failure::of(
                1,
                format!("{file}, line 1: {} columns; at most {COLUMNS} are read", header.len()),
            ));
        }
        Ok(Self { file, header, text })
    }

    fn column(&self, name: &'static str) -> Option<Column> {
        // Spreadsheets begin a file with a mark of the byte order.
        let place = self.header.iter().position(|title| title.trim_start_matches('\u{feff}').trim() == name)?;
        Some(Column(place, name))
    }

    fn columns<const N: usize>(&self, names: [&'static str; N]) -> Result<[Column; N], Failure> {
        let mut found = [Column(0, ""); N];
        for (column, name) in found.iter_mut().zip(names) {
            *column = self.column(name).ok_or_else(|| {
                Failure::of(1, format!("{}, line 1: there is no column `{name}`", self.file))
                    .hint(format!("the first line names the columns: {}", names.join(",")))
            })?;
        }
        Ok(found)
    }

    fn rows<T>(&self, read: impl Fn(&Row<'_>) -> Result<T, Failure>) -> Result<Vec<T>, Failure> {
        let mut rows = Vec::new();
        let mut reader = ReaderBuilder::new().from_reader(&self.text[..]);
        // Else what is wrong with the first row would be told of the header's line.
        reader.headers().map_err(|e| broken(&self.file, &e))?;
        for record in reader.into_records() {
            let record = record.map_err(|e| broken(&self.file, &e))?;
            if rows.len() == ROWS {
                return Err(Failure::of(1, format!("{} has more than {ROWS} rows", self.file)));
            }
            rows.push(read(&Row { file: &self.file, record })?);
        }
        if rows.is_empty() {
            return Err(Failure::of(1, format!("{} has no rows", self.file)));
        }
        Ok(rows)
    }
}

impl Row<'_> {
    fn text(&self, column: Column) -> &str {
        self.record.get(column.0).unwrap_or("").trim()
    }

    fn number(&self, column: Column, least: u64, most: u64) -> Result<u64, Failure> {
        let text = self.text(column);
        let number = u64::from_str(text).ok().filter(|number| (least..=most).contains(number));
        number.ok_or_else(|| {
            let line = self.record.position().map_or(0, csv::Position::line);
            let shown: String = harmless(text).chars().take(40).collect();
            let wanted =
                if least == most { format!("{least}") } else { format!("a whole number from {least} to {most}") };
            Failure::of(1, format!("{}, line {line}, column `{}`: `{shown}` is not {wanted}", self.file, column.1))
        })
    }
}

fn broken(file: &str, error: &csv::Error) -> Failure {
    let line = error.position().map_or(1, csv::Position::line);
    let why = match error.kind() {
        ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} columns where the header has {expected_len}")
        }
        ErrorKind::Utf8 { .. } => "it is not UTF-8".to_owned(),
        _ => error.to_string(),
    };
    Failure::of(1, format!("{file}, line {line}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn refusal<T>(read: fn(&Path) -> Result<Vec<T>, Failure>, text: &[u8]) -> String {
        let file = file(text);
        let failure = read(file.path()).err().unwrap();
        let message = format!("{failure:?}");
        let begin = message.find(file.path().to_str().unwrap()).unwrap() + file.path().to_str().unwrap().len();
        message[begin..].split("\", ").next().unwrap().to_owned()
    }

    #[test]
    fn columns_are_found_by_name() {
        let text = "\u{feff}model,gpu, memory_mib ,other,cpu_milli\r\nT4,2,1024,\"a,b\",64000\r\n\"G2\",8,1,,1\r\n";
        let node = |cpu_millis, mib: u64, gpus, model: &str| TraceNode {
            cpu_millis,
            memory_bytes: mib << 20,
            gpus,
            model: model.into(),
        };
        assert_eq!(nodes(file(text.as_bytes()).path()).unwrap(), [node(64_000, 1024, 2, "T4"), node(1, 1, 8, "G2")]);
        let text = "name,cpu_milli,memory_mib,num_gpu,gpu_milli\np,1,2,1,460\n";
        let pod = TracePod { cpu_millis: 1, memory_bytes: 2 << 20, gpus: 1, gpu_millis: 460, models: String::new() };
        assert_eq!(pods(file(text.as_bytes()).path()).unwrap(), [pod]);
    }

    #[test]
    fn hostile_files_are_refused_with_their_place() {
        let head = "cpu_milli,memory_mib,gpu,model\n";
        let node = |rows: &str| refusal(nodes, format!("{head}{rows}").as_bytes());
        assert_eq!(refusal(nodes, b""), ", line 1: there is no column `cpu_milli`");
        assert_eq!(refusal(nodes, b"cpu_milli,gpu\n"), ", line 1: there is no column `memory_mib`");
        assert_eq!(node(""), " has no rows");
        assert_eq!(node("1,2,3,a\n1,2\n"), ", line 3: 2 columns where the header has 4");
        let not = |column: &str, text: &str, most: u64| {
            format!(", line 2, column `{column}`: `{text}` is not a whole number from 0 to {most}")
        };
        assert_eq!(node("x,2,3,a\n"), not("cpu_milli", "x", MOST));
        assert_eq!(node("-1,2,3,a\n"), not("cpu_milli", "-1", MOST));
        assert_eq!(node("1e3,2,3,a\n"), not("cpu_milli", "1e3", MOST));
        assert_eq!(node("1,99999999999999999999,3,a\n"), not("memory_mib", "99999999999999999999", MOST));
        assert_eq!(node("1,2,129,a\n"), not("gpu", "129", 128));
        assert_eq!(node(&format!("1,2,{},a\n", "9".repeat(100_000))), not("gpu", &"9".repeat(40), 128));
        assert_eq!(refusal(nodes, b"cpu_milli,memory_mib,gpu,model\n1,2,3,\xff\n"), ", line 2: it is not UTF-8");
        let many = vec!["x"; COLUMNS + 1].join(",");
        assert!(refusal(nodes, many.as_bytes()).contains("columns; at most"));
        let pod = |row: &str| refusal(pods, format!("cpu_milli,memory_mib,num_gpu,gpu_milli\n{row}\n").as_bytes());
        assert_eq!(pod("1,1,2,500"), ", line 2, column `gpu_milli`: `500` is not 1000");
        assert_eq!(pod("1,1,0,500"), ", line 2, column `gpu_milli`: `500` is not 0");
        assert_eq!(pod("1,1,1,0"), ", line 2, column `gpu_milli`: `0` is not a whole number from 1 to 1000");
        assert!(nodes(Path::new("/nonexistent/nodes.csv")).is_err());
        assert!(nodes(Path::new("/dev/zero")).is_err(), "it never ends");
    }
}
