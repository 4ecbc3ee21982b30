//! Whether a rule holds for a node.

use crate::{
    gpu::Gpu,
    name::Name,
    state::NodeRow,
    workload::{Attribute, Order, Rule, Test, WorkloadSpec, number},
};

/// Whether `rule` holds for `node`, where instances of workloads for which `beside` says so are; else what the node has
/// instead. Who asks for cards must also look at each with [`allows_card`].
pub(crate) fn holds(rule: &Rule, node: &NodeRow, beside: &dyn Fn(&str) -> bool) -> Result<(), String> {
    let inventory = &node.inventory;
    let text = |value: Option<String>| match (&rule.test, &value) {
        (Test::There, Some(_)) | (Test::Missing, None) => Ok(()),
        (Test::There, None) => Err("it has no such label".to_owned()),
        (Test::Missing, Some(value)) => Err(format!("it is {}", quoted(value))),
        (Test::Is(values), Some(value)) if is_any(values, value) => Ok(()),
        (Test::IsNot(values), Some(value)) if !is_any(values, value) => Ok(()),
        (Test::IsNot(_), None) => Ok(()),
        (_, Some(value)) => Err(format!("it is {}", quoted(value))),
        (_, None) => Err("it has no such label".to_owned()),
    };
    let amount = |has: u64| {
        if is_number(rule, has) { Ok(()) } else { Err(format!("it has {}", rule.attribute.told(has))) }
    };
    match &rule.attribute {
        Attribute::NodeId => text(Some(node.id.to_string())),
        Attribute::NodeName => text(Some(node.name.to_string())),
        Attribute::NodeLabel(key) => text(node.label(key)),
        Attribute::Arch => text(Some(inventory.arch.clone())),
        Attribute::Os => text(Some("linux".into())),
        Attribute::Cpus => amount(inventory.cpus.into()),
        Attribute::Memory => amount(inventory.memory_bytes),
        Attribute::GpuCount => amount(inventory.gpus.iter().filter(|gpu| gpu.parent.is_none()).count() as u64),
        Attribute::GpuVendor | Attribute::GpuModel | Attribute::GpuMemory => {
            let fine = inventory.gpus.iter().filter(|gpu| card(rule, gpu)).count();
            let holds = match rule.test {
                Test::IsNot(_) => fine == inventory.gpus.len(),
                Test::Is(_) | Test::Number(..) | Test::There | Test::Missing => fine > 0,
            };
            if holds { Ok(()) } else { Err(cards(&inventory.gpus)) }
        }
        Attribute::Workload => match &rule.test {
            Test::Is(names) if names.iter().any(|name| beside(name)) => Ok(()),
            Test::IsNot(names) => match names.iter().find(|name| beside(name)) {
                None => Ok(()),
                Some(name) => Err(format!("`{name}` is there")),
            },
            Test::Is(_) | Test::Number(..) | Test::There | Test::Missing => Err("it is not there".into()),
        },
    }
}

fn is_any(values: &[String], value: &str) -> bool {
    values.iter().any(|wanted| wanted.eq_ignore_ascii_case(value))
}

fn is_number(rule: &Rule, has: u64) -> bool {
    let is = |values: &[String]| values.iter().any(|value| number(&rule.attribute, value).ok() == Some(has));
    match &rule.test {
        Test::Is(values) => is(values),
        Test::IsNot(values) => !is(values),
        Test::Number(Order::Less, wanted) => has < *wanted,
        Test::Number(Order::AtMost, wanted) => has <= *wanted,
        Test::Number(Order::AtLeast, wanted) => has >= *wanted,
        Test::Number(Order::More, wanted) => has > *wanted,
        Test::There | Test::Missing => false,
    }
}

/// Whether `rule`, which looks at cards, holds for this one.
fn card(rule: &Rule, gpu: &Gpu) -> bool {
    let model = |name: &String| {
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
        gpu.is_called(&name)
    };
    match (&rule.attribute, &rule.test) {
        (Attribute::GpuMemory, _) => is_number(rule, u64::from(gpu.sold_gib()) << 30),
        (Attribute::GpuVendor, Test::Is(values)) => is_any(values, gpu.vendor.as_str()),
        (Attribute::GpuVendor, Test::IsNot(values)) => !is_any(values, gpu.vendor.as_str()),
        (Attribute::GpuModel, Test::Is(values)) => values.iter().any(model),
        (Attribute::GpuModel, Test::IsNot(values)) => !values.iter().any(model),
        _ => true,
    }
}

/// Whether the constraints of `spec` leave this card to it.
pub(super) fn allows_card<'a>(spec: &'a WorkloadSpec, gpu: &Gpu) -> Result<(), &'a Rule> {
    allow_card(&spec.placement.constraints, gpu)
}

/// Whether these constraints do.
pub(super) fn allow_card<'a>(constraints: &'a [Rule], gpu: &Gpu) -> Result<(), &'a Rule> {
    let mut rules = constraints.iter().filter(|rule| rule.attribute.is_of_card());
    rules.find(|rule| !card(rule, gpu)).map_or(Ok(()), Err)
}

/// Whether a workload with that constraint wants no instance of `name` beside it.
pub(crate) fn keeps_off(rule: &Rule, name: &Name) -> bool {
    match &rule.test {
        Test::IsNot(names) => rule.attribute == Attribute::Workload && is_any(names, name.as_str()),
        Test::Is(_) | Test::Number(..) | Test::There | Test::Missing => false,
    }
}

/// Whether what `spec` says of the node itself holds, whoever else is there.
pub(super) fn suits(spec: &WorkloadSpec, node: &NodeRow) -> bool {
    let of_node = |rule: &&Rule| match rule.attribute {
        Attribute::Workload => false,
        // Who asks for cards holds some, which are looked at one by one.
        Attribute::GpuVendor | Attribute::GpuModel | Attribute::GpuMemory => spec.gpus.is_none(),
        Attribute::NodeId
        | Attribute::NodeName
        | Attribute::NodeLabel(_)
        | Attribute::Arch
        | Attribute::Os
        | Attribute::Cpus
        | Attribute::Memory
        | Attribute::GpuCount => true,
    };
    spec.placement.constraints.iter().filter(of_node).all(|rule| holds(rule, node, &|_| false).is_ok())
}

fn quoted(value: &str) -> String {
    if value.is_empty() { "empty".to_owned() } else { format!("`{value}`") }
}

fn cards(gpus: &[Gpu]) -> String {
    let mut models: Vec<String> = gpus.iter().map(|gpu| format!("{}, {} GiB", gpu.model, gpu.sold_gib())).collect();
    models.dedup();
    if models.is_empty() { "it has no GPU".into() } else { format!("it has {}", models.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        gpu::made,
        node::{Inventory, NodeSettings},
        state::tests::cluster::{inventory, node_id},
    };

    fn node() -> NodeRow {
        let gpus = vec![
            made::card("GPU-0", "NVIDIA GeForce RTX 4090", 24_564),
            made::card("GPU-1", "NVIDIA GeForce RTX 3060", 12_288),
        ];
        NodeRow {
            id: node_id("box"),
            name: "box".parse().unwrap(),
            labels: [("zone", "a"), ("disk", "hdd")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            inventory: Inventory { gpus, ..inventory(None) },
            registered_at_ms: 1,
            assignments_generation: 1,
            health: Default::default(),
            health_since_ms: None,
            gpus: Default::default(),
            settings: NodeSettings {
                labels: [("disk", "SSD")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
                ..NodeSettings::default()
            },
        }
    }

    #[test]
    fn rules_hold_or_tell_what_is_there() {
        let node = node();
        let beside = |name: &str| name == "db";
        for (rule, told) in [
            ("node.labels.zone == a", ""),
            ("node.labels.zone == b", "it is `a`"),
            ("node.labels.zone in (b, A)", ""),
            ("node.labels.disk == ssd", ""),
            ("node.labels.disk != ssd", "it is `SSD`"),
            ("node.labels.rack", "it has no such label"),
            ("node.labels.rack == 1", "it has no such label"),
            ("node.labels.rack != 1", ""),
            ("!node.labels.rack", ""),
            ("!node.labels.zone", "it is `a`"),
            ("node.labels.toft/arch == x86_64", ""),
            ("node.labels.toft/gpus == 2", ""),
            ("node.labels.toft/gpu.nvidia-geforce-rtx-4090 == 1", ""),
            ("node.hostname == BOX", ""),
            ("node.platform.os == linux", ""),
            ("node.platform.arch != x86_64", "it is `x86_64`"),
            ("node.cpus >= 4", ""),
            ("node.cpus > 4", "it has 4"),
            ("node.memory >= 16GiB", "it has 8.0 GiB"),
            ("gpu.count == 2", ""),
            ("gpu.count < 2", "it has 2"),
            ("gpu.memory >= 24GiB", ""),
            ("gpu.memory > 24GiB", "it has NVIDIA GeForce RTX 4090, 24 GiB; NVIDIA GeForce RTX 3060, 12 GiB"),
            ("gpu.model == RTX-4090", ""),
            ("gpu.model != rtx4090", "it has NVIDIA GeForce RTX 4090, 24 GiB; NVIDIA GeForce RTX 3060, 12 GiB"),
            ("gpu.model != rtx5090", ""),
            ("gpu.vendor == nvidia", ""),
            ("workload == db", ""),
            ("workload == web", "it is not there"),
            ("workload != db", "`db` is there"),
            ("workload != web", ""),
        ] {
            let holds = holds(&rule.parse().unwrap(), &node, &beside);
            assert_eq!(holds.err().unwrap_or_default(), told, "{rule}");
        }
    }
}
