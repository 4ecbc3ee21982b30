//! `join` and `leave`.

use std::{
    io::Read,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use toft_model::token::MemberRole;
use zeroize::Zeroizing;

use super::{
    Failure,
    client::Client,
    context::{self, Target},
    daemon::{misconfigured, root_only},
    member_args::{JoinArgs, LeaveArgs},
    node_args::DrainArgs,
    nodes, output, progress, prompt,
};
use crate::{
    agent::host::host_name,
    api::{
        http::members::member_address,
        types::{Cluster, JoinRequest, JoinedCluster, Node},
    },
    config::{Config, DEFAULT_DATA_DIR, Flags, NodeRole},
    daemon::{self, Wish},
    observe::{self, chain},
};

/// Longest text that is read for a token.
const LONGEST: u64 = 1_024;
/// Longest wait until a node that was let in says that it is a member.
const ARRIVAL: Duration = Duration::from_secs(60);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// The appliance that is meant: that of a data directory, or as with every other command.
fn target(global: &super::args::Global, data_dir: Option<&Path>) -> Result<Target, Failure> {
    match data_dir {
        Some(dir) if dir != Path::new(DEFAULT_DATA_DIR) && global.connect.is_none() => {
            Ok(Target::Unix(dir.join("toft.sock")))
        }
        _ => context::target(global),
    }
}

fn config(args: (Option<&Path>, Option<&Path>)) -> Result<Config, Failure> {
    let (data_dir, config) = args;
    let flags = Flags { data_dir: data_dir.map(Into::into), config: config.map(Into::into), ..Flags::default() };
    Config::resolve(flags, &host_name()).map_err(misconfigured)
}

pub(super) async fn join(global: &super::args::Global, args: JoinArgs) -> Result<i32, Failure> {
    let address = args.url.as_deref().map(member_address).transpose();
    let address =
        address.map_err(|error| Failure::of(2, error.message.clone()).hint(error.hint.unwrap_or_default()))?;
    let client = Client::new(target(global, args.data_dir.as_deref())?);
    let (address, token) = match (&args.pin, address) {
        (Some(pin), address) => by_pin(pin, address, args.cluster.as_deref()).await?,
        (None, Some(address)) => (address, token(&args)?),
        (None, None) => return Err(Failure::of(2, "there is no address of a member")),
    };
    let turning = progress::spinner(format!("joining the cluster at {address}"));
    let runs = match client.get::<Cluster>("/api/v1/cluster").await {
        Ok(_) => true,
        Err(failure) if failure.is("nobody_answers") && global.connect.is_none() => false,
        Err(failure) => return Err(failure),
    };
    let joined = if runs {
        let request = JoinRequest {
            address,
            token: token.to_string(),
            name: args.name.clone(),
            role: args.role,
            labels: args.labels.iter().cloned().collect(),
            discard: args.discard,
        };
        client.post("/api/v1/cluster/join", &request).await?
    } else {
        join_at_rest(&args, &address, &token).await?
    };
    let started = runs || start_service(args.data_dir.as_deref());
    let arrived = if started {
        turning.set_message(format!("{} is let in and starts again", joined.name));
        arrival(&client, &joined).await
    } else {
        false
    };
    turning.finish_and_clear();
    if args.json {
        output::json(&joined)?;
    } else {
        tell(&joined);
        if !started {
            let dir = args.data_dir.map(|dir| format!(" --data-dir {}", dir.display())).unwrap_or_default();
            println!();
            println!("Start it: sudo toft up{dir}");
        } else if arrived {
            println!();
            println!("`toft node ls` shows all nodes, here and there.");
        }
    }
    if started && !arrived {
        return Err(Failure::of(1, "this node was let in, but has not come up as a member yet")
            .hint("its log says why; `toft cluster status` shows when it is there"));
    }
    Ok(0)
}

fn tell(joined: &JoinedCluster) {
    println!("{} is a member of the cluster now.", joined.name);
    println!();
    let labels: Vec<String> = joined.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let lines = [
        ("Role", joined.role.clone()),
        ("Address", joined.address.clone()),
        ("Labels", labels.join(", ")),
        ("Joined through", format!("{} at {}", joined.through, joined.through_address)),
        ("Cluster", joined.cluster.clone()),
    ];
    for (key, value) in lines.into_iter().filter(|(_, value)| !value.is_empty()) {
        println!("{key:14}   {}", output::harmless(&value));
    }
}

/// Address and token of the member that shows this PIN.
async fn by_pin(
    pin: &str,
    address: Option<String>,
    cluster: Option<&str>,
) -> Result<(String, Zeroizing<String>), Failure> {
    let pin: daemon::Pin = pin.parse().map_err(|error: daemon::NoPin| Failure::of(2, error.to_string()))?;
    let turning = progress::spinner("looking for the cluster that shows this PIN".to_owned());
    let found = daemon::find(&pin, address, cluster).await;
    turning.finish_and_clear();
    let (address, token) = found.map_err(|error| Failure::of(1, chain(&error)).hint(error.hint()))?;
    Ok((address, token.text()))
}

/// The token, from wherever it is given.
fn token(args: &JoinArgs) -> Result<Zeroizing<String>, Failure> {
    let unreadable = |what: &str, error: std::io::Error| Failure::of(1, format!("{what} cannot be read: {error}"));
    let text = match (&args.token, &args.token_file) {
        (Some(text), _) => Zeroizing::new(text.clone()),
        (None, Some(path)) => {
            let mut text = Zeroizing::new(String::with_capacity(LONGEST as usize));
            let read = if path == Path::new("-") {
                std::io::stdin().lock().take(LONGEST).read_to_string(&mut text)
            } else {
                std::fs::File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text))
            };
            read.map_err(|error| unreadable(&format!("`{}`", path.display()), error))?;
            text
        }
        (None, None) if prompt::possible() => Zeroizing::new(prompt::secret("token")?),
        (None, None) => {
            return Err(Failure::of(2, "there is no token, and nobody can be asked")
                .hint("`toft token create` on a member prints one; give it with --token-file, or TOFT_TOKEN"));
        }
    };
    Ok(Zeroizing::new(text.trim().to_owned()))
}

/// Joins where no daemon runs.
async fn join_at_rest(args: &JoinArgs, address: &str, token: &str) -> Result<JoinedCluster, Failure> {
    let config = config((args.data_dir.as_deref(), args.config.as_deref()))?;
    root_only()?;
    observe::init_logging("warn", false);
    let token = token.parse().map_err(|error: daemon::NoToken| Failure::of(2, error.to_string()))?;
    let wish = Wish {
        address: address.to_owned(),
        token,
        name: args.name.clone(),
        role: args.role.map(|role| match role {
            MemberRole::Server => NodeRole::Server,
            MemberRole::Witness => NodeRole::Witness,
        }),
        labels: args.labels.iter().cloned().collect(),
        discard: args.discard,
    };
    let joined = daemon::join(&config, wish).await?;
    Ok(JoinedCluster {
        cluster: joined.identity.cluster_id.to_string(),
        member: joined.identity.member_id,
        name: joined.name.to_string(),
        role: joined.role.as_str().to_owned(),
        address: joined.address,
        labels: joined.labels,
        through: joined.through.0,
        through_address: joined.through.1,
    })
}

/// Starts the machine's own appliance where systemd keeps it; whether it did.
fn start_service(data_dir: Option<&Path>) -> bool {
    if data_dir.is_some_and(|dir| dir != Path::new(DEFAULT_DATA_DIR)) || !Path::new("/run/systemd/system").exists() {
        return false;
    }
    let mut command = Command::new("systemctl");
    command.args(["enable", "--now", "--quiet", "toft.service"]).stdin(std::process::Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Waits until the node answers as a member that the cluster knows.
async fn arrival(client: &Client, joined: &JoinedCluster) -> bool {
    let deadline = Instant::now() + ARRIVAL;
    while Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
        let Ok(cluster) = client.get::<Cluster>("/api/v1/cluster").await else { continue };
        let is_in = cluster.id == joined.cluster
            && cluster.leader.is_some()
            && cluster.members.iter().any(|member| member.id == joined.member);
        if is_in && joined.role == "witness" {
            return true;
        }
        if is_in && client.get::<Node>(&format!("/api/v1/nodes/{}", joined.name)).await.is_ok() {
            return true;
        }
    }
    false
}

pub(super) async fn leave(global: &super::args::Global, args: LeaveArgs) -> Result<i32, Failure> {
    let client = Client::new(target(global, args.data_dir.as_deref())?);
    let cluster = match client.get::<Cluster>("/api/v1/cluster").await {
        Ok(cluster) => cluster,
        Err(failure) if failure.is("nobody_answers") && global.connect.is_none() => {
            return leave_at_rest(&args, failure);
        }
        Err(failure) => return Err(failure),
    };
    let me = cluster.members.iter().find(|member| member.id == cluster.this).map(|member| member.name.clone());
    if cluster.members.len() < 2 && me.is_some() && !cluster.removed {
        return Err(Failure::of(1, "this node is in no cluster with others"));
    }
    agree(
        &args,
        "This node leaves the cluster. Its services move to other nodes; then it is an empty appliance of its own.",
    )?;
    let server = cluster.members.iter().any(|member| member.id == cluster.this && member.role == "server");
    if let Some(name) = me.filter(|_| server && !args.force && !cluster.removed) {
        let name = name.parse().map_err(|_| Failure::of(1, "this node has no name"))?;
        nodes::drain(&client, DrainArgs { name, timeout: None, no_wait: false }).await?;
    }
    let path = if args.force { "/api/v1/cluster/leave?force=true" } else { "/api/v1/cluster/leave" };
    client.post_quietly(path).await?;
    let deadline = Instant::now() + ARRIVAL;
    while Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
        if client.get::<Cluster>("/api/v1/cluster").await.is_ok_and(|now| now.id != cluster.id) {
            println!("This node has left the cluster and is an empty appliance of its own.");
            return Ok(0);
        }
    }
    Err(Failure::of(1, "this node has left, but has not come up again yet").hint("its log says why"))
}

/// Makes a node that does not run an appliance of its own.
fn leave_at_rest(args: &LeaveArgs, nobody: Failure) -> Result<i32, Failure> {
    if !args.force {
        return Err(
            nobody.hint("start it, so that its services can move; with --force it forgets the cluster as it is")
        );
    }
    let config = config((args.data_dir.as_deref(), args.config.as_deref()))?;
    root_only()?;
    observe::init_logging("warn", false);
    agree(
        args,
        "This node forgets its cluster, which still knows it: `toft node rm` there. What it runs ends when it starts.",
    )?;
    daemon::leave_alone(&config)?;
    println!("This node is an empty appliance of its own; `toft up` starts it.");
    Ok(0)
}

fn agree(args: &LeaveArgs, what: &str) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    if !prompt::possible() {
        return Err(
            Failure::of(1, "nobody is there to be asked").hint("nothing was changed; --yes goes on without asking")
        );
    }
    if prompt::confirm(&format!("{what} Go on?"))? { Ok(()) } else { Err(Failure::of(1, "nothing was changed")) }
}
