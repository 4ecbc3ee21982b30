//! `rebalance`: shows a plan of moves, asks, has it carried out, and waits for its end.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use toft_model::schedule::{PlannedMove, Rebalance, Remaining};
use tokio::time::Instant;

use super::{
    Failure,
    client::{Client, query_value},
    output, progress, prompt,
    rebalance_args::RebalanceArgs,
    workloads::all,
};
use crate::api::types::{Event, Instance, Page, RebalancePlan, RebalanceRequest};

const PATH: &str = "/api/v1/rebalance";
/// Time between two looks at what is still to be moved.
const LOOK: Duration = Duration::from_millis(500);

pub(super) async fn rebalance(client: &Client, args: RebalanceArgs) -> Result<i32, Failure> {
    if args.stop {
        client.delete(PATH).await?;
        return Ok(0);
    }
    let most = args.max_moves.map_or_else(String::new, |most| format!("?max_moves={most}"));
    let plan: RebalancePlan = client.get(&format!("{PATH}/plan{most}")).await?;
    if args.json {
        output::json(&plan)?;
    } else {
        print!("{}", told(&plan.rebalance));
    }
    let moves = &plan.rebalance.moves;
    if args.dry_run || moves.is_empty() {
        return Ok(0);
    }
    if !args.yes {
        if !prompt::possible() {
            let why = format!("nobody can be asked whether {} shall move", count(moves.len()));
            return Err(Failure::of(1, why).hint("say so with --yes, or only look with --dry-run"));
        }
        if !prompt::confirm(&format!("Move {}?", count(moves.len())))? {
            return Err(Failure::of(1, "nothing was moved"));
        }
    }
    let request = RebalanceRequest { plan: plan.plan.clone(), max_moves: args.max_moves };
    let mut left: Vec<Remaining> = client.post(PATH, &request).await?;
    if args.no_wait {
        return Ok(0);
    }
    let deadline = args.timeout.map(|ms| Instant::now() + Duration::from_millis(ms));
    let turning = progress::spinner("moving");
    let mut known = BTreeMap::<String, String>::new();
    loop {
        let lines: BTreeMap<String, String> = left.iter().map(|one| (one.instance.clone(), one.why.clone())).collect();
        turning.suspend(|| tell(&known, &lines));
        turning.set_message(format!("moving, {} left", lines.len()));
        if lines.is_empty() {
            turning.finish_and_clear();
            return outcome(client, moves).await;
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            turning.finish_and_clear();
            let why = format!("{} did not move yet", count(lines.len()));
            return Err(Failure::of(1, why).hint("the moves go on; `toft rebalance --stop` ends them"));
        }
        known = lines;
        tokio::time::sleep(LOOK).await;
        left = client.get(PATH).await?;
    }
}

/// Says on stderr what is new since the last look.
fn tell(known: &BTreeMap<String, String>, now: &BTreeMap<String, String>) {
    for done in known.keys().filter(|instance| !now.contains_key(*instance)) {
        eprintln!("{done}: done");
    }
    for (instance, line) in now.iter().filter(|(instance, line)| known.get(*instance) != Some(line)) {
        eprintln!("{instance}: {}", output::harmless(line));
    }
}

/// Says of each instance that is not where it was to be why, and gives the exit code.
async fn outcome(client: &Client, moves: &[PlannedMove]) -> Result<i32, Failure> {
    let instances: Vec<Instance> = all(client, "/api/v1/instances").await?;
    let places: HashMap<&str, &str> =
        instances.iter().map(|instance| (instance.name.as_str(), instance.node.as_str())).collect();
    let unmoved: Vec<&PlannedMove> =
        moves.iter().filter(|one| places.get(one.instance.as_str()) != Some(&one.to.as_str())).collect();
    for one in &unmoved {
        let subject = query_value(&format!("instance/{}", one.instance));
        let events: Page<Event> = client.get(&format!("/api/v1/events?limit=20&subject={subject}")).await?;
        let why = events.items.into_iter().find(|event| event.message.starts_with("stays on node"));
        let why = why.map_or_else(|| format!("is not on {}", one.to), |event| event.message);
        eprintln!("{}: {}", one.instance, output::harmless(&why));
    }
    if unmoved.is_empty() {
        return Ok(0);
    }
    Err(Failure::of(1, format!("{} of {} were not moved", unmoved.len(), count(moves.len())))
        .hint("`toft rebalance` makes a plan of the cluster as it is now"))
}

fn count(instances: usize) -> String {
    if instances == 1 { "1 instance".to_owned() } else { format!("{instances} instances") }
}

/// The plan as people read it.
fn told(plan: &Rebalance) -> String {
    let mut text = String::new();
    if plan.moves.is_empty() {
        text.push_str("no instance would be better off on another node\n");
    } else {
        let rows = plan.moves.iter().map(|one| {
            vec![
                one.instance.clone(),
                one.from.clone(),
                one.to.clone(),
                format!("{:+.1}", one.points),
                if plan.before.cards == 0 { String::new() } else { format!("{:+.2}", one.cards + 0.0) },
                one.note.as_deref().map(output::harmless).unwrap_or_default(),
            ]
        });
        text.push_str(&output::table_text(&["INSTANCE", "FROM", "TO", "POINTS", "CARDS", "NOTE"], rows));
    }
    if plan.before.cards > 0 {
        text.push('\n');
        let row = |name: &str, before: f64, after: f64| {
            vec![
                name.to_owned(),
                format!("{before:.2}"),
                format!("{after:.2}"),
                format!("{:+.2}", after - before + 0.0),
            ]
        };
        let (before, after) = (&plan.before, &plan.after);
        let rows = [
            row("idle", before.idle, after.idle),
            row("of them usable", before.usable, after.usable),
            row("of them fragmented", before.idle - before.usable, after.idle - after.usable),
        ];
        text.push_str(&output::table_text(&[&format!("OF {} CARDS", before.cards), "BEFORE", "AFTER", "CHANGE"], rows));
        if plan.points_gained.abs() >= 0.05 {
            text.push_str(&format!(
                "{:+.1} % of all cards can then be given to requests as they usually are\n",
                plan.points_gained
            ));
        }
    }
    if !plan.fits.is_empty() {
        text.push_str(&format!("then has a place, and waits now: {}\n", plan.fits.join(", ")));
    }
    if !plan.stay.is_empty() {
        text.push('\n');
        let rows = plan.stay.iter().map(|one| vec![one.instances.to_string(), one.why.clone()]);
        text.push_str(&output::table_text(&["STAY", "BECAUSE"], rows));
    }
    if plan.unseen > 0 {
        text.push_str(&format!("{} were not looked at, because there are so many\n", count(plan.unseen)));
    }
    text
}

#[cfg(test)]
mod tests {
    use toft_model::schedule::{CardTotals, Staying};

    use super::*;

    #[test]
    fn a_plan_is_told_as_tables() {
        let moves = vec![PlannedMove {
            instance: "web-0".into(),
            from: "a".into(),
            to: "b".into(),
            points: 61.26,
            cards: 0.5,
            note: Some("port 8080 will be on b".into()),
        }];
        let plan = Rebalance {
            moves,
            before: CardTotals { cards: 4, idle: 2.0, usable: 1.0 },
            after: CardTotals { cards: 4, idle: 2.0, usable: 1.5 },
            points_gained: 12.5,
            fits: vec!["big".into()],
            stay: vec![Staying { instances: 3, why: "jobs are left to end".into() }],
            unseen: 0,
        };
        let wanted = "
        INSTANCE   FROM   TO   POINTS   CARDS   NOTE
        web-0      a      b    +61.3    +0.50   port 8080 will be on b

        OF 4 CARDS           BEFORE   AFTER   CHANGE
        idle                 2.00     2.00    +0.00
        of them usable       1.00     1.50    +0.50
        of them fragmented   1.00     0.50    -0.50
        +12.5 % of all cards can then be given to requests as they usually are
        then has a place, and waits now: big

        STAY   BECAUSE
        3      jobs are left to end
";
        let wanted: String = wanted.lines().skip(1).map(|line| format!("{}\n", line.trim_start())).collect();
        assert_eq!(told(&plan), wanted);
        let none = Rebalance::default();
        assert_eq!(told(&none), "no instance would be better off on another node\n");
    }
}
