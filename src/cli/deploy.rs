//! `matrix deploy`: load, submit, follow, report.

use std::path::PathBuf;

use http::Method;

use crate::{
    api::{Aborted, DeployEnd, DeployLine, Steer},
    manager::{
        Submission, Submitted,
        events::{Event, Kind},
    },
    model::InstanceId,
};

use super::{Client, Exit, Failure, Global, Printer, block_on};

/// Options of `matrix deploy`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The plan
    #[arg(default_value = "applications.plan")]
    plan: PathBuf,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Stop before the switch (or the canary): `matrix activate` goes on, `matrix abort` throws the release away
    #[arg(long, conflicts_with = "dry_run")]
    stage: bool,
    /// What to say of this release
    #[arg(long, short)]
    message: Option<String>,
}

/// Options of `matrix activate`, `matrix abort` and `matrix follow`.
#[derive(Debug, clap::Args)]
pub struct OnItsWay {}

pub(super) fn run(args: Args, global: &Global, out: &Printer) -> Result<(), Failure> {
    let submission = load(&args, out)?;
    follow(global, "/v1/deploy", &submission, args.dry_run, out)
}

/// Shows the release that is on its way until it ends.
pub(super) fn watch(_args: OnItsWay, global: &Global, out: &Printer) -> Result<(), Failure> {
    follow(global, "/v1/follow", &Steer { by: user() }, false, out)
}

/// Lets a staged release go on, or ends its canary, and shows it until it ends.
pub(super) fn activate(_args: OnItsWay, global: &Global, out: &Printer) -> Result<(), Failure> {
    follow(global, "/v1/activate", &Steer { by: user() }, false, out)
}

/// Throws the release away that is on its way.
pub(super) fn abort(_args: OnItsWay, global: &Global, out: &Printer) -> Result<(), Failure> {
    let client = Client::new(global);
    let aborted: Aborted = block_on(async { client.send(Method::POST, "/v1/abort", &Steer { by: user() }).await })?;
    if out.is_json() {
        out.json(&aborted);
    } else {
        out.line(format!("release {} is aborted; what was active before stays", aborted.release));
    }
    Ok(())
}

/// Submits, then shows what changes, what happens and how it ended.
pub(super) fn follow(
    global: &Global,
    path: &str,
    body: &impl serde::Serialize,
    dry_run: bool,
    out: &Printer,
) -> Result<(), Failure> {
    let client = Client::new(global);
    block_on(async {
        let mut lines = client.stream(Method::POST, path, body).await?;
        while let Some(line) = lines.next::<DeployLine>().await? {
            if out.is_json() {
                out.json_line(&line);
            }
            match line {
                DeployLine::Submitted(submitted) => {
                    show(&submitted, dry_run, out);
                    if dry_run {
                        return Ok(());
                    }
                }
                DeployLine::Event(event) => progress(&event, out),
                DeployLine::End(end) => return report(&end, out),
            }
        }
        Err(Failure::failed("the manager stopped before the release was out")
            .hint("it goes on when the manager is back: `matrix status`"))
    })
    .map_err(|failure| match failure.exit {
        Exit::Interrupted => {
            failure.hint("a release that was accepted goes on: `matrix follow` shows it again, `matrix abort` ends it")
        }
        _ => failure,
    })
}

/// Reads and checks the plan here, so that a wrong one never travels.
fn load(args: &Args, out: &Printer) -> Result<Submission, Failure> {
    let (file, bytes) = super::plan::load_valid(&args.plan, out)?;
    let text = String::from_utf8(bytes).map_err(|_| Failure::invalid(format!("{file} is not UTF-8")))?;
    Ok(Submission { file, text, by: user(), message: args.message.clone(), dry_run: args.dry_run, stage: args.stage })
}

/// Who deploys: the user's name, as the system knows it.
pub(super) fn user() -> String {
    let known = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten();
    known.map_or_else(|| nix::unistd::getuid().to_string(), |user| user.name)
}

fn show(submitted: &Submitted, dry_run: bool, out: &Printer) {
    for warning in &submitted.warnings {
        out.warning(&warning.to_string());
    }
    for change in &submitted.changes {
        out.line(change.to_string());
    }
    for cramped in &submitted.cramped {
        out.warning(cramped);
    }
    for canary in &submitted.canaries {
        out.line(canary);
    }
    let number = submitted.release;
    match (submitted.changes.len(), dry_run) {
        (0, _) if !submitted.new => out.line(format!("nothing to change: the cloud runs release {number}")),
        (count, true) => out.line(format!("{count} changes would make release {number}; nothing was changed")),
        (_, false) if submitted.new => out.line(format!("release {number}")),
        _ => {}
    }
}

fn progress(event: &Event, out: &Printer) {
    let place = event.node.as_ref().filter(|node| node.as_str() != event.subject);
    let place = place.map(|node| format!(" on {node}")).unwrap_or_default();
    // Why an instance failed is said in the end, once.
    let brief = event.kind == Kind::Failed && event.subject.parse::<InstanceId>().is_ok();
    let text = if brief { "failed" } else { &event.text };
    out.line(format!("  {}{place}: {text}", event.subject));
}

fn report(end: &DeployEnd, out: &Printer) -> Result<(), Failure> {
    for warning in &end.warnings {
        out.warning(warning);
    }
    #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
    let seconds = end.millis as f64 / 1000.0;
    if end.staged {
        let next = "`matrix activate` makes the switch, `matrix abort` throws it away";
        out.line(format!("release {} is staged after {seconds:.2} s: {next}", end.release));
        return Ok(());
    }
    if end.ok {
        out.line(format!("release {} is out after {seconds:.2} s", end.release));
        return Ok(());
    }
    Err(Failure::failed(format!("release {} is not out:\n{}", end.release, end.errors.join("\n")))
        .hint("what served before goes on serving; `matrix status` shows it; deploy again when it is mended"))
}
