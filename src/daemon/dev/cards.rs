//! The driver of made-up cards. A card that an instance holds is busy, warm and full, by the hand of a process of that
//! instance; the others rest.

use std::{
    fs,
    path::{Path, PathBuf},
};

use toft_model::{
    gpu::{GpuMeasured, GpuVendor},
    ids::NodeId,
    instance::InstanceState,
    state::InstanceRow,
};

use crate::{
    agent::{
        gpu::{Card, CardProcess, Driver, DriverError},
        made_up::{Wave, busy_percent, hash, warmth},
    },
    consensus::Handle,
};

/// Memory that the desktop of a machine with one takes, in bytes.
const DESKTOP_BYTES: u64 = 700 << 20;
/// Process of that desktop.
const DESKTOP_PID: u32 = 812;
/// What a driver keeps to itself, in MiB.
const DRIVERS_MIB: u32 = 300;

/// Shows what is made up.
pub(super) struct MadeUpDriver {
    pub(super) cards: Vec<Card>,
    pub(super) state: Handle,
    pub(super) node_id: NodeId,
    /// A made-up `/proc`, which says whose a process is.
    pub(super) proc: PathBuf,
    /// The control group that every container's lies in.
    pub(super) parent: String,
    /// Whether somebody sits before the first card.
    pub(super) desktop: bool,
    pub(super) runtime: tokio::runtime::Handle,
}

impl MadeUpDriver {
    fn rows(&self) -> Vec<InstanceRow> {
        let (state, node_id) = (self.state.clone(), self.node_id);
        let read = async move { state.read(move |connection| InstanceRow::of_node(connection, node_id)).await };
        self.runtime.block_on(read).unwrap_or_default()
    }

    /// A process of an instance, as the kernel would tell of it.
    fn process(&self, pid: u32, group: &str, name: &str) {
        let folder = self.proc.join(pid.to_string());
        let group = format!("0::/{group}\n");
        if fs::read_to_string(folder.join("cgroup")).is_ok_and(|known| known == group) {
            return;
        }
        // What cannot be written shows as a process of nobody.
        let written = fs::create_dir_all(&folder)
            .and_then(|()| fs::write(folder.join("cgroup"), &group))
            .and_then(|()| fs::write(folder.join("comm"), name));
        if let Err(error) = written {
            tracing::debug!(%error, "a made-up process could not be written");
        }
    }
}

impl Driver for MadeUpDriver {
    fn vendor(&self) -> GpuVendor {
        GpuVendor::Nvidia
    }

    fn look(&mut self) -> Result<Vec<Card>, DriverError> {
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let mut cards = self.cards.clone();
        for row in self.rows() {
            let Some(InstanceState::Running { pid, .. }) = row.report.and_then(|report| report.state) else { continue };
            for hold in &row.container.gpus {
                let Some(card) = cards.iter_mut().find(|card| card.id == hold.gpu) else { continue };
                self.process(pid, &format!("{}/{}", self.parent.trim_matches('/'), row.id), "python3");
                let room = u64::from(hold.vram_mib.unwrap_or(card.memory_mib.saturating_sub(1_024))) << 20;
                let part = Wave::new(&format!("{} {}", row.id, card.id.as_str()), 0.72).at(now_ms).clamp(0.1, 0.96);
                card.processes.push(CardProcess { pid, memory_bytes: Some((room as f64 * part) as u64) });
            }
        }
        for (index, card) in cards.iter_mut().enumerate() {
            let held = !card.processes.is_empty();
            if self.desktop && index == 0 {
                self.process(DESKTOP_PID, "user.slice", "Xorg");
                card.processes.push(CardProcess { pid: DESKTOP_PID, memory_bytes: Some(DESKTOP_BYTES) });
            }
            let busy = if held { busy_percent(card.id.as_str(), now_ms) } else { 0.0 };
            let limit = if card.memory_mib > 16 << 10 { 350.0 } else { 170.0 };
            let (celsius, watts) = warmth(busy, limit);
            let used: u64 = card.processes.iter().filter_map(|process| process.memory_bytes).sum();
            card.measured = GpuMeasured {
                memory_used_mib: Some(u32::try_from(used >> 20).unwrap_or(0)),
                memory_reserved_mib: Some(DRIVERS_MIB),
                busy_percent: Some(busy as u32),
                temperature_celsius: Some(celsius as u32 + u32::from(hash(card.id.as_str()) as u8 % 5)),
                slowdown_celsius: Some(93),
                power_watts: Some((watts * 10.0).round() / 10.0),
                power_limit_watts: Some(limit),
                fan_percent: Some((busy * 0.6) as u32),
                ..GpuMeasured::default()
            };
        }
        Ok(cards)
    }
}

/// Makes the made-up `/proc`.
pub(super) fn proc_in(folder: &Path) -> std::io::Result<PathBuf> {
    let proc = folder.join("proc");
    fs::create_dir_all(&proc)?;
    Ok(proc)
}
