//! A plan as text: the normal TOML form, the same for equal plans.
//!
//! Image, place, port and path are always there; of the rest only what differs from the defaults.

use std::fmt::Write as _;

use super::{App, Check, Health, Pin, Placement, Plan, Restart, Update, check::default_health_path, defaults, value};
use crate::model::{AppName, NodeName, Port};

/// The plan as TOML. Reading it back gives an equal plan.
pub fn to_toml(plan: &Plan) -> String {
    let mut out = String::new();
    for (index, (name, app)) in plan.apps.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        // Writing to a string never fails.
        _ = write_app(&mut out, name, app);
    }
    out
}

/// A TOML string.
fn string(text: &str) -> String {
    // toml's own choice may span lines, which keys and inline tables may not.
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => _ = write!(out, "\\u{:04X}", c as u32),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn key(text: &str) -> String {
    let bare = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if bare { text.to_owned() } else { string(text) }
}

fn list<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| string(item.as_ref())).collect();
    format!("[{}]", items.join(", "))
}

/// A single value alone, several as a list.
fn one_or_list(items: &[String]) -> String {
    match items {
        [one] => string(one),
        many => list(many),
    }
}

fn write_app(out: &mut String, name: &AppName, app: &App) -> std::fmt::Result {
    writeln!(out, "[apps.{}]", key(name.as_str()))?;
    writeln!(out, "image = {}", string(&app.image.to_string()))?;
    write_placement(out, &app.placement)?;
    writeln!(out, "port = {}", app.port)?;
    write_routes(out, app)?;
    if let Some(words) = &app.command {
        writeln!(out, "command = {}", list(words))?;
    }
    if let Some(words) = &app.entrypoint {
        writeln!(out, "entrypoint = {}", list(words))?;
    }
    if !app.volumes.is_empty() {
        let volumes =
            app.volumes.iter().map(|v| format!("{}:{}{}", v.source, v.target, if v.read_only { ":ro" } else { "" }));
        writeln!(out, "volumes = {}", list(volumes))?;
    }
    if let Some(memory) = app.memory {
        writeln!(out, "memory = \"{memory}\"")?;
    }
    if let Some(cpus) = app.cpus {
        writeln!(out, "cpus = {cpus}")?;
    }
    if let Some(user) = &app.user {
        writeln!(out, "user = {}", string(user))?;
    }
    if let Some(dir) = &app.working_dir {
        writeln!(out, "working_dir = {}", string(dir))?;
    }
    write_health(out, app)?;
    match app.restart {
        Restart::Always => {}
        Restart::UnlessStopped => writeln!(out, "restart = \"unless-stopped\"")?,
        Restart::OnFailure => writeln!(out, "restart = \"on-failure\"")?,
        Restart::No => writeln!(out, "restart = \"no\"")?,
    }
    if let Some(seconds) = app.cache_seconds {
        writeln!(out, "cache = \"{}\"", seconds_text(seconds))?;
    }
    if app.idempotent {
        writeln!(out, "idempotent = true")?;
    }
    if app.drain_timeout_seconds != defaults::DRAIN_SECONDS {
        writeln!(out, "drain_timeout = \"{}\"", seconds_text(app.drain_timeout_seconds))?;
    }
    if app.stop_timeout_seconds != defaults::STOP_SECONDS {
        writeln!(out, "stop_timeout = \"{}\"", seconds_text(app.stop_timeout_seconds))?;
    }
    write_update(out, app.update)?;
    for (table, entries) in [("environment", &app.environment), ("labels", &app.labels)] {
        if !entries.is_empty() {
            writeln!(out, "\n[apps.{}.{table}]", key(name.as_str()))?;
            for (name, value) in entries {
                writeln!(out, "{} = {}", key(name), string(value))?;
            }
        }
    }
    Ok(())
}

fn write_update(out: &mut String, update: Update) -> std::fmt::Result {
    let usual = Update::default();
    let mut parts = Vec::new();
    if update.mode != usual.mode {
        parts.push(format!("mode = \"{}\"", update.mode.word()));
    }
    if update.batch != usual.batch {
        parts.push(format!("batch = {}", update.batch));
    }
    if update.pause_seconds != usual.pause_seconds {
        parts.push(format!("pause = \"{}\"", seconds_text(update.pause_seconds)));
    }
    if update.watch_seconds != usual.watch_seconds {
        parts.push(format!("watch = \"{}\"", seconds_text(update.watch_seconds)));
    }
    let (canary, usual) = (update.canary, usual.canary);
    if canary.share != usual.share {
        parts.push(format!("share = {}", canary.share));
    }
    if canary.time_seconds != usual.time_seconds {
        parts.push(format!("time = \"{}\"", seconds_text(canary.time_seconds)));
    }
    if canary.errors != usual.errors {
        parts.push(format!("errors = \"{}\"", canary.errors));
    }
    if let Some(ms) = canary.latency_ms {
        parts.push(format!("latency = \"{}\"", value::duration(ms.into())));
    }
    if parts.is_empty() { Ok(()) } else { writeln!(out, "update = {{ {} }}", parts.join(", ")) }
}

fn seconds_text(seconds: u32) -> String {
    value::duration(u64::from(seconds) * 1000)
}

fn write_placement(out: &mut String, placement: &Placement) -> std::fmt::Result {
    let publish = |out: &mut String, port: Option<Port>| match port {
        Some(port) => writeln!(out, "publish = {port}"),
        None => Ok(()),
    };
    match placement {
        Placement::Pinned(pins) if pins.iter().all(|pin| pin.publish == pins[0].publish) => {
            writeln!(out, "nodes = {}", list(pins.iter().map(|pin| pin.node.as_str())))?;
            publish(out, pins.first().and_then(|pin| pin.publish))
        }
        Placement::Pinned(pins) => {
            writeln!(out, "nodes = [")?;
            for Pin { node, publish } in pins {
                match publish {
                    Some(port) => writeln!(out, "  {{ node = \"{node}\", publish = {port} }},")?,
                    None => writeln!(out, "  {{ node = \"{node}\" }},")?,
                }
            }
            writeln!(out, "]")
        }
        Placement::Replicas { count, nodes, publish: port } => {
            if !nodes.is_empty() {
                writeln!(out, "nodes = {}", list(nodes.iter().map(NodeName::as_str)))?;
            }
            writeln!(out, "replicas = {count}")?;
            publish(out, *port)
        }
    }
}

fn write_routes(out: &mut String, app: &App) -> std::fmt::Result {
    let mut hosts: Vec<String> = app.routes.iter().filter_map(|r| r.host.as_ref()).map(ToString::to_string).collect();
    hosts.dedup();
    let mut paths: Vec<String> = app.routes.iter().map(|r| r.path.to_string()).collect();
    paths.sort();
    paths.dedup();
    if !hosts.is_empty() {
        writeln!(out, "host = {}", one_or_list(&hosts))?;
    }
    match paths.as_slice() {
        [] => writeln!(out, "path = false")?,
        paths => writeln!(out, "path = {}", one_or_list(paths))?,
    }
    if app.strip_path {
        writeln!(out, "strip_path = true")?;
    }
    Ok(())
}

fn write_health(out: &mut String, app: &App) -> std::fmt::Result {
    let Health { check, interval_ms, timeout_ms, deadline_seconds } = &app.health;
    let mut parts = Vec::new();
    match check {
        Check::Tcp => parts.push("tcp = true".to_owned()),
        Check::Http { path, host, status } => {
            if *path != default_health_path(&app.routes, app.strip_path) {
                parts.push(format!("path = {}", string(path)));
            }
            if let Some(host) = host {
                parts.push(format!("host = {}", string(host)));
            }
            if let Some(status) = status {
                parts.push(format!("status = {status}"));
            }
        }
    }
    if *interval_ms != defaults::INTERVAL_MS {
        parts.push(format!("interval = \"{}\"", value::duration(u64::from(*interval_ms))));
    }
    if *timeout_ms != defaults::TIMEOUT_MS {
        parts.push(format!("timeout = \"{}\"", value::duration(u64::from(*timeout_ms))));
    }
    if *deadline_seconds != defaults::DEADLINE_SECONDS {
        parts.push(format!("deadline = \"{}\"", seconds_text(*deadline_seconds)));
    }
    if parts.is_empty() { Ok(()) } else { writeln!(out, "health = {{ {} }}", parts.join(", ")) }
}
