//! The window in which the registry takes nothing, so that its own collector may run.
//!
//! The collector marks what manifests name and sweeps the rest: a blob that comes between the two would be lost, so there
//! is no window while a push is under way, and no collector outside a window, also not one that a killed manager left.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::{process::Command, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    inventory::RegistryStock,
    manager::{Manager, chain, events::Kind},
    model::Timestamp,
    remote::registry::{Mode, storage},
    store::{Change, get_json},
};

use super::{Cleaned, Stays, registry};

/// What the registry is started with in the window: its unit (or the lab's script) reads this file.
const READ_ONLY: &str = "REGISTRY_STORAGE_MAINTENANCE_READONLY='{\"enabled\":true}'\n";
/// In the store while the window is open.
const OPEN: &str = "gc/window";
/// An upload that nobody wrote to for so long was broken off.
const BROKEN_OFF: jiff::SignedDuration = jiff::SignedDuration::from_secs(30);
/// For a restart, and for its first answer after it.
const RESTART: Duration = Duration::from_secs(90);
/// For a collection: some minutes for a hundred thousand blobs.
const COLLECT: Duration = Duration::from_secs(3600);
/// What goes on with nodes is waited for so long before the registry takes images again.
const REOPEN: Duration = Duration::from_secs(60);

/// Why the collector was not run, or did not do it.
enum Stop {
    /// Not now.
    Note(String),
    /// It failed.
    Error(String),
}

/// Runs the registry's collector, where there is something for it and nothing is on its way there.
pub(super) async fn collect(manager: &Manager, patience: Duration) -> Cleaned {
    let mut cleaned = Cleaned::default();
    let gc = &manager.config().gc;
    if gc.collect.is_empty() || gc.restart.is_empty() {
        return cleaned;
    }
    let result = async {
        let Some(before) = worth_it(manager, patience).await? else { return Ok(0) };
        let done = window(manager).await;
        reopen(manager).await.map_err(|why| Stop::Error(format!("the registry may still take no images: {why}")))?;
        done?;
        let after = registry::look(manager).await.map_err(Stop::Error)?;
        Ok(bytes(&before).saturating_sub(bytes(&after)))
    };
    match result.await {
        Ok(freed) => cleaned.freed = freed,
        Err(Stop::Note(why)) => cleaned.notes.push(format!("blobs stay in the registry for now: {why}")),
        Err(Stop::Error(why)) => cleaned.errors.push(why),
    }
    cleaned
}

/// Puts right what a manager that was killed in its window left, or what could not be started anew: the registry takes
/// images again.
pub(super) async fn heal(manager: &Manager) {
    let Ok(_one) = manager.0.gc.one.try_lock() else { return };
    if !matches!(get_json::<bool>(&**manager.store(), OPEN), Ok(Some(true))) {
        return;
    }
    manager.0.events.tell(Kind::Note, "gc", None, "the registry was left as it was being cleaned: it is started anew");
    let reopened = match locked(manager).await {
        Ok(_no_collector) => reopen(manager).await,
        Err(why) => Err(why),
    };
    if let Err(why) = reopened {
        manager.ended(&Cleaned { errors: vec![why], ..Cleaned::default() });
    }
}

fn bytes(stock: &RegistryStock) -> u64 {
    stock.blobs.values().map(|blob| blob.size).sum()
}

/// What is kept, where something of it may be swept now; none where there is nothing.
async fn worth_it(manager: &Manager, patience: Duration) -> Result<Option<RegistryStock>, Stop> {
    let stock = registry::look(manager).await.map_err(Stop::Error)?;
    let needed = manager.kept().map_err(|e| Stop::Error(chain(&e)))?.needed;
    let plan = registry::plan(manager, &stock, &needed);
    if plan.sweep.is_empty() {
        return Ok(None);
    }
    if let Some(first) = plan.unreadable.first() {
        let count = plan.unreadable.len();
        return Err(Stop::Note(format!("{count} manifests cannot be read, the first is {first}")));
    }
    if !plan.young.is_empty() {
        let (count, minutes) = (plan.young.len(), manager.config().gc.grace_minutes);
        return Err(Stop::Note(format!("{count} of them came less than {minutes} min ago: a push may be under way")));
    }
    let begun = Instant::now();
    while let Some(last) = last_upload(manager).await? {
        if Timestamp::now().duration_since(last) > BROKEN_OFF {
            break;
        }
        if begun.elapsed() > patience {
            return Err(Stop::Note("an upload is under way".to_owned()));
        }
        sleep(Duration::from_secs(1)).await;
    }
    Ok(Some(stock))
}

async fn last_upload(manager: &Manager) -> Result<Option<Timestamp>, Stop> {
    let folder = manager.config().gc.storage.clone().unwrap_or_default();
    let last = tokio::task::spawn_blocking(move || storage::last_upload(&folder)).await;
    last.map_err(|e| Stop::Error(e.to_string()))?.map_err(|e| Stop::Error(chain(&e)))
}

/// Makes the registry read-only, looks again, collects. Whoever calls makes it take images again, whatever comes of this.
async fn window(manager: &Manager) -> Result<(), Stop> {
    let lock = locked(manager).await.map_err(Stop::Error)?;
    {
        // A node that pulls would meet a registry that restarts.
        let held = manager.0.submitting.lock().await;
        manager.still(&held).map_err(|stays| match stays {
            Stays::All(why) => Stop::Note(why),
            Stays::This => Stop::Note("it is needed now".to_owned()),
        })?;
        let change = Change::put(OPEN, &true).and_then(|change| manager.store().transact(&[change]));
        change.map_err(|e| Stop::Error(chain(&e)))?;
        let file = env_file(manager);
        fs::write(&file, READ_ONLY).map_err(|e| Stop::Error(format!("cannot write {}: {e}", file.display())))?;
        restart(manager, Mode::ReadOnly).await.map_err(Stop::Error)?;
    }
    // A push may have come between the last look and the window.
    let stock = registry::look(manager).await.map_err(Stop::Error)?;
    let needed = manager.kept().map_err(|e| Stop::Error(chain(&e)))?.needed;
    let plan = registry::plan(manager, &stock, &needed);
    if !plan.young.is_empty() || !plan.unreadable.is_empty() {
        return Err(Stop::Note("a push came".to_owned()));
    }
    manager.0.events.tell(Kind::Begin, "gc", None, format!("collecting {} blobs in the registry", plan.sweep.len()));
    // The lock's file is the collector's standard input: it stays locked while that runs, also without this manager.
    let collect = &manager.config().gc.collect;
    run(collect, Stdio::from(lock), COLLECT, manager.stopped()).await.map_err(Stop::Error)
}

/// Lets the registry take images again; nothing where it does.
async fn reopen(manager: &Manager) -> Result<(), String> {
    match fs::remove_file(env_file(manager)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("cannot remove {}: {error}", env_file(manager).display()));
        }
        _ => {}
    }
    if manager.registry().mode().await != Some(Mode::Writable) {
        if !manager.stopped().is_cancelled() {
            _ = manager.quiet(REOPEN).await;
        }
        let _held = manager.0.submitting.lock().await;
        restart(manager, Mode::Writable).await?;
    }
    let closed = manager.store().transact(&[Change::delete(OPEN)]);
    closed.map_err(|e| chain(&e))
}

fn env_file(manager: &Manager) -> PathBuf {
    manager.config().run.join("registry.env")
}

/// Restarts the registry and waits until it answers as it should.
async fn restart(manager: &Manager, wanted: Mode) -> Result<(), String> {
    // Also while the manager ends: a registry that takes nothing must not be what it leaves.
    run(&manager.config().gc.restart, Stdio::null(), RESTART, &CancellationToken::new()).await?;
    let deadline = Instant::now() + RESTART;
    while manager.registry().mode().await != Some(wanted) {
        if Instant::now() > deadline {
            let state = if wanted == Mode::ReadOnly { "read-only" } else { "writable" };
            let seconds = RESTART.as_secs();
            let file = env_file(manager);
            return Err(format!(
                "the registry is not {state} {seconds} s after its restart: does its service read {}?",
                file.display()
            ));
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The collector's lock: waits for one that a killed manager left.
async fn locked(manager: &Manager) -> Result<File, String> {
    let path = manager.config().run.join("registry.lock");
    let lock = move || {
        let file = File::options().create(true).append(true).open(&path)?;
        file.lock()?;
        Ok::<_, std::io::Error>(file)
    };
    let locked = tokio::task::spawn_blocking(lock).await.map_err(|e| e.to_string())?;
    locked.map_err(|e| format!("cannot lock the registry's collector: {e}"))
}

/// Runs a configured command to its end; its last words are the error.
async fn run(words: &[String], input: Stdio, patience: Duration, stop: &CancellationToken) -> Result<(), String> {
    let Some((program, args)) = words.split_first() else { return Ok(()) };
    let shown = words.join(" ");
    let mut command = Command::new(program);
    command.args(args).stdin(input).kill_on_drop(true);
    let ended = tokio::select! {
        ended = tokio::time::timeout(patience, command.output()) => ended,
        () = stop.cancelled() => return Err(format!("the manager ends: `{shown}` was ended")),
    };
    let output = ended.map_err(|_| format!("`{shown}` did not end within {} s", patience.as_secs()))?;
    let output = output.map_err(|e| format!("cannot run `{shown}`: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<_> = said.lines().rev().take(3).collect();
    let last: String = last.into_iter().rev().collect::<Vec<_>>().join("; ").chars().take(500).collect();
    Err(format!("`{shown}` ended with {}: {last}", output.status))
}
