//! dnsmasq's leases file, watched.
//!
//! Never forgets by mistake: a file that is missing, half written or all garbage leaves what was known.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{RecursiveMode, Watcher as _};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::inventory::lease::{Leases, parse};

/// A folder watch may miss (network file systems, an exhausted inotify).
const POLL: Duration = Duration::from_secs(2);
/// dnsmasq empties the file and writes it again: what is read twice alike, this far apart, is whole.
const SETTLE: Duration = Duration::from_millis(20);
/// An emptied file is believed only after this long.
const EMPTY_FOR: Duration = Duration::from_secs(1);
/// 10,000 leases have about 1 MB.
const LARGEST: u64 = 64 << 20;

/// Follows `file` until `stop`; the receiver always holds what was last known, at first nothing.
pub fn follow(file: PathBuf, stop: CancellationToken) -> watch::Receiver<Arc<Leases>> {
    let (known, receiver) = watch::channel(Arc::new(Leases::default()));
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = run(&file, &known) => {}
        }
    });
    receiver
}

async fn run(file: &Path, known: &watch::Sender<Arc<Leases>>) {
    let touched = Arc::new(Notify::new());
    let mut watcher = None;
    let mut last = None;
    loop {
        // The folder may come later, or be made anew.
        if watcher.is_none() || !file.parent().is_some_and(Path::exists) {
            watcher = watch_folder(file, &touched);
        }
        match read_whole(file).await {
            Ok(text) if last.as_ref() == Some(&text) => {}
            Ok(text) => {
                take(parse(&text), &text, known);
                last = Some(text);
            }
            Err(why) => complain(known, format!("cannot read {}: {why}", file.display())),
        }
        tokio::select! {
            () = touched.notified() => {}
            () = sleep(POLL) => {}
        }
    }
}

fn take(read: Leases, text: &str, known: &watch::Sender<Arc<Leases>>) {
    if read.leases.is_empty() && !read.problems.is_empty() && !known.borrow().leases.is_empty() {
        complain(known, format!("the leases file holds no lease any more: {}", read.problems.join("; ")));
        return;
    }
    tracing::debug!(bytes = text.len(), leases = read.leases.len(), problems = read.problems.len(), "leases read");
    known.send_if_modified(|now| {
        let changed = **now != read;
        *now = Arc::new(read);
        changed
    });
}

/// Keeps the leases and says what is wrong.
fn complain(known: &watch::Sender<Arc<Leases>>, why: String) {
    known.send_if_modified(|now| {
        if now.problems == [why.as_str()] {
            return false;
        }
        tracing::warn!("{why}");
        *now = Arc::new(Leases { leases: now.leases.clone(), problems: vec![why], cut: false });
        true
    });
}

/// The text once it stands still.
async fn read_whole(file: &Path) -> std::io::Result<String> {
    let start = Instant::now();
    let mut before = read(file).await?;
    loop {
        sleep(SETTLE).await;
        let now = read(file).await?;
        let settled = now == before && (now.is_empty() || now.ends_with('\n'));
        let patience = start.elapsed() > EMPTY_FOR;
        if (settled && !now.is_empty()) || patience {
            return Ok(now);
        }
        before = now;
    }
}

async fn read(file: &Path) -> std::io::Result<String> {
    let size = tokio::fs::metadata(file).await?.len();
    if size > LARGEST {
        return Err(std::io::Error::other(format!("it has {size} bytes")));
    }
    Ok(String::from_utf8_lossy(&tokio::fs::read(file).await?).into_owned())
}

fn watch_folder(file: &Path, touched: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let name = file.file_name()?.to_owned();
    let touched = Arc::clone(touched);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let Ok(event) = event else { return };
        let it = event.paths.is_empty() || event.paths.iter().any(|path| path.file_name() == Some(&name));
        // Our own reading is an access.
        if it && !event.kind.is_access() {
            touched.notify_one();
        }
    })
    .ok()?;
    watcher.watch(file.parent()?, RecursiveMode::NonRecursive).ok()?;
    Some(watcher)
}
