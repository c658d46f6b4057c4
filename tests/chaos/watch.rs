//! What the manager says of itself, over time.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;

const GLANCE: Duration = Duration::from_millis(80);

/// When all was well and when it was not, as the manager saw it.
pub struct Watch {
    seen: Arc<Mutex<Vec<(Instant, bool)>>>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn start(socket: PathBuf) -> Self {
        let (seen, end) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (all, ended) = (Arc::clone(&seen), Arc::clone(&end));
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                let at = Instant::now();
                let well = status(&socket).is_some_and(|status| whole(&status));
                all.lock().unwrap().push((at, well));
                thread::sleep(GLANCE);
            }
        });
        Self { seen, end, thread: Some(thread) }
    }

    /// After this moment: until it was noticed that not all is well.
    pub fn detected(&self, since: Instant) -> Option<Duration> {
        let seen = self.seen.lock().unwrap();
        seen.iter().find(|(at, well)| *at >= since && !well).map(|(at, _)| *at - since)
    }

    /// From one moment, until another: when all was well for the last time again; none: it always was.
    pub fn restored_until(&self, since: Instant, end: Instant) -> Option<Duration> {
        let seen = self.seen.lock().unwrap();
        let last = seen.iter().rev().find(|(at, well)| *at >= since && *at <= end && !well)?.0;
        seen.iter().find(|(at, well)| *at > last && *well).map(|(at, _)| *at - since)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Every instance wanted serves on nodes that answer, and nothing is under way.
pub fn whole(status: &Value) -> bool {
    let apps = status["applications"].as_object();
    let nodes = status["nodes"].as_object();
    status["settled"] == true
        && status["gateway_up"] == true
        && nodes.is_some_and(|all| all.len() == crate::NODES.len() && all.values().all(|node| node["state"] == "ready"))
        && apps.is_some_and(|all| {
            all.values().all(|app| {
                let there = app["instances"].as_array().map_or(0, Vec::len) as u64;
                app["serving"] == app["wanted"] && app["wanted"] == there
            })
        })
}

/// `GET /v1/status`, where somebody answers.
pub fn status(socket: &Path) -> Option<Value> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: matrix\r\nConnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (_, body) = text.split_once("\r\n\r\n")?;
    // A short answer is not chunked; a long one may be.
    serde_json::from_str(body).ok().or_else(|| serde_json::from_str(&unchunked(body)).ok())
}

fn unchunked(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Some(part) = usize::from_str_radix(size.trim(), 16).ok().filter(|n| *n > 0).and_then(|n| rest.get(..n))
        else {
            break;
        };
        text += part;
        body = rest[part.len()..].trim_start_matches("\r\n");
    }
    text
}
