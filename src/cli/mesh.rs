//! `mesh show`, `mesh ping`.

use toft_model::units::format_span_ms;

use super::{
    Failure,
    client::Client,
    mesh_args::{MeshCommand, PingArgs, ShowArgs},
    output,
};
pub(super) use crate::api::types::CLOCK_APART_MS;
use crate::api::types::{Mesh, MeshPeer, MeshPing, MeshPings};

pub(super) async fn mesh(client: &Client, command: MeshCommand) -> Result<i32, Failure> {
    match command {
        MeshCommand::Show(args) => show(client, args).await,
        MeshCommand::Ping(args) => ping(client, args).await,
    }
}

async fn show(client: &Client, args: ShowArgs) -> Result<i32, Failure> {
    let asked = args.node.map(|node| format!("?node={node}")).unwrap_or_default();
    let mesh: Mesh = client.get(&format!("/api/v1/mesh{asked}")).await?;
    if args.json {
        output::json(&mesh)?;
        return Ok(0);
    }
    let none = || "-".to_owned();
    let device = match (&mesh.device, mesh.listen_port) {
        (Some(device), Some(port)) => format!("carried by {device} at UDP port {port}"),
        _ => "it has no mesh now; `toft doctor` says what it lacks".to_owned(),
    };
    println!("as {} sees it, {device}\n", mesh.node);
    let skewed = mesh.peers.iter().any(|peer| peer.clock_ahead_ms.is_some_and(|ms| ms.abs() > CLOCK_APART_MS));
    let mut header = vec!["NODE", "ADDRESS", "PATH", "ENDPOINT", "RTT", "HANDSHAKE", "IN / OUT", "MTU", "VERSION"];
    header.extend(skewed.then_some("CLOCK"));
    let text = |text: &Option<String>| text.clone().unwrap_or_else(none);
    let mtu = |mtu: Option<u16>| mtu.map_or_else(none, |mtu| mtu.to_string());
    let mut own = vec![mesh.node.clone(), text(&mesh.address), "self".to_owned()];
    own.extend([none(), none(), none(), none(), mtu(mesh.mtu), mesh.version.clone()]);
    own.extend(skewed.then(none));
    let row = |peer: &MeshPeer| {
        let path = match &peer.via {
            Some(via) => format!("{} via {via}", peer.path),
            None => peer.path.clone(),
        };
        let handshake = |age: u64| format!("{} ago", format_span_ms(i64::try_from(age).unwrap_or(i64::MAX)));
        let mut row = vec![
            peer.node.clone(),
            text(&peer.address),
            path,
            text(&peer.endpoint),
            peer.round_trip_us.map_or_else(none, time),
            peer.handshake_age_ms.map_or_else(|| "never".to_owned(), handshake),
            format!("{} / {}", output::bytes(peer.received_bytes), output::bytes(peer.sent_bytes)),
            mtu(peer.mtu),
            text(&peer.version),
        ];
        row.extend(skewed.then(|| peer.clock_ahead_ms.map_or_else(none, apart)));
        row
    };
    output::table(&header, std::iter::once(own).chain(mesh.peers.iter().map(row)));
    Ok(0)
}

async fn ping(client: &Client, args: PingArgs) -> Result<i32, Failure> {
    let node = args.node.map(|node| format!("&node={node}")).unwrap_or_default();
    let pings: MeshPings = client.get(&format!("/api/v1/mesh/ping?packets={}{node}", args.count)).await?;
    let lost = pings.rows.iter().flat_map(|row| &row.to).any(|ping| ping.loss_percent == 100);
    let code = i32::from(lost || !pings.away.is_empty());
    if args.json {
        output::json(&pings)?;
        return Ok(code);
    }
    let mut names: Vec<&str> = pings.rows.iter().flat_map(|row| &row.to).map(|ping| ping.node.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let mut header = vec!["FROM \\ TO"];
    header.extend(&names);
    let rows = pings.rows.iter().map(|row| {
        let cell = |name: &&str| row.to.iter().find(|ping| ping.node == **name).map_or_else(|| "-".to_owned(), heard);
        std::iter::once(row.from.clone()).chain(names.iter().map(cell)).collect()
    });
    output::table(&header, rows);
    for away in &pings.away {
        eprintln!("toft: {} does not tell: {}", away.node, away.error.message);
    }
    Ok(code)
}

fn heard(ping: &MeshPing) -> String {
    match (ping.median_us, ping.loss_percent) {
        (None, _) => "nothing".to_owned(),
        (Some(median), 0) => time(median),
        (Some(median), loss) => format!("{} ({loss} % lost)", time(median)),
    }
}

fn time(us: u64) -> String {
    format!("{:.1} ms", us as f64 / 1_000.0)
}

/// How far a clock is off: `+1.5 s`.
pub(super) fn apart(ms: i64) -> String {
    format!("{:+.1} s", ms as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_losses_are_short() {
        let ping = |median_us, loss_percent| MeshPing {
            node: "a".into(),
            sent: 5,
            loss_percent,
            least_us: None,
            median_us,
            most_us: None,
        };
        assert_eq!(heard(&ping(Some(1_240), 0)), "1.2 ms");
        assert_eq!(heard(&ping(Some(90), 20)), "0.1 ms (20 % lost)");
        assert_eq!(heard(&ping(None, 100)), "nothing");
        assert_eq!((apart(-1_500), apart(301_000)), ("-1.5 s".to_owned(), "+301.0 s".to_owned()));
    }
}
