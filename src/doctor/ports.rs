//! The ports that toft listens on, and who has them.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener},
};

use super::{Check, Said, failure, ok, warning};

pub(super) fn checks(bind: SocketAddr, members: Option<SocketAddr>, daemon: Option<u32>) -> Vec<Check> {
    let mut checks = vec![check(bind, daemon, "api.bind").of("network", "api port")];
    if let Some(members) = members {
        checks.push(check(members, daemon, "cluster.bind").of("network", "cluster port"));
    }
    checks
}

fn check(address: SocketAddr, daemon: Option<u32>, key: &str) -> Said {
    let error = match TcpListener::bind(address) {
        Ok(_) if daemon.is_some() => {
            return warning(
                format!("toft runs, but nothing listens on {address}"),
                "journalctl -u toft -n 50    (says where it listens)",
            );
        }
        Ok(_) => return ok(format!("{address} is free")),
        Err(error) => error,
    };
    match holder(address) {
        Some((pid, _)) if Some(pid) == daemon => ok(format!("{address} is toft's")),
        Some((pid, name)) => failure(
            format!("{address} is taken by `{name}` (process {pid})"),
            format!(
                "end it (sudo kill {pid}, or stop its service), or set `{key}` in /etc/toft/toft.toml to another address"
            ),
        ),
        None if error.kind() == std::io::ErrorKind::AddrInUse => failure(
            format!("{address} is taken by a process that cannot be seen from here"),
            format!("sudo ss -ltnp 'sport = :{}'    (shows whose it is)", address.port()),
        ),
        None => failure(
            format!("nobody can listen on {address}: {error}"),
            format!("set `{key}` in /etc/toft/toft.toml to an address of this machine; `ip address` shows them"),
        ),
    }
}

/// The process that listens there, and its name.
fn holder(address: SocketAddr) -> Option<(u32, String)> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let inode = tables.iter().find_map(|table| listening(table, address))?;
    let socket = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let holds = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| target.as_os_str() == socket.as_str())
    };
    let pid = pids.into_iter().find(holds)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some((pid, name.trim().to_owned()))
}

/// The socket that listens on an address, or on all with that port: `0: 0100007F:1D13 00000000:0000 0A ... INODE`.
fn listening(table: &str, wanted: SocketAddr) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (address, port) = words.get(1)?.split_once(':')?;
        let address = parse(address)?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let matches = port == wanted.port()
            && (address == wanted.ip() || address.is_unspecified() || wanted.ip().is_unspecified());
        (*words.get(3)? == "0A" && matches).then(|| words.get(9)?.parse().ok())?
    })
}

/// Words of four bytes, each as this machine keeps numbers.
fn parse(hex: &str) -> Option<IpAddr> {
    let words: Option<Vec<[u8; 4]>> = hex
        .as_bytes()
        .chunks(8)
        .map(|word| Some(u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?.to_ne_bytes()))
        .collect();
    let bytes = words?.concat();
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn who_holds_a_port_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let own = std::process::id();
        let said = check(address, None, "api.bind");
        assert!(
            said.verdict == Verdict::Failure && said.message.contains(&format!("process {own}")),
            "{}",
            said.message
        );
        assert!(said.fix.unwrap().contains("api.bind"));
        assert_eq!(check(address, Some(own), "api.bind").verdict, Verdict::Ok);
        let everywhere = TcpListener::bind("[::]:0").unwrap();
        let port = everywhere.local_addr().unwrap().port();
        assert_eq!(holder(([127, 0, 0, 1], port).into()).map(|(pid, _)| pid), Some(own));
        drop(taken);
        assert_eq!(check(address, None, "api.bind").verdict, Verdict::Ok);
        assert_eq!(check(address, Some(own), "api.bind").verdict, Verdict::Warning);
        let nowhere = check("203.0.113.7:1".parse().unwrap(), None, "cluster.bind");
        assert!(nowhere.verdict == Verdict::Failure && nowhere.fix.unwrap().contains("ip address"));
    }
}
