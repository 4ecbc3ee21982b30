//! Whether names of the world can be found.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use tokio::net::UdpSocket;

use super::{Said, failure, ok, warning};

/// Servers asked, as the C library does.
const MOST: usize = 3;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Asks for the servers of the root, which every resolver knows: number, one question, recursion wanted.
const QUESTION: [u8; 17] = [0x74, 0x66, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

pub(super) async fn check(file: &Path) -> Said {
    let shown = file.display();
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => return failure(format!("{shown} cannot be read: {error}"), write_one(file)),
    };
    let servers = servers(&text);
    if servers.is_empty() {
        return failure(format!("{shown} names no server"), write_one(file));
    }
    let mut silent = Vec::new();
    let mut answered = Vec::new();
    for server in servers {
        if answers(SocketAddr::new(server, 53)).await {
            answered.push(server.to_string());
        } else {
            silent.push(server.to_string());
        }
    }
    let fix = format!("look at the network (`ip route`), or name another server in {shown}");
    match (answered.is_empty(), silent.is_empty()) {
        (_, true) => ok(format!("{} answers", answered.join(", "))),
        (true, _) => failure(format!("{} does not answer; images cannot be pulled by name", silent.join(", ")), fix),
        (false, false) => {
            let message = format!("{} answers, {} does not", answered.join(", "), silent.join(", "));
            warning(message, fix)
        }
    }
}

fn write_one(file: &Path) -> String {
    format!("echo 'nameserver 9.9.9.9' | sudo tee -a {}    (or the address of your router)", file.display())
}

fn servers(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next()?.split('%').next()?.parse().ok())?
    };
    text.lines().filter_map(server).take(MOST).collect()
}

/// Whether anything is answered, whatever it is.
async fn answers(server: SocketAddr) -> bool {
    let ask = async {
        let own: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = UdpSocket::bind(own).await.ok()?;
        socket.connect(server).await.ok()?;
        socket.send(&QUESTION).await.ok()?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).await.ok()?;
        (length >= 12 && answer[..2] == QUESTION[..2] && answer[2] & 0x80 != 0).then_some(())
    };
    tokio::time::timeout(PATIENCE, ask).await.is_ok_and(|answer| answer.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn servers_are_read_as_the_c_library_does() {
        let text = "# nameserver 1.1.1.1\nnameserver 127.0.0.53\nsearch lan\nnameserver fe80::1%eth0\n nameserver x\nnameserver 8.8.8.8 more\nnameserver 9.9.9.9\n";
        let found: Vec<String> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.53", "fe80::1", "8.8.8.8"]);
    }

    #[tokio::test]
    async fn a_file_without_servers_is_a_failure_with_its_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let said = check(&dir.path().join("none")).await;
        assert!(said.verdict == Verdict::Failure && said.message.contains("cannot be read"));
        let file = dir.path().join("resolv.conf");
        std::fs::write(&file, "search lan\n").unwrap();
        let said = check(&file).await;
        assert!(said.verdict == Verdict::Failure && said.fix.unwrap().contains("nameserver"), "{}", said.message);
    }

    #[tokio::test]
    async fn only_an_answer_counts() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let serve = async {
            let mut question = [0; 64];
            let (length, from) = server.recv_from(&mut question).await.unwrap();
            assert_eq!(question[..length], QUESTION);
            question[2] |= 0x80;
            server.send_to(&question[..length], from).await.unwrap();
        };
        assert!(tokio::join!(serve, answers(address)).1);
        drop(server);
        assert!(!answers(address).await);
    }
}
