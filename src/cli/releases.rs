//! `matrix releases`, `matrix diff` and `matrix rollback`: what the cloud ran, what changed, and the way back.

use crate::{
    api::ReleasesView,
    manager::{NOT_KEPT, Rollback},
    release::{Release, compare, was},
};

use super::{Client, Failure, Global, Printer, block_on, deploy, status::age};

/// Options of `matrix releases`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {}

/// Options of `matrix diff`.
#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    /// The older release
    old: u64,
    /// The newer release; the current one, where it is not said
    new: Option<u64>,
}

/// Options of `matrix rollback`.
#[derive(Debug, clap::Args)]
pub struct RollbackArgs {
    /// The release to go back to; the one before the current, where it is not said
    release: Option<u64>,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// What to say of this release
    #[arg(long, short)]
    message: Option<String>,
}

pub(super) fn list(_args: ListArgs, global: &Global, out: &Printer) -> Result<(), Failure> {
    let view = known(global)?;
    if out.is_json() {
        out.json(&view);
        return Ok(());
    }
    let rows = view.releases.iter().rev().map(|release| {
        let number = Some(release.number);
        let state = match view.endings.get(&release.number) {
            _ if view.current == number => "active",
            _ if view.on_its_way == number => "on its way",
            Some(ending) => ending.state.word(),
            None => "",
        };
        vec![
            format!("{}{}", release.number, if view.current == number { " *" } else { "" }),
            state.to_owned(),
            format!("{} ago", age(Some(release.created))),
            release.by.clone(),
            release.plan.apps.keys().map(crate::model::AppName::as_str).collect::<Vec<_>>().join(" "),
            release.message.clone().unwrap_or_default(),
        ]
    });
    out.table(&["RELEASE", "STATE", "MADE", "BY", "APPLICATIONS", "MESSAGE"], rows);
    Ok(())
}

pub(super) fn diff(args: DiffArgs, global: &Global, out: &Printer) -> Result<(), Failure> {
    let view = known(global)?;
    let old = find(&view, Some(args.old))?;
    let new = find(&view, args.new)?;
    let changes = compare(old, new);
    if out.is_json() {
        out.json(&serde_json::json!({ "old": old.number, "new": new.number, "changes": changes }));
        return Ok(());
    }
    for change in &changes {
        out.line(change);
    }
    if changes.is_empty() {
        out.line(format!("releases {} and {} want the same", old.number, new.number));
    }
    Ok(())
}

pub(super) fn rollback(args: RollbackArgs, global: &Global, out: &Printer) -> Result<(), Failure> {
    let rollback = Rollback { to: args.release, by: deploy::user(), message: args.message, dry_run: args.dry_run };
    deploy::follow(global, "/v1/rollback", &rollback, args.dry_run, out)
}

fn known(global: &Global) -> Result<ReleasesView, Failure> {
    let client = Client::new(global);
    block_on(async { client.get("/v1/releases").await })
}

fn find(view: &ReleasesView, number: Option<u64>) -> Result<&Release, Failure> {
    let missing = || Failure::invalid("there is no such release").hint("`matrix releases` lists them");
    let number = number.or(view.current).ok_or_else(missing)?;
    let was = was(&view.releases, number);
    view.releases.iter().find(|release| release.number == number).ok_or_else(|| {
        if was {
            Failure::invalid(format!("release {number} is not kept any more")).hint(NOT_KEPT)
        } else {
            Failure::invalid(format!("there is no release {number}")).hint("`matrix releases` lists them")
        }
    })
}
