//! `matrix status`: applications, instances, where they run and whether they serve.

use crate::{
    api::{
        nodes::besides,
        views::{InstanceState, InstanceView, StatusView},
    },
    model::{ImageRef, Timestamp},
};

use super::{Client, Failure, Global, Printer, block_on};

/// Options of `matrix status`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Wait until nothing is under way, at most this many seconds; then exit 1 if something does not serve
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
}

pub(super) fn run(args: Args, global: &Global, out: &Printer) -> Result<(), Failure> {
    let client = Client::new(global);
    let status = block_on(async {
        let asked = std::time::Instant::now();
        loop {
            let status: StatusView = client.get("/v1/status").await?;
            let patience = args.wait.map(std::time::Duration::from_secs);
            if patience.is_none_or(|patience| serves(&status) || asked.elapsed() >= patience) {
                return Ok(status);
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    })?;
    if out.is_json() {
        out.json(&status);
    } else {
        show(&status, out);
    }
    if args.wait.is_some() && !serves(&status) {
        return Err(Failure::failed("not everything serves").hint("the table says what does not, and why"));
    }
    Ok(())
}

fn serves(status: &StatusView) -> bool {
    status.settled && status.applications.values().all(|app| app.serving == app.wanted)
}

fn show(status: &StatusView, out: &Printer) {
    let release = match &status.release {
        None => "no release yet".to_owned(),
        Some(r) => {
            let message = r.message.as_ref().map(|m| format!(": {m}")).unwrap_or_default();
            format!("release {} by {}, {} ago{message}", r.number, r.by, age(Some(r.created)))
        }
    };
    out.line(format!("cloud {}, {release}{}", status.cloud, if status.settled { "" } else { ", under way" }));
    if let Some(next) = &status.on_its_way {
        out.line(format!("release {} is on its way: {}", next.number, next.step));
    }
    for problem in &status.problems {
        out.warning(problem);
    }
    let nodes: Vec<_> = status
        .nodes
        .iter()
        .map(|(name, node)| {
            let besides = besides(node.intake, node.disk_full, node.instances);
            let state = [vec![node.state.as_str()], besides].concat().join(", ");
            vec![name.to_string(), node.address.to_string(), state, node.instances.to_string()]
        })
        .collect();
    out.line("");
    out.table(&["NODE", "ADDRESS", "STATE", "INSTANCES"], nodes);
    if status.applications.is_empty() {
        return;
    }
    let mut rows = Vec::new();
    let mut reasons = Vec::new();
    for app in status.applications.values() {
        for instance in &app.instances {
            rows.push(row(instance, &app.routes));
            reasons.extend(instance.why.as_ref().map(|why| format!("{}: {why}", instance.instance)));
        }
    }
    out.line("");
    out.table(&["INSTANCE", "STATE", "NODE", "ADDRESS", "IMAGE", "AGE", "ROUTE"], rows);
    for (name, app) in &status.applications {
        if app.wanted == 0 && app.instances.is_empty() {
            out.line(format!("{name}: no instance wanted"));
        }
    }
    for reason in reasons {
        out.line(reason);
    }
}

fn row(instance: &InstanceView, routes: &[String]) -> Vec<String> {
    let dash = || "-".to_owned();
    let address = match (instance.address, instance.port) {
        (Some(address), Some(port)) => std::net::SocketAddr::new(address, port.get()).to_string(),
        _ => dash(),
    };
    vec![
        instance.instance.to_string(),
        state(instance.state).to_owned(),
        instance.node.as_ref().map_or_else(dash, ToString::to_string),
        address,
        instance.image.as_deref().map_or_else(dash, ImageRef::brief),
        age(instance.created),
        if routes.is_empty() { dash() } else { routes.join(" ") },
    ]
}

fn state(state: InstanceState) -> &'static str {
    match state {
        InstanceState::Serving => "serving",
        InstanceState::Unhealthy => "unhealthy",
        InstanceState::Starting => "starting",
        InstanceState::Failed => "failed",
        InstanceState::Waiting => "waiting",
        InstanceState::Unreachable => "unreachable",
        InstanceState::Unplaced => "unplaced",
        InstanceState::Leaving => "leaving",
    }
}

/// `12s`, `5m`, `3h`, `2d`.
pub(super) fn age(since: Option<Timestamp>) -> String {
    let Some(since) = since else { return "-".to_owned() };
    match (Timestamp::now().as_second() - since.as_second()).max(0) {
        s if s < 120 => format!("{s}s"),
        s if s < 7200 => format!("{}m", s / 60),
        s if s < 172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86400),
    }
}
