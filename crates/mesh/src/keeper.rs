//! Keeps a device as it shall be: sets what is wanted, looks at what became of it, and looks for peers elsewhere that do
//! not answer where they were.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use toft_model::mesh::{
    MAX_ENDPOINTS, MeshConfig, MeshEndpoint, MeshPath, MeshPeerStatus, MeshStatus, PublicKey, canonical,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{Device, MeshError};

/// How often the device is looked at, and how often while somebody changes keys or does not answer.
const LOOK: Duration = Duration::from_secs(5);
const LOOK_AT_FEW: Duration = Duration::from_secs(2);
const LOOK_CLOSELY: Duration = Duration::from_secs(1);
/// How often it is set although nothing changed: paths change their size, and somebody may have removed the link.
const REPEAT: Duration = Duration::from_secs(60);
/// How long a peer is waited for at one address: a handshake is tried again after five seconds.
const PATIENCE: Duration = Duration::from_secs(6);
/// The same while both have a session: whatever is sent goes there at once.
const PATIENCE_IN_SESSION: Duration = Duration::from_secs(2);
/// How long what was sent to a peer with a session may stay without anything that comes back. WireGuard answers whatever
/// it receives within ten seconds.
const SILENCE: Duration = Duration::from_secs(12);
/// The same where there are other addresses to try: nodes have several, and ask each other each five seconds.
const SILENCE_ELSEWHERE: Duration = Duration::from_secs(7);
/// The same among few nodes, which ask each other each two seconds.
const SILENCE_OF_FEW: Duration = Duration::from_secs(4);
/// So many peers are few: each can be asked, and looked at, more often.
pub const FEW: usize = 16;
/// The longest time between tries of something that fails.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Makes `device` follow `desired` until cancelled, and tells what it is in `observed`. As long as nobody said anything,
/// nothing is done; without peers there is no device. The device stays when this ends.
pub async fn keep(
    device: Arc<dyn Device>,
    mut desired: watch::Receiver<Option<MeshConfig>>,
    observed: watch::Sender<Option<MeshStatus>>,
    cancel: CancellationToken,
) {
    let mut search = Search::default();
    let mut failures = 0;
    let mut set_at: Option<Instant> = None;
    loop {
        let news = desired.has_changed().unwrap_or(false);
        let wanted = desired.borrow_and_update().clone();
        let pause = match wanted {
            None => None,
            Some(config) if config.peers.is_empty() => {
                let removed = device.remove().await;
                observed.send_replace(None);
                set_at = None;
                removed.err().map(|error| tell(&error, &mut failures))
            }
            Some(config) => {
                let now = Instant::now();
                let moved = search.look(&config, observed.borrow().as_ref(), now);
                let changing = config.peers.values().any(|peer| peer.next_key.is_some());
                let due = set_at.is_none_or(|at| now.duration_since(at) >= REPEAT);
                let worked = if news || moved || changing || due {
                    set_at = None;
                    let ordered = search.order(&config, observed.borrow().as_ref());
                    device.set(&ordered).await
                } else {
                    Ok(())
                };
                let looked = match worked {
                    Ok(()) => {
                        set_at.get_or_insert(now);
                        device.status().await
                    }
                    Err(error) => Err(error),
                };
                match looked {
                    Ok(status) => {
                        failures = 0;
                        let quiet = status.as_ref().is_some_and(|status| search.all_answer(status));
                        observed.send_replace(status);
                        let few = config.peers.len() <= FEW;
                        Some(match quiet && !changing {
                            true if few => LOOK_AT_FEW,
                            true => LOOK,
                            false => LOOK_CLOSELY,
                        })
                    }
                    Err(error) => {
                        set_at = None;
                        observed.send_replace(None);
                        Some(tell(&error, &mut failures))
                    }
                }
            }
        };
        let rest = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = desired.changed() => if changed.is_err() {
                // Nobody wants anything else any more.
                return cancel.cancelled().await;
            } else {
                desired.mark_changed();
            },
            () = rest => {}
        }
    }
}

/// Says once what is wrong, and gives the time until the next try.
fn tell(error: &MeshError, failures: &mut u32) -> Duration {
    if *failures == 0 {
        tracing::warn!(%error, hint = error.hint(), "the mesh does not work");
    }
    *failures = failures.saturating_add(1);
    Duration::from_secs(1 << (*failures - 1).min(6)).min(LONGEST_PAUSE)
}

/// Which of its addresses each peer is tried at.
#[derive(Debug, Default)]
struct Search {
    peers: BTreeMap<PublicKey, Turn>,
}

/// What is known of one peer.
#[derive(Debug)]
struct Turn {
    /// Number of the address at which it is tried.
    turn: usize,
    /// Since when.
    since: Instant,
    /// The address that was thought most likely.
    first: Option<MeshEndpoint>,
    /// Bytes it had sent and was sent when it was heard last.
    heard: (u64, u64),
    /// When it was seen for the first time that something was sent to it after that.
    unanswered: Option<Instant>,
    /// Whether it has been silent for too long.
    silent: bool,
    /// Whether it was sent to a relay and has not been heard since.
    sent_away: bool,
}

impl Turn {
    /// Takes note of what went to and fro.
    fn count(&mut self, status: &MeshPeerStatus, longest: Duration, now: Instant) {
        if status.rx_bytes != self.heard.0 {
            self.heard = (status.rx_bytes, status.tx_bytes);
            self.unanswered = None;
            self.sent_away = false;
        } else if status.tx_bytes != self.heard.1 {
            self.unanswered.get_or_insert(now);
        }
        let unanswered = self.unanswered.is_some_and(|since| now.duration_since(since) >= longest);
        self.silent = self.sent_away || unanswered;
    }
}

impl Search {
    /// Turns to the next address of whoever has not answered for a while. True when somebody is tried elsewhere now.
    fn look(&mut self, config: &MeshConfig, seen: Option<&MeshStatus>, now: Instant) -> bool {
        self.peers.retain(|key, _| config.peers.contains_key(key));
        let mut moved = false;
        let elsewhere = if config.peers.len() <= FEW { SILENCE_OF_FEW } else { SILENCE_ELSEWHERE };
        for (key, peer) in &config.peers {
            let first = peer.endpoints.first().copied();
            let new = || Turn {
                turn: 0,
                since: now,
                first,
                heard: (0, 0),
                unanswered: None,
                silent: false,
                sent_away: false,
            };
            let turn = self.peers.entry(*key).or_insert_with(new);
            let mut patience = PATIENCE;
            if let Some(status) = seen.and_then(|seen| seen.peers.get(key)) {
                let longest = if peer.endpoints.len() > 1 { elsewhere } else { SILENCE };
                turn.count(status, longest, now);
                if status.is_live() {
                    patience = PATIENCE_IN_SESSION;
                }
                // Nobody is sent to a relay who answers elsewhere, whatever a session's age says.
                if let Some(relay) = first.filter(|first| first.path == MeshPath::Relayed && turn.first != Some(*first))
                {
                    turn.sent_away = status.endpoint != Some(relay.address);
                    turn.silent |= turn.sent_away;
                }
                if status.is_live() && !turn.silent {
                    (turn.first, turn.turn, turn.since) = (first, 0, now);
                    continue;
                }
            }
            if turn.first != first {
                // Somebody knows better now.
                (turn.first, turn.turn, turn.since) = (first, 0, now);
                moved = true;
            } else if now.duration_since(turn.since) >= patience {
                turn.since = now;
                turn.turn += 1;
                moved |= peer.endpoints.len() > 1;
            }
        }
        moved
    }

    /// Whether everybody with a session answers.
    fn all_answer(&self, status: &MeshStatus) -> bool {
        let answers = |key: &PublicKey| self.peers.get(key).is_none_or(|turn| turn.unanswered.is_none());
        status.peers.iter().all(|(key, peer)| peer.is_live() && answers(key))
    }

    /// The configuration with everybody's addresses in the order in which they are tried. Who answers stays where it is,
    /// whatever is thought more likely.
    fn order(&self, config: &MeshConfig, seen: Option<&MeshStatus>) -> MeshConfig {
        let mut config = config.clone();
        for (key, peer) in &mut config.peers {
            let Some(turn) = self.peers.get(key) else { continue };
            let status = seen.and_then(|seen| seen.peers.get(key));
            let here = status.filter(|status| status.is_live() && !turn.silent);
            if let Some(address) = here.and_then(|status| status.endpoint) {
                let path = peer.path_of(address);
                peer.endpoints.retain(|endpoint| canonical(endpoint.address) != canonical(address));
                peer.endpoints.insert(0, MeshEndpoint { address, path });
                peer.endpoints.truncate(MAX_ENDPOINTS);
            } else if let Some(by) = turn.turn.checked_rem(peer.endpoints.len()) {
                peer.endpoints.rotate_left(by);
            }
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::SocketAddr};

    use toft_model::mesh::{MeshDevice, MeshPeer};

    use super::*;
    use crate::fake::{FakeDevice, FakeNet};

    const OTHER: PublicKey = PublicKey([2; 32]);

    fn config(endpoints: &[&str]) -> MeshConfig {
        let endpoints = endpoints.iter().map(|text| MeshEndpoint::direct(text.parse().unwrap())).collect();
        MeshConfig {
            key: PublicKey([1; 32]),
            listen_port: 51820,
            addresses: BTreeSet::new(),
            networks: BTreeSet::new(),
            mtu: None,
            peers: BTreeMap::from([(OTHER, MeshPeer { endpoints, ..MeshPeer::default() })]),
        }
    }

    fn status(age: Option<u64>) -> MeshStatus {
        let peer = MeshPeerStatus { handshake_age_ms: age, ..MeshPeerStatus::default() };
        let peers = BTreeMap::from([(OTHER, peer)]);
        MeshStatus { device: MeshDevice::Fake, key: PublicKey([1; 32]), listen_port: 1, mtu: 1_420, peers }
    }

    #[test]
    fn who_does_not_answer_is_looked_for_at_the_next_address() {
        let config = config(&["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"]);
        let first = |search: &Search| -> SocketAddr { search.order(&config, None).peers[&OTHER].endpoints[0].address };
        let mut search = Search::default();
        let start = Instant::now();
        let mut asked = Vec::new();
        for seconds in 0..20 {
            if search.look(&config, Some(&status(None)), start + Duration::from_secs(seconds)) || seconds == 0 {
                asked.push((seconds, first(&search).to_string()));
            }
        }
        let want = [(0, "192.0.2.1:1"), (6, "192.0.2.2:1"), (12, "192.0.2.3:1"), (18, "192.0.2.1:1")];
        assert_eq!(asked, want.map(|(seconds, address)| (seconds, address.to_owned())));
        // Who answers stays where it is, and gets its time again when it falls silent.
        let live = status(Some(1_000));
        assert!(!search.look(&config, Some(&live), start + Duration::from_secs(600)));
        assert!(!search.look(&config, Some(&status(Some(200_000))), start + Duration::from_secs(603)));
        assert!(search.look(&config, Some(&status(Some(200_000))), start + Duration::from_secs(606)));
    }

    #[test]
    fn who_answers_stays_where_it_is_and_who_falls_silent_is_looked_for_soon() {
        let here: SocketAddr = "198.51.100.1:7".parse().unwrap();
        let with = |age, rx_bytes, tx_bytes| {
            let mut status = status(Some(age));
            let peer = status.peers.get_mut(&OTHER).unwrap();
            (peer.endpoint, peer.rx_bytes, peer.tx_bytes) = (Some(here), rx_bytes, tx_bytes);
            status
        };
        let mut search = Search::default();
        let start = Instant::now();
        let config = config(&["192.0.2.1:1", "192.0.2.2:1"]);
        let first = |search: &Search, seen| search.order(&config, Some(seen)).peers[&OTHER].endpoints[0].address;
        let seen = with(1_000, 100, 100);
        assert!(!search.look(&config, Some(&seen), start));
        assert_eq!(first(&search, &seen), here, "what is thought likely moves nobody who answers");
        // Nothing is sent, nothing comes: that is no silence.
        assert!(!search.look(&config, Some(&seen), start + Duration::from_secs(100)));
        // Something is sent, and nothing comes for four seconds; the session is still young.
        let sent = with(60_000, 100, 200);
        let at = |seconds: u64| start + Duration::from_secs(100 + seconds);
        assert!(!search.look(&config, Some(&sent), at(1)));
        assert!(!search.look(&config, Some(&with(60_000, 100, 300)), at(4)));
        assert!(search.look(&config, Some(&with(60_000, 100, 400)), at(6)), "it is tried elsewhere");
        assert_eq!(first(&search, &sent).to_string(), "192.0.2.2:1");
        // Somebody knows better: that is tried at once.
        let news = self::config(&["203.0.113.5:1", "192.0.2.1:1"]);
        assert!(search.look(&news, Some(&with(60_000, 100, 500)), at(10)));
        assert_eq!(search.order(&news, Some(&sent)).peers[&OTHER].endpoints[0].address.to_string(), "203.0.113.5:1");
        // It is heard again.
        let back = with(60_000, 500, 600);
        assert!(!search.look(&news, Some(&back), at(11)));
        assert_eq!(search.order(&news, Some(&back)).peers[&OTHER].endpoints[0].address, here);
    }

    #[test]
    fn who_is_to_be_relayed_is_at_once_and_stays_where_it_is_heard_then() {
        let at = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let with = |rx_bytes, tx_bytes, endpoint: &str| {
            let mut status = status(Some(1_000));
            let peer = status.peers.get_mut(&OTHER).unwrap();
            (peer.endpoint, peer.rx_bytes, peer.tx_bytes) = (Some(at(endpoint)), rx_bytes, tx_bytes);
            status
        };
        let (direct, mut relayed) = (config(&["192.0.2.1:1"]), config(&["127.0.0.1:7", "192.0.2.1:1"]));
        relayed.peers.get_mut(&OTHER).unwrap().endpoints[0].path = MeshPath::Relayed;
        let mut search = Search::default();
        let start = Instant::now();
        let first = |search: &Search, config: &MeshConfig, seen: &MeshStatus| {
            search.order(config, Some(seen)).peers[&OTHER].endpoints[0].address
        };
        let second = |seconds: u64| start + Duration::from_secs(seconds);
        let seen = with(100, 100, "192.0.2.1:1");
        assert!(!search.look(&direct, Some(&seen), start));
        assert!(search.look(&relayed, Some(&seen), second(1)), "its session is young, but nothing comes through");
        assert_eq!(first(&search, &relayed, &seen), at("127.0.0.1:7"));
        let seen = with(100, 300, "127.0.0.1:7");
        assert!(!search.look(&relayed, Some(&seen), second(2)));
        assert_eq!(first(&search, &relayed, &seen), at("127.0.0.1:7"));
        // It is heard through the relay, and later directly: it stays there, although the relay is thought of first.
        assert!(!search.look(&relayed, Some(&with(200, 300, "127.0.0.1:7")), second(3)));
        let seen = with(300, 400, "192.0.2.1:1");
        assert!(!search.look(&relayed, Some(&seen), second(4)));
        assert_eq!(first(&search, &relayed, &seen), at("192.0.2.1:1"));
        assert!(!search.look(&direct, Some(&seen), second(5)));
        // Nobody answers through the relay either: the other places have their turn again.
        assert!(search.look(&relayed, Some(&seen), second(6)));
        assert!(search.look(&relayed, Some(&with(300, 500, "127.0.0.1:7")), second(8)));
        assert_eq!(first(&search, &relayed, &seen), at("192.0.2.1:1"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_is_there_only_while_there_are_peers() {
        let device = Arc::new(FakeDevice::new(&FakeNet::default(), "192.0.2.9".parse().unwrap()));
        let (want, desired) = watch::channel(None);
        let (tell, mut observed) = watch::channel(None);
        let cancel = CancellationToken::new();
        let task = tokio::spawn(keep(device.clone(), desired, tell, cancel.clone()));
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert_eq!((device.sets(), device.removes()), (0, 0));
        want.send_replace(Some(config(&["192.0.2.1:1"])));
        observed.wait_for(Option::is_some).await.unwrap();
        assert_eq!(device.sets(), 1);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(device.sets(), 2, "now and then it is set again");
        want.send_modify(|config| config.as_mut().unwrap().peers.clear());
        observed.wait_for(Option::is_none).await.unwrap();
        assert!(device.removes() >= 1);
        cancel.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_again_ever_more_seldom() {
        let device = Arc::new(FakeDevice::new(&FakeNet::default(), "192.0.2.9".parse().unwrap()));
        device.fail(10);
        let (_want, desired) = watch::channel(Some(config(&["192.0.2.1:1"])));
        let (tell, mut observed) = watch::channel(None);
        let cancel = CancellationToken::new();
        let begun = Instant::now();
        let task = tokio::spawn(keep(device.clone(), desired, tell, cancel.clone()));
        observed.wait_for(Option::is_some).await.unwrap();
        // 1 + 2 + 4 + 8 + 16 + 32 + 60 + 60 + 60 + 60 seconds.
        let took = begun.elapsed().as_secs();
        assert!((300..310).contains(&took), "{took}");
        cancel.cancel();
        task.await.unwrap();
    }
}
