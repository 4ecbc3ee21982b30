//! The people of the simulated world.

use toft_model::{
    ids::WorkloadId,
    instance::Desired,
    node::{Availability, NodeChanges},
    state::{Command, InstanceMove, PowerAction, PutMode, query_snapshot},
    workload::{HealthCheck, HealthTest, NetworkMode, OnNodeLoss, PortSpec, Protocol, WorkloadKind, WorkloadSpec},
};

use super::world::{Asker, Event, World};

/// Longest time between two wishes.
pub(super) const OPS_MS: i64 = 3_000;
const NAMES: [&str; 4] = ["api", "job", "web", "zoo"];
/// Wait for an answer.
const PATIENCE_MS: i64 = 2_500;

/// One person, who cares for one workload and asks for one thing at a time.
pub(super) struct User {
    name: &'static str,
    /// The request that waits for its answer.
    request: Option<(u64, Command)>,
    spec: Option<WorkloadSpec>,
}

impl User {
    pub(super) fn all() -> Vec<Self> {
        NAMES.into_iter().map(|name| Self { name, request: None, spec: None }).collect()
    }
}

impl World {
    pub(super) fn user_acts(&mut self) {
        let number = self.dice.number(0, self.users.len() as i64 - 1) as usize;
        if self.users[number].request.is_some() {
            return;
        }
        let name = self.users[number].name.parse().unwrap();
        let at_ms = self.now;
        let known = self.users[number].spec.clone();
        let command = match (known, self.dice.number(1, 100)) {
            (None, _) | (_, 1..=25) => {
                let spec = self.random_spec(number);
                self.put(number, spec)
            }
            (Some(spec), 26..=45) => {
                let replicas = self.dice.number(0, 4) as u32;
                self.put(number, WorkloadSpec { replicas, ..spec })
            }
            (_, 46..=58) => Command::PowerWorkload { name, action: PowerAction::Stop, at_ms },
            (_, 59..=72) => Command::PowerWorkload { name, action: PowerAction::Start, at_ms },
            (_, 73..=84) => Command::PowerWorkload { name, action: PowerAction::Restart, at_ms },
            (_, 85..=92) => Command::RemoveWorkload { name, at_ms },
            (_, 93..=95) => self.some_moves(),
            _ => {
                let node = self.dice.number(0, 4);
                let all = [Availability::Active, Availability::Active, Availability::Draining, Availability::Cordoned];
                let changes = NodeChanges { availability: Some(self.dice.one_of(&all)), ..NodeChanges::default() };
                let name = format!("node-{node}").parse().unwrap();
                Command::ConfigureNode { name, changes: Box::new(changes), at_ms }
            }
        };
        self.ask(number, command);
    }

    /// Some instances are to move, each to some node.
    fn some_moves(&mut self) -> Command {
        let snapshot = query_snapshot(&self.cluster.connection).unwrap();
        let mut moves = Vec::new();
        for instance in &snapshot.instances {
            let workload = snapshot.workloads.iter().find(|workload| workload.id == instance.workload_id);
            let number = self.dice.number(0, snapshot.nodes.len() as i64 - 1) as usize;
            let Some((workload, node)) = workload.zip(snapshot.nodes.get(number)) else { continue };
            let moves_now = instance.desired == Desired::Running && node.id != instance.node_id;
            if moves_now && self.dice.chance(40) {
                let (instance_id, generation) = (instance.id, workload.generation);
                moves.push(InstanceMove { instance_id, generation, from: instance.node_id, to: node.id });
            }
        }
        Command::MoveInstances { moves, at_ms: self.now }
    }

    fn put(&mut self, number: usize, spec: WorkloadSpec) -> Command {
        spec.validate().unwrap();
        self.users[number].spec = Some(spec.clone());
        let mode = if self.dice.chance(10) { PutMode::Create } else { PutMode::Replace { if_generation: None } };
        Command::PutWorkload {
            workload_id: WorkloadId(self.cluster.mint()),
            spec: Box::new(spec),
            mode,
            at_ms: self.now,
        }
    }

    fn ask(&mut self, number: usize, command: Command) {
        self.requests += 1;
        let request = self.requests;
        self.users[number].request = Some((request, command.clone()));
        self.send(None, Event::Arrives { asker: Asker::User { number, request }, command: Box::new(command) });
        self.after(PATIENCE_MS, Event::UserGivesUpWaiting { number, request });
    }

    pub(super) fn user_answered(&mut self, number: usize, request: u64) {
        let user = &mut self.users[number];
        user.request.take_if(|(waiting, _)| *waiting == request);
    }

    /// The answer did not come: the same once more.
    pub(super) fn user_asks_again(&mut self, number: usize, request: u64) {
        let waiting = self.users[number].request.take_if(|(waiting, _)| *waiting == request);
        if let Some((_, command)) = waiting {
            self.ask(number, command);
        }
    }

    fn random_spec(&mut self, number: usize) -> WorkloadSpec {
        let dice = &mut self.dice;
        let image = dice.one_of(&["demo:1", "demo:2"]);
        let mut spec = WorkloadSpec::new(NAMES[number].parse().unwrap(), image.parse().unwrap());
        if NAMES[number] == "job" || dice.chance(15) {
            spec.kind = WorkloadKind::Job;
        }
        spec.replicas = dice.number(0, 3) as u32;
        spec.restart = match dice.number(1, 10) {
            1 => Some("always".parse().unwrap()),
            2 => Some("no".parse().unwrap()),
            3 => Some("on-failure".parse().unwrap()),
            4 => Some("on-failure:2".parse().unwrap()),
            _ => None,
        };
        match dice.number(1, 10) {
            1 => spec.network = NetworkMode::Host,
            2 => spec.network = NetworkMode::None,
            _ => {
                if dice.chance(45) {
                    let host = dice.one_of(&[Some(80), Some(80), Some(81), Some(20_000), None, None]);
                    spec.ports.push(PortSpec { host, container: 80, protocol: Protocol::Tcp });
                }
                if dice.chance(15) {
                    spec.ports.push(PortSpec { host: None, container: 53, protocol: Protocol::Udp });
                }
            }
        }
        if dice.chance(12) {
            let node = dice.number(0, 3);
            spec.node = Some(format!("node-{node}").parse().unwrap());
        }
        if dice.chance(20) {
            let retries = dice.number(1, 3) as u32;
            spec.health = Some(HealthCheck { retries, ..HealthCheck::new(HealthTest::Tcp { port: 80 }) });
        }
        spec.placement.priority = dice.one_of(&[10, 100, 100, 100, 300]);
        if dice.chance(25) {
            spec.resources.cpu_reserved_millis = Some(1_500);
        }
        if dice.chance(30) {
            spec.on_node_loss = Some(dice.one_of(&[OnNodeLoss::Wait, OnNodeLoss::Reschedule]));
        }
        if spec.kind == WorkloadKind::Service && dice.chance(25) {
            spec.exclusive = true;
        }
        spec.stop_grace_ms = dice.number(100, 2_000) as u32;
        spec
    }
}
