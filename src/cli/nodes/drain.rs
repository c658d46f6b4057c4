//! `matrix nodes cordon`, `undrain`, `remove` and `drain`: a drain is followed until the node is empty of what can move.
//!
//! Who hangs up stops watching, not the drain.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use http::Method;

use crate::{
    api::OperateBody,
    cli::{Client, Exit, Failure, Printer, block_on, deploy::user},
    manager::{Drain, Leaving},
    model::{InstanceId, NodeName},
    plan::value,
};

#[derive(Debug, clap::Args)]
pub(super) struct DrainArgs {
    /// The node
    node: NodeName,
    /// How long to wait until it is empty; it is drained on after that
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = time)]
    deadline: Duration,
    /// Show what would move, and change nothing
    #[arg(long)]
    dry_run: bool,
}

fn time(text: &str) -> Result<Duration, String> {
    value::milliseconds(text).map(Duration::from_millis).ok_or_else(|| "is a time, as in 5m or 90s".to_owned())
}

pub(super) fn cordon(node: &NodeName, client: &Client, out: &Printer) -> Result<(), Failure> {
    let new: bool = say(node, "cordon", false, client)?;
    out.line(if new {
        format!("{node} is cordoned: nothing new is placed there, what runs there stays")
    } else {
        format!("{node} takes nothing new already")
    });
    Ok(())
}

pub(super) fn undrain(node: &NodeName, client: &Client, out: &Printer) -> Result<(), Failure> {
    let new: bool = say(node, "undrain", false, client)?;
    out.line(format!("{node} takes instances{}", if new { " again" } else { " already" }));
    Ok(())
}

pub(super) fn remove(node: &NodeName, force: bool, client: &Client, out: &Printer) -> Result<(), Failure> {
    let body = OperateBody { by: user(), dry_run: false, force };
    let new: bool = block_on(client.send(Method::POST, &format!("/v1/nodes/{node}/remove"), &body))?;
    out.line(format!(
        "{node} is {}; matrix nodes admit {node} takes it back",
        if new { "removed" } else { "removed already" }
    ));
    Ok(())
}

fn say<T: serde::de::DeserializeOwned>(
    node: &NodeName,
    what: &str,
    dry_run: bool,
    client: &Client,
) -> Result<T, Failure> {
    let body = OperateBody { by: user(), dry_run, force: false };
    block_on(client.send(Method::POST, &format!("/v1/nodes/{node}/{what}"), &body))
}

pub(super) fn drain(args: &DrainArgs, client: &Client, out: &Printer) -> Result<(), Failure> {
    let node = &args.node;
    let begun = Instant::now();
    let first: Drain = say(node, "drain", args.dry_run, client)?;
    if args.dry_run {
        preview(&first, out);
        return Ok(());
    }
    if !first.pinned.is_empty() {
        out.warning(&format!("{} stay and run on: the plan pins them to {node}", list(&first.pinned)));
    }
    let drain = block_on(follow(args, first, begun, client, out)).map_err(|failure| match failure.exit {
        Exit::Interrupted => failure.hint(format!("{node} is drained on; `matrix nodes undrain {node}` ends that")),
        _ => failure,
    })?;
    if out.is_json() {
        out.json(&drain);
    }
    if drain.leaving.is_empty() {
        out.line(match drain.pinned.len() {
            0 => format!("{node} is empty after {:.1} s; nothing is placed there", begun.elapsed().as_secs_f64()),
            _ => format!("{node} runs only what is pinned to it; nothing is placed there"),
        });
        return Ok(());
    }
    let left: Vec<_> = drain.leaving.iter().map(|left| format!("  {}", told(left))).collect();
    let deadline = value::duration(u64::try_from(args.deadline.as_millis()).unwrap_or(u64::MAX));
    let hint = format!("it is drained on: the same command follows it again, `matrix nodes undrain {node}` ends it");
    Err(Failure::failed(format!("{node} is not empty after {deadline}:\n{}", left.join("\n"))).hint(hint))
}

fn preview(drain: &Drain, out: &Printer) {
    if out.is_json() {
        out.json(drain);
    }
    for left in &drain.leaving {
        out.line(match &left.to {
            Some(to) => format!("> move {} to {to}", left.instance),
            None => format!("! no other place for {}", told(left)),
        });
    }
    for pinned in &drain.pinned {
        out.line(format!("= {pinned} stays (the plan pins it to {})", drain.node));
    }
    out.line(format!("{} instances would move; nothing was changed", drain.leaving.len()));
}

/// Asks again and again until nothing is left that can move, or the deadline is over.
async fn follow(
    args: &DrainArgs,
    mut now: Drain,
    begun: Instant,
    client: &Client,
    out: &Printer,
) -> Result<Drain, Failure> {
    let mut before: BTreeMap<InstanceId, Leaving> = BTreeMap::new();
    loop {
        let left: BTreeMap<_, _> = now.leaving.iter().map(|left| (left.instance.clone(), left.clone())).collect();
        for (instance, gone) in before.iter().filter(|(id, _)| !left.contains_key(*id)) {
            let to = gone.to.as_ref().map(|to| format!(" to {to}")).unwrap_or_default();
            out.line(format!("  {instance} moved{to}"));
        }
        for (id, left) in left.iter().filter(|(_, left)| left.why.is_some()) {
            if before.get(id).is_none_or(|before| before.why != left.why) {
                out.line(format!("  {}", told(left)));
            }
        }
        before = left;
        if before.is_empty() || begun.elapsed() >= args.deadline {
            return Ok(now);
        }
        let rest = args.deadline.saturating_sub(begun.elapsed());
        tokio::time::sleep(rest.min(Duration::from_millis(150))).await;
        now = client.get(&format!("/v1/nodes/{}/drain", args.node)).await?;
    }
}

fn told(left: &Leaving) -> String {
    let to = left.to.as_ref().map(|to| format!(" (to {to})")).unwrap_or_default();
    match &left.why {
        Some(why) => format!("{}{to}: {why}", left.instance),
        None => format!("{}{to}: on its way", left.instance),
    }
}

fn list(ids: &[InstanceId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
