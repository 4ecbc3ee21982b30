//! A network that only remembers what it was asked for. It answers like the real one as far as that can be told
//! without a kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use toft_model::{instance::PublishedPort, workload::Protocol};

use super::{Network, NetworkConfig, NetworkError, PortClaim};

/// One of the trait's methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// [`Network::set`].
    Set,
    /// [`Network::attach`].
    Attach,
    /// [`Network::loopback`].
    Loopback,
    /// [`Network::check_port_free`].
    CheckPortFree,
    /// [`Network::remove_all`].
    RemoveAll,
}

/// Remembers, and fails when told to.
#[derive(Debug, Default)]
pub struct FakeNetwork {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    config: Option<NetworkConfig>,
    sets: usize,
    attached: BTreeMap<u32, Ipv4Addr>,
    loopbacks: BTreeSet<u32>,
    gone: BTreeSet<u32>,
    taken: BTreeSet<(Protocol, u16)>,
    failures: BTreeMap<Operation, usize>,
}

impl FakeNetwork {
    /// The configuration of the last successful `set`, unless everything was removed since.
    pub fn config(&self) -> Option<NetworkConfig> {
        self.state().config.clone()
    }

    /// How often `set` succeeded.
    pub fn sets(&self) -> usize {
        self.state().sets
    }

    /// Processes attached to the bridge with their addresses.
    pub fn attached(&self) -> BTreeMap<u32, Ipv4Addr> {
        self.state().attached.clone()
    }

    /// Processes whose loopback is up.
    pub fn loopbacks(&self) -> BTreeSet<u32> {
        self.state().loopbacks.clone()
    }

    /// Lets the next `times` calls of `operation` fail.
    pub fn fail(&self, operation: Operation, times: usize) {
        self.state().failures.insert(operation, times);
    }

    /// Lets a foreign process listen on a host port.
    pub fn take_port(&self, protocol: Protocol, port: u16) {
        self.state().taken.insert((protocol, port));
    }

    /// Lets the foreign process go away.
    pub fn free_port(&self, protocol: Protocol, port: u16) {
        self.state().taken.remove(&(protocol, port));
    }

    /// Lets a process end.
    pub fn end_process(&self, pid: u32) {
        let mut state = self.state();
        state.gone.insert(pid);
        state.attached.remove(&pid);
        state.loopbacks.remove(&pid);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, unless this call shall fail.
    fn enter(&self, operation: Operation) -> Result<MutexGuard<'_, State>, NetworkError> {
        let mut state = self.state();
        match state.failures.get_mut(&operation) {
            Some(left) if *left > 0 => {
                *left -= 1;
                Err(NetworkError::Failed { doing: "pretending", reason: "a test asked for it".to_owned() })
            }
            _ => Ok(state),
        }
    }
}

impl State {
    fn alive(&self, pid: u32) -> Result<(), NetworkError> {
        if self.gone.contains(&pid) { Err(NetworkError::ProcessGone { pid }) } else { Ok(()) }
    }
}

#[async_trait]
impl Network for FakeNetwork {
    async fn set(&self, config: &NetworkConfig) -> Result<(), NetworkError> {
        let mut state = self.enter(Operation::Set)?;
        state.config = Some(config.clone());
        state.sets += 1;
        Ok(())
    }

    async fn attach(&self, pid: u32, address: Ipv4Addr) -> Result<(), NetworkError> {
        let mut state = self.enter(Operation::Attach)?;
        super::member(state.config.as_ref().map(|config| config.subnet), address)?;
        state.alive(pid)?;
        state.attached.insert(pid, address);
        state.loopbacks.insert(pid);
        Ok(())
    }

    async fn loopback(&self, pid: u32) -> Result<(), NetworkError> {
        let mut state = self.enter(Operation::Loopback)?;
        state.alive(pid)?;
        state.loopbacks.insert(pid);
        Ok(())
    }

    async fn check_port_free(&self, port: PublishedPort) -> Result<(), NetworkError> {
        let state = self.enter(Operation::CheckPortFree)?;
        if state.taken.contains(&(port.protocol, port.host)) {
            return Err(NetworkError::PortTaken { port: port.host, protocol: port.protocol });
        }
        Ok(())
    }

    fn claim_port(&self, _port: PublishedPort) -> PortClaim {
        PortClaim::none()
    }

    async fn remove_all(&self) -> Result<(), NetworkError> {
        let mut state = self.enter(Operation::RemoveAll)?;
        state.config = None;
        state.attached.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_fails_as_often_as_it_was_told() {
        let network = FakeNetwork::default();
        network.fail(Operation::Loopback, 2);
        assert!(network.loopback(7).await.is_err());
        assert!(network.loopback(7).await.is_err());
        network.loopback(7).await.unwrap();
        assert_eq!(network.loopbacks(), BTreeSet::from([7]));
    }
}
