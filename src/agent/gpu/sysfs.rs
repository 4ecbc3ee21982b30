//! What the kernel shows of graphics cards in `/sys` and of their users in `/proc`.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    io::Read,
    path::{Path, PathBuf},
    str::FromStr,
};

use toft_model::gpu::{GpuMeasured, GpuVendor};

use super::{Card, CardProcess, Handle, mib};

/// Largest file that is read, in bytes: lists of names are a megabyte and a half.
const LARGEST: u64 = 8 << 20;
/// Processes looked into, and open files of each.
const MOST_PROCESSES: usize = 65_536;
const MOST_FILES: usize = 4_096;

/// A card of the direct rendering manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DrmCard {
    /// Its folder, `/sys/class/drm/card0`.
    pub(super) path: PathBuf,
    /// Its device's folder.
    pub(super) device: PathBuf,
    /// Its address on the PCI bus.
    pub(super) pci: String,
    /// Its number.
    pub(super) number: u32,
}

/// The cards of a vendor, by their places on the bus.
pub(super) fn cards(sys: &Path, vendor: u16) -> Vec<DrmCard> {
    let Ok(entries) = fs::read_dir(sys.join("class/drm")) else { return Vec::new() };
    let of_entry = |entry: fs::DirEntry| {
        let number = entry.file_name().to_str()?.strip_prefix("card")?.parse().ok()?;
        let path = entry.path();
        let device = fs::canonicalize(path.join("device")).ok()?;
        if hexadecimal(&device.join("vendor"))? != u32::from(vendor) {
            return None;
        }
        let pci = device.file_name()?.to_str().filter(|name| is_pci(name))?.to_owned();
        Some(DrmCard { path, device, pci, number })
    };
    let mut cards: Vec<DrmCard> = entries.flatten().filter_map(of_entry).collect();
    cards.sort_by(|a, b| a.pci.cmp(&b.pci));
    cards.dedup_by(|a, b| a.pci == b.pci);
    cards
}

/// What a vendor's driver says of one of its cards, beyond what the kernel shows of all.
pub(super) struct Told {
    pub(super) model: String,
    pub(super) memory_bytes: u64,
    pub(super) measured: GpuMeasured,
    /// Memory in bytes that processes hold.
    pub(super) held: BTreeMap<u32, u64>,
}

impl DrmCard {
    /// Number `index` of a vendor's cards. Nothing when its address makes no name.
    pub(super) fn card(&self, sys: &Path, vendor: GpuVendor, index: u32, told: Told) -> Option<Card> {
        let processes = told.held.into_iter().map(|(pid, bytes)| CardProcess { pid, memory_bytes: Some(bytes) });
        Some(Card {
            id: format!("pci-{}", self.pci).parse().ok()?,
            vendor,
            model: told.model,
            memory_mib: mib(told.memory_bytes),
            parent: None,
            driver: driver_version(sys, &self.device),
            cuda: None,
            handle: Handle { index, minor: Some(self.number), pci: Some(self.pci.clone()), mig: None },
            measured: told.measured,
            links: Vec::new(),
            processes: processes.collect(),
            fault: None,
        })
    }
}

/// `0000:03:00.0`
pub(super) fn is_pci(name: &str) -> bool {
    let digits = |text: &str, least: usize| text.len() >= least && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut parts = name.split([':', '.']);
    let mut next = |least| parts.next().is_some_and(|part| digits(part, least));
    name.len() <= 16 && next(4) && next(2) && next(2) && next(1) && parts.next().is_none()
}

/// A small file's text without the white space around it; nothing when it cannot be read.
pub(super) fn text(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(path).ok()?.take(LARGEST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// A number in a file.
pub(super) fn number<T: FromStr>(path: &Path) -> Option<T> {
    text(path)?.parse().ok()
}

/// A number in a file, as `0x1002`.
pub(super) fn hexadecimal(path: &Path) -> Option<u32> {
    let text = text(path)?;
    u32::from_str_radix(text.strip_prefix("0x").unwrap_or(&text), 16).ok()
}

/// The sensors of a device.
pub(super) fn hwmon(device: &Path) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(device.join("hwmon")).ok()?.flatten().map(|e| e.path()).collect();
    found.sort();
    found.into_iter().next()
}

/// Thousandths of a degree in a file, as degrees.
pub(super) fn degrees(path: &Path) -> Option<u32> {
    number::<i64>(path).and_then(|thousandths| u32::try_from(thousandths / 1_000).ok())
}

/// Millionths of a watt in a file, as watts with one digit behind the point.
pub(super) fn watts(path: &Path) -> Option<f64> {
    number::<u64>(path).map(|millionths| (millionths as f64 / 100_000.0).round() / 10.0)
}

/// The version of the kernel's driver for a device: its own, where it has one, else the kernel's.
fn driver_version(sys: &Path, device: &Path) -> Option<String> {
    let driver = fs::canonicalize(device.join("driver")).ok()?;
    let name = driver.file_name()?.to_str()?.to_owned();
    let version = text(&sys.join("module").join(&name).join("version"));
    let version = version.or_else(|| text(Path::new("/proc/sys/kernel/osrelease")))?;
    Some(format!("{name} {version}"))
}

/// What the machine's list of PCI devices calls one: what stands in brackets, where something does.
pub(super) fn pci_name(share: &Path, vendor: u16, device: u32) -> Option<String> {
    let lists = ["misc/pci.ids", "hwdata/pci.ids"];
    let list = lists.iter().find_map(|list| text(&share.join(list)))?;
    let vendor = format!("{vendor:04x}  ");
    let device = format!("\t{device:04x}  ");
    let of_vendor = list.lines().skip_while(|line| !line.starts_with(&vendor)).skip(1);
    let mut devices = of_vendor.take_while(|line| line.starts_with(['\t', '#']) || line.is_empty());
    let name = devices.find_map(|line| line.strip_prefix(&device))?;
    let inside = name.split_once('[').and_then(|(_, rest)| Some(rest.split_once(']')?.0));
    Some(inside.unwrap_or(name).trim().to_owned())
}

/// Memory of cards that processes hold, in bytes, by the card's address and the process: the sum over what each has open, told
/// in `/proc/PID/fdinfo`.
pub(super) fn clients(proc: &Path) -> HashMap<String, BTreeMap<u32, u64>> {
    let mut held: HashMap<String, BTreeMap<u32, u64>> = HashMap::new();
    // A client that several processes or descriptors share counts once.
    let mut seen = HashSet::new();
    let Ok(processes) = fs::read_dir(proc) else { return held };
    for entry in processes.flatten().take(MOST_PROCESSES) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(files) = fs::read_dir(entry.path().join("fd")) else { continue };
        for file in files.flatten().take(MOST_FILES) {
            let Ok(target) = fs::read_link(file.path()) else { continue };
            if !target.starts_with("/dev/dri") {
                continue;
            }
            let Some(told) = text(&entry.path().join("fdinfo").join(file.file_name())) else { continue };
            if let Some(Client { pci, id, bytes }) = client(&told)
                && seen.insert((pci.clone(), id))
            {
                *held.entry(pci).or_default().entry(pid).or_default() += bytes;
            }
        }
    }
    held
}

#[derive(Debug, PartialEq, Eq)]
struct Client {
    pci: String,
    id: u64,
    bytes: u64,
}

/// The lines of one `fdinfo`: amdgpu writes `drm-memory-vram`, i915 `drm-resident-local0`, xe `drm-resident-vram0`.
fn client(told: &str) -> Option<Client> {
    let lines: BTreeMap<&str, &str> =
        told.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.trim(), value.trim())).collect();
    let pci = lines.get("drm-pdev").filter(|pci| is_pci(pci))?.to_string();
    let id = lines.get("drm-client-id")?.parse().ok()?;
    let keys = ["drm-resident-vram", "drm-memory-vram", "drm-resident-vram0", "drm-resident-local0"];
    let bytes = keys.iter().find_map(|key| amount(lines.get(key)?)).unwrap_or(0);
    Some(Client { pci, id, bytes })
}

/// `12 KiB`
fn amount(text: &str) -> Option<u64> {
    let (number, unit) = text.split_once(' ').unwrap_or((text, ""));
    let unit = match unit.trim() {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_other_names() {
        for good in ["0000:03:00.0", "0001:c1:00.1", "10000:e1:00.0"] {
            assert!(is_pci(good), "{good}");
        }
        for bad in ["", "03:00.0", "0000:03:00", "0000:03:00.0.1", "../0000:03:00.0", "platform-gpu", "0000:0g:00.0"] {
            assert!(!is_pci(bad), "{bad}");
        }
    }

    #[test]
    fn clients_are_read_as_three_drivers_write_them() {
        let check = |memory: &str, bytes| {
            let told = format!("pos:\t0\ndrm-driver:\tx\ndrm-client-id:\t7\ndrm-pdev:\t0000:03:00.0\n{memory}\n");
            assert_eq!(client(&told).unwrap(), Client { pci: "0000:03:00.0".into(), id: 7, bytes }, "{memory}");
        };
        check("drm-memory-vram:\t1024 KiB\ndrm-memory-gtt:\t9 MiB", 1 << 20);
        check("drm-total-local0:\t9 MiB\ndrm-resident-local0:\t2 MiB", 2 << 20);
        check("drm-resident-vram0:\t3 GiB", 3 << 30);
        check("drm-memory-vram:\t18446744073709551615 GiB", 0);
        assert_eq!(client("drm-client-id: 1\n"), None);
        assert_eq!(client("\0\u{ff}::\n:"), None);
    }

    #[test]
    fn names_come_from_the_list_of_devices() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("misc")).unwrap();
        let list = "# x\n1002  Advanced Micro Devices\n\t744c  Navi 31 [Radeon RX 7900 XT/7900 XTX]\n\t\t1002 0e3b  Some\n8086  Intel\n\t56a0  DG2 [Arc A770]\n\t1234  Plain\n10de  NVIDIA\n\t744d  Other\n";
        fs::write(dir.path().join("misc/pci.ids"), list).unwrap();
        let name = |vendor, device| pci_name(dir.path(), vendor, device);
        assert_eq!(name(0x1002, 0x744c).as_deref(), Some("Radeon RX 7900 XT/7900 XTX"));
        assert_eq!(name(0x8086, 0x56a0).as_deref(), Some("Arc A770"));
        assert_eq!(name(0x8086, 0x1234).as_deref(), Some("Plain"));
        assert_eq!(name(0x1002, 0x744d), None, "of another vendor");
        assert_eq!(pci_name(Path::new("/no/such"), 0x1002, 0x744c), None);
    }
}

#[cfg(test)]
pub(super) mod tree {
    //! Made-up `/sys`, `/proc` and `/usr/share`.

    use std::{
        fs,
        os::unix::fs::symlink,
        path::{Path, PathBuf},
    };

    use crate::agent::gpu::Places;

    pub(in crate::agent::gpu) struct Tree(tempfile::TempDir);

    impl Tree {
        pub(in crate::agent::gpu) fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for dir in ["sys/class/drm", "proc", "share"] {
                fs::create_dir_all(tree.0.path().join(dir)).unwrap();
            }
            tree
        }

        pub(in crate::agent::gpu) fn sys(&self) -> PathBuf {
            self.0.path().join("sys")
        }

        pub(in crate::agent::gpu) fn share(&self) -> PathBuf {
            self.0.path().join("share")
        }

        pub(in crate::agent::gpu) fn places(&self) -> Places {
            let proc = self.0.path().join("proc");
            Places { sys: self.sys(), proc, share: self.share(), ..Places::default() }
        }

        pub(in crate::agent::gpu) fn files(&self, below: &Path, files: &[(&str, &str)]) {
            for (name, text) in files {
                let path = below.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
        }

        /// A card as the kernel lays it out; gives its device's folder.
        pub(in crate::agent::gpu) fn card(
            &self,
            number: u32,
            pci: &str,
            vendor: u16,
            device: u32,
            driver: &str,
        ) -> PathBuf {
            let folder = self.sys().join("devices/pci0000:00/0000:00:01.0").join(pci);
            let (vendor, device) = (format!("0x{vendor:04x}\n"), format!("0x{device:04x}\n"));
            self.files(&folder, &[("vendor", &vendor), ("device", &device)]);
            let card = folder.join(format!("drm/card{number}"));
            fs::create_dir_all(&card).unwrap();
            fs::create_dir_all(self.sys().join(format!("class/drm/card{number}-DP-1"))).unwrap();
            symlink("../..", card.join("device")).unwrap();
            symlink(&card, self.sys().join(format!("class/drm/card{number}"))).unwrap();
            let driver = self.sys().join("bus/pci/drivers").join(driver);
            fs::create_dir_all(&driver).unwrap();
            symlink(driver, folder.join("driver")).unwrap();
            folder
        }

        /// A process that has the card open.
        pub(in crate::agent::gpu) fn client(&self, pid: u32, id: u32, pci: &str, memory: &str) {
            let process = self.0.path().join("proc").join(pid.to_string());
            fs::create_dir_all(process.join("fd")).unwrap();
            symlink("/dev/dri/renderD128", process.join("fd/3")).unwrap();
            symlink("/dev/null", process.join("fd/4")).unwrap();
            let told = format!("drm-client-id:\t{id}\ndrm-pdev:\t{pci}\n{memory}\n");
            self.files(&process, &[("fdinfo/3", &told)]);
        }
    }
}
