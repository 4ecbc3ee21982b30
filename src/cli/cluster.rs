//! `cluster status`, `cluster recover`.

use super::{
    Failure,
    args::RecoverArgs,
    client::Client,
    daemon::{misconfigured, root_only},
    output, prompt,
};
use crate::{
    agent::host::host_name,
    api::types::{Cluster, Member},
    config::Config,
    daemon::{self, Account},
    observe,
};

pub(super) async fn status(client: &Client, json: bool) -> Result<i32, Failure> {
    let cluster: Cluster = client.get("/api/v1/cluster").await?;
    if json {
        output::json(&cluster)?;
        return Ok(0);
    }
    let row = |member: &Member| {
        let job = match (member.leads, member.votes) {
            (true, _) => "leads",
            (false, true) => "votes",
            (false, false) => "learns",
        };
        vec![
            member.name.clone(),
            member.id.to_string(),
            member.role.clone(),
            job.to_owned(),
            member.answers.map_or("-", |answers| if answers { "yes" } else { "no" }).to_owned(),
            member.log_end.map_or_else(|| "-".to_owned(), |end| end.to_string()),
            member.address.clone(),
            if member.behind { format!("{} (oldest)", member.version) } else { member.version.clone() },
        ]
    };
    output::table(
        &["MEMBER", "ID", "ROLE", "JOB", "ANSWERS", "LOG", "ADDRESS", "TOFT"],
        cluster.members.iter().map(row),
    );
    println!();
    println!(
        "cluster {}, term {}; this node has applied {} of {}",
        cluster.id, cluster.term, cluster.applied, cluster.log_end
    );
    if cluster.removed {
        println!("This node was removed from the cluster. Its containers go on; nothing can be changed.");
        println!("hint: `toft leave --force` ends them and makes it an appliance of its own, which can join again");
        return Ok(1);
    }
    if cluster.leader.is_none() {
        println!("No member leads: the members that answer are no majority. Containers go on; nothing can be changed.");
        println!(
            "hint: start the missing members; if they are gone for good, `toft cluster recover` on one that is left"
        );
        return Ok(1);
    }
    Ok(0)
}

pub(super) fn recover(args: RecoverArgs) -> Result<i32, Failure> {
    let config = Config::resolve(args.appliance.flags(), &host_name()).map_err(misconfigured)?;
    root_only()?;
    observe::init_logging("warn", false);
    let mut refusal = None;
    let recovered = daemon::recover(&config, &mut |account| {
        tell(account);
        if args.yes {
            return true;
        }
        let answer = if prompt::possible() {
            prompt::confirm("Go on alone?")
        } else {
            Err(Failure::of(1, "nobody is there to be asked").hint("nothing was changed; --yes goes on without asking"))
        };
        answer.unwrap_or_else(|failure| {
            refusal = Some(failure);
            false
        })
    });
    let Some(account) = recovered? else {
        return Err(refusal.unwrap_or_else(|| Failure::of(1, "nothing was changed")));
    };
    if let Some(path) = account.log_set_aside {
        println!("the log that could not be used is kept as {}", path.display());
    }
    println!("this node is a cluster of its own now; `toft up` starts it, and the others have to join it again");
    Ok(0)
}

fn tell(account: &Account) {
    if account.log_end == 0 {
        eprintln!(
            "The log is gone or damaged. The state, which had applied {} entries, is all there is:",
            account.applied
        );
        eprintln!("what was acknowledged after that is lost unless another member has it.");
    } else {
        eprintln!(
            "This node has the log up to entry {} ({} applied). All of it is kept.",
            account.log_end, account.applied
        );
        eprintln!("What the other members agreed upon after that, while this one was away, would be lost.");
    }
    for member in &account.left_behind {
        eprintln!("  left behind: {} at {}", member.name, member.address);
    }
    if !account.left_behind.is_empty() {
        eprintln!("Make sure that they are gone or stopped: two clusters that both go on would run everything twice.");
    }
}
