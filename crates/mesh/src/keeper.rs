//! Keeps a device as it shall be: sets what is wanted, looks at what became of it, and looks for peers elsewhere that do
//! not answer where they were.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use toft_model::mesh::{MeshConfig, MeshStatus, PublicKey};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{Device, MeshError};

/// How often the device is looked at, and how often while somebody changes keys or does not answer.
const LOOK: Duration = Duration::from_secs(5);
const LOOK_CLOSELY: Duration = Duration::from_secs(1);
/// How often it is set although nothing changed: paths change their size, and somebody may have removed the link.
const REPEAT: Duration = Duration::from_secs(60);
/// How long a peer is waited for at one address: a handshake is tried again after five seconds.
const PATIENCE: Duration = Duration::from_secs(6);
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
                    device.set(&search.order(&config)).await
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
                        let quiet =
                            status.as_ref().is_some_and(|status| status.peers.values().all(|peer| peer.is_live()));
                        observed.send_replace(status);
                        Some(if quiet && !changing { LOOK } else { LOOK_CLOSELY })
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
    turns: BTreeMap<PublicKey, (usize, Instant)>,
}

impl Search {
    /// Turns to the next address of whoever has not answered for a while. True when somebody is tried elsewhere now.
    fn look(&mut self, config: &MeshConfig, seen: Option<&MeshStatus>, now: Instant) -> bool {
        self.turns.retain(|key, _| config.peers.contains_key(key));
        let mut moved = false;
        for (key, peer) in &config.peers {
            let live = seen.and_then(|seen| seen.peers.get(key)).is_some_and(|peer| peer.is_live());
            let (turn, since) = self.turns.entry(*key).or_insert((0, now));
            if live {
                *since = now;
            } else if now.duration_since(*since) >= PATIENCE {
                *since = now;
                *turn += 1;
                moved |= peer.endpoints.len() > 1;
            }
        }
        moved
    }

    /// The configuration with everybody's addresses in the order in which they are tried.
    fn order(&self, config: &MeshConfig) -> MeshConfig {
        let mut config = config.clone();
        for (key, peer) in &mut config.peers {
            let turn = self.turns.get(key).map_or(0, |(turn, _)| *turn);
            if let Some(by) = turn.checked_rem(peer.endpoints.len()) {
                peer.endpoints.rotate_left(by);
            }
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::SocketAddr};

    use toft_model::mesh::{MeshDevice, MeshEndpoint, MeshPeer, MeshPeerStatus};

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
        let first = |search: &Search| -> SocketAddr { search.order(&config).peers[&OTHER].endpoints[0].address };
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
