//! The name servers of the machine, asked for what is not ours, with a bounded memory of what they said.
//!
//! Which they are is read anew when the file that tells has changed. A server on loopback is asked too: toft stands in the
//! machine's own network, where such a server answers, and knows what the servers behind it do not (systemd-resolved's
//! choice by interface).

use std::{
    collections::HashMap,
    fs, io,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_proto::{op::ResponseCode, rr::Record};
use hickory_resolver::{
    TokioResolver,
    config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
};

use super::{
    message::{Answer, Question},
    resolv_conf::ResolvConf,
};

/// How long a server has for one try.
const TRY: Duration = Duration::from_millis(1_500);
/// How long all tries may take together: askers give up after 5 seconds.
const ALTOGETHER: Duration = Duration::from_secs(4);
/// Answers that are remembered.
const REMEMBERED: u64 = 4_096;
/// Longest time that an answer is remembered.
const LONGEST: Duration = Duration::from_secs(3_600);

/// The machine's name servers.
pub(super) struct Upstream {
    places: Vec<PathBuf>,
    /// Our own address, which is never asked.
    own: IpAddr,
    current: Mutex<Option<(Stamps, Option<Arc<TokioResolver>>)>>,
}

/// What tells that a file is another one: when and which it was.
type Stamps = Vec<Option<(u64, i64, i64, u64)>>;

impl Upstream {
    pub(super) fn new(places: Vec<PathBuf>, own: IpAddr) -> Self {
        Self { places, own, current: Mutex::default() }
    }

    /// Asks them.
    pub(super) async fn ask(&self, question: &Question) -> Answer {
        let Some(resolver) = self.resolver() else {
            return failure("no_server", &"the machine has no name server");
        };
        let mut name = question.name().to_lowercase();
        name.set_fqdn(true);
        match tokio::time::timeout(ALTOGETHER, resolver.lookup(name, question.kind())).await {
            Ok(Ok(found)) => {
                Answer { code: ResponseCode::NoError, records: found.answers().to_vec(), authority: None, own: false }
            }
            Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) if is_negative(none.response_code) => Answer {
                code: none.response_code,
                records: Vec::new(),
                authority: none.soa.map(|soa| Record::into_record_of_rdata(*soa)),
                own: false,
            },
            Ok(Err(error)) => failure("upstream", &error),
            Err(_) => failure("timeout", &"the machine's name servers did not answer in time"),
        }
    }

    /// Who is asked, as the files say now.
    fn resolver(&self) -> Option<Arc<TokioResolver>> {
        let stamps: Stamps = self.places.iter().map(|place| stamp(place).ok()).collect();
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some((known, resolver)) if *known == stamps => resolver.clone(),
            _ => {
                let resolver = self.servers().and_then(build);
                *current = Some((stamps, resolver.clone()));
                resolver
            }
        }
    }

    /// The servers of the first file that names any.
    fn servers(&self) -> Option<Vec<IpAddr>> {
        let texts = self.places.iter().filter_map(|place| fs::read_to_string(place).ok());
        let servers = texts.map(|text| {
            let servers = ResolvConf::parse(&text).servers;
            servers.into_iter().filter(|server| *server != self.own).collect::<Vec<_>>()
        });
        servers.into_iter().find(|servers| !servers.is_empty())
    }
}

fn is_negative(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::NoError | ResponseCode::NXDomain)
}

fn failure(reason: &'static str, error: &dyn std::fmt::Display) -> Answer {
    metrics::counter!("toft_dns_failures_total", "reason" => reason).increment(1);
    tracing::debug!(%error, "a name could not be looked up");
    Answer::failed(ResponseCode::ServFail)
}

fn stamp(place: &PathBuf) -> io::Result<(u64, i64, i64, u64)> {
    let meta = fs::metadata(place)?;
    Ok((meta.ino(), meta.mtime(), meta.mtime_nsec(), meta.size()))
}

fn build(servers: Vec<IpAddr>) -> Option<Arc<TokioResolver>> {
    tracing::debug!(?servers, "the machine's name servers");
    let servers = servers.into_iter().map(NameServerConfig::udp_and_tcp).collect();
    let mut resolver = TokioResolver::builder_with_config(
        ResolverConfig::from_parts(None, Vec::new(), servers),
        TokioRuntimeProvider::default(),
    );
    let options: &mut ResolverOpts = resolver.options_mut();
    options.timeout = TRY;
    options.attempts = 1;
    options.cache_size = REMEMBERED;
    options.positive_max_ttl = Some(LONGEST);
    options.negative_max_ttl = Some(LONGEST);
    options.use_hosts_file = ResolveHosts::Never;
    // The machine's order says whom its owner wants asked first.
    options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
    options.num_concurrent_reqs = 1;
    match resolver.build() {
        Ok(resolver) => Some(Arc::new(resolver)),
        Err(error) => {
            tracing::error!(%error, "the machine's name servers cannot be asked");
            None
        }
    }
}

/// Questions under way, by asker: each may have so many.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of them; it ends when this is dropped.
pub(super) struct Place(Arc<Mutex<HashMap<IpAddr, usize>>>, IpAddr);

impl UnderWay {
    /// A place for one more, if there is one among `most` and the asker has less than `each`.
    pub(super) fn take(&self, asker: IpAddr, each: usize, most: usize) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.values().sum::<usize>() >= most {
            return None;
        }
        let count = counts.entry(asker).or_default();
        if *count >= each {
            return None;
        }
        *count += 1;
        Some(Place(Arc::clone(&self.0), asker))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_with_a_server_counts_and_a_change_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let places = ["a", "b"].map(|name| dir.path().join(name));
        let upstream = Upstream::new(places.to_vec(), "10.210.0.1".parse().unwrap());
        let servers = || upstream.servers().unwrap_or_default().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(servers().is_empty() && upstream.resolver().is_none());
        fs::write(&places[1], "nameserver 192.0.2.7\n").unwrap();
        fs::write(&places[0], "nameserver 10.210.0.1\n").unwrap();
        assert_eq!(servers(), ["192.0.2.7"], "who asks itself asks nobody");
        fs::write(&places[0], "nameserver 127.0.0.53\nnameserver 192.0.2.8\n").unwrap();
        assert_eq!(servers(), ["127.0.0.53", "192.0.2.8"]);
    }

    #[test]
    fn places_are_counted_by_asker_and_altogether() {
        let way = UnderWay::default();
        let [a, b] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse::<IpAddr>().unwrap());
        let held: Vec<_> = (0..2).map(|_| way.take(a, 2, 3).unwrap()).collect();
        assert!(way.take(a, 2, 3).is_none());
        let last = way.take(b, 2, 3).unwrap();
        assert!(way.take(b, 2, 3).is_none(), "three altogether");
        drop(last);
        drop(held);
        assert!(way.take(a, 2, 3).is_some());
    }
}
