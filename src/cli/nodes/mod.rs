//! `matrix nodes`: list them, admit a candidate by its host key, cordon, drain, remove one.

mod drain;

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use http::Method;

use crate::{
    api::nodes::{AdmitBody, NodeView, NodesView, StateView, besides},
    inventory::{Engine, HostKey},
    model::{NodeName, Timestamp},
};

use super::{Client, Exit, Failure, Global, Printer, block_on};

/// Options of `matrix nodes`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List nodes and candidates (the same as no command)
    List,
    /// Make a candidate a node, pinning its SSH host key; accept a node's new key
    Admit(AdmitArgs),
    /// Place nothing new on a node; what runs there stays
    Cordon {
        /// The node
        node: NodeName,
    },
    /// Move everything that can move to other nodes, without loss, and wait until it is gone
    Drain(drain::DrainArgs),
    /// End a drain or a cordon: instances are placed there again
    #[command(alias = "uncordon")]
    Undrain {
        /// The node
        node: NodeName,
    },
    /// Take an empty or lost node out of the cloud; no policy admits it again, only `admit` does
    Remove {
        /// The node
        node: NodeName,
        /// Remove a lost node that ran something: that is forgotten, and placed elsewhere
        #[arg(long)]
        force: bool,
    },
    /// Unpin a node's key, whatever it runs; its containers are left alone
    Forget {
        /// The node
        node: NodeName,
    },
}

#[derive(Debug, clap::Args)]
struct AdmitArgs {
    /// The machine
    node: NodeName,
    /// Admit it only if its key has this fingerprint, without asking
    #[arg(long, value_name = "SHA256:…")]
    fingerprint: Option<String>,
    /// Admit it with whatever key it offers, without asking
    #[arg(long, short, conflicts_with = "fingerprint")]
    yes: bool,
}

pub(super) fn run(args: Args, global: &Global, out: &Printer) -> Result<(), Failure> {
    let client = Client::new(global);
    match args.command {
        None | Some(Command::List) => list(&client, out),
        Some(Command::Admit(args)) => admit(&args, &client, out),
        Some(Command::Cordon { node }) => drain::cordon(&node, &client, out),
        Some(Command::Drain(args)) => drain::drain(&args, &client, out),
        Some(Command::Undrain { node }) => drain::undrain(&node, &client, out),
        Some(Command::Remove { node, force }) => drain::remove(&node, force, &client, out),
        Some(Command::Forget { node }) => forget(&node, &client, out),
    }
}

fn list(client: &Client, out: &Printer) -> Result<(), Failure> {
    let view: NodesView = block_on(client.get("/v1/nodes"))?;
    if out.is_json() {
        out.json(&view);
        return Ok(());
    }
    for problem in &view.problems {
        out.warning(&format!("leases: {problem}"));
    }
    if view.nodes.is_empty() {
        out.line("no nodes yet: none has a lease, none is named in matrix.toml");
        return Ok(());
    }
    let now = Timestamp::now();
    out.table(
        &["NODE", "ADDRESS", "MAC", "STATE", "SINCE", "LEASE", "ENGINE", "CPUS", "MEMORY", "DISK FREE", "INSTANCES"],
        view.nodes.iter().map(|node| row(node, now)),
    );
    for node in &view.nodes {
        if let Some(trouble) = &node.trouble {
            out.line(format!("{}: {trouble}", node.name));
        } else if let (StateView::Candidate, Some(key)) = (node.state, &node.offered) {
            out.line(format!("{}: offers {key}; matrix nodes admit {}", node.name, node.name));
        }
    }
    Ok(())
}

fn row(node: &NodeView, now: Timestamp) -> Vec<String> {
    let of_engine = |show: fn(&Engine) -> String| node.engine.as_ref().map_or_else(none, show);
    let state = match node.state {
        StateView::Candidate => "candidate",
        StateView::Refused => "refused",
        StateView::Unknown => "unknown",
        StateView::Ready => "ready",
        StateView::Suspect => "suspect",
        StateView::Lost => "lost",
    };
    vec![
        node.name.to_string(),
        node.address.to_string(),
        node.mac.map_or_else(none, |mac| mac.to_string()),
        [vec![state], besides(node.intake, node.disk_full, node.instances)].concat().join(", "),
        span(node.since, now),
        node.lease_expires.map_or_else(none, |end| if end <= now { "expired".to_owned() } else { span(now, end) }),
        of_engine(|e| e.version.clone()),
        of_engine(|e| e.cpus.to_string()),
        of_engine(|e| gib(e.memory.bytes())),
        of_engine(|e| match (e.disk_free, e.disk_total) {
            (Some(free), Some(total)) => format!("{} of {}", gib(free), gib(total)),
            _ => none(),
        }),
        node.instances.to_string(),
    ]
}

fn none() -> String {
    "-".to_owned()
}

/// From `from` to `to` in its largest unit: `45s`, `12m`, `11h`, `3d`.
fn span(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.as_second().saturating_sub(from.as_second()).max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// `59.2G`, units of 1024.
fn gib(bytes: u64) -> String {
    let tenths = bytes / (1 << 30) * 10 + bytes % (1 << 30) * 10 / (1 << 30);
    format!("{}.{}G", tenths / 10, tenths % 10)
}

fn admit(args: &AdmitArgs, client: &Client, out: &Printer) -> Result<(), Failure> {
    let node = &args.node;
    let fingerprint = match &args.fingerprint {
        Some(fingerprint) => Some(fingerprint.clone()),
        None => agreed(args, client, out)?,
    };
    let Some(fingerprint) = fingerprint else { return Err(Failure::failed(format!("{node} was not admitted"))) };
    let body = AdmitBody { fingerprint: Some(fingerprint) };
    let key: HostKey = block_on(client.send(Method::POST, &format!("/v1/nodes/{node}/admit"), &body))?;
    out.line(format!("{node} is admitted with {key}"));
    if out.is_json() {
        out.json(&key);
    }
    Ok(())
}

/// The fingerprint of the key the machine offers, if the user agrees to it.
fn agreed(args: &AdmitArgs, client: &Client, out: &Printer) -> Result<Option<String>, Failure> {
    let node = &args.node;
    let asks = !args.yes;
    if asks && !std::io::stdin().is_terminal() {
        return Err(Failure::invalid(format!("cannot ask whether {node}'s key is right: this is no terminal")).hint(
            "give --fingerprint SHA256:… (on the node: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), or --yes",
        ));
    }
    let (view, offered): (NodesView, HostKey) = block_on(async {
        let view = client.get("/v1/nodes").await?;
        Ok((view, client.send(Method::POST, &format!("/v1/nodes/{node}/scan"), &()).await?))
    })?;
    let shown = view.nodes.into_iter().find(|shown| shown.name == *node);
    let pinned = shown.as_ref().and_then(|node| node.key.as_ref());
    out.line(format!("{node} offers {offered}"));
    if let Some(pinned) = pinned.filter(|pinned| pinned.fingerprint != offered.fingerprint) {
        out.warning(&format!("{node} was admitted with another key: {pinned}"));
    }
    if asks {
        out.line("on the node itself: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub");
        _ = write!(std::io::stderr(), "admit {node} with this key? [y/N] ");
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer).map_err(|e| Failure::from_error(Exit::Failed, &e))?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(None);
        }
    }
    Ok(Some(offered.fingerprint))
}

fn forget(node: &NodeName, client: &Client, out: &Printer) -> Result<(), Failure> {
    block_on(client.send::<()>(Method::DELETE, &format!("/v1/nodes/{node}"), &()))?;
    out.line(format!("{node} is forgotten; its containers were left alone"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_are_short() {
        let at = |seconds| Timestamp::from_second(seconds).expect("a moment");
        for (seconds, shown) in [(-5, "0s"), (59, "59s"), (60, "1m"), (7199, "1h"), (43_200, "12h"), (200_000, "2d")] {
            assert_eq!(span(at(1000), at(1000 + seconds)), shown);
        }
        assert_eq!((gib(3 << 29).as_str(), gib(61_892_046_848).as_str(), gib(0).as_str()), ("1.5G", "57.6G", "0.0G"));
    }
}
