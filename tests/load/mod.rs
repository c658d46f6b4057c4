//! Requests at a fixed rate, each accounted for: an open loop, so that a server that stalls is not asked less.
//!
//! Shared by tests and benches (`#[path]`); knows nothing of labs.
#![allow(dead_code, unused_imports, reason = "each of its users needs a part")]

mod flow;
mod http;
mod report;
mod websocket;

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

pub use flow::{Fate, Flow};
pub use http::{Answer, Pool, request};
pub use report::{Asked, Kind, Report, Sockets};

/// What is asked, how often and how.
#[derive(Debug, Clone)]
pub struct Mix {
    /// Asked in turn.
    pub paths: Vec<String>,
    /// A second.
    pub rate: u32,
    /// So many of a hundred are POSTs with a body and an id of their own.
    pub posts: u32,
    /// So many of a hundred are GETs whose answer takes from 100 to 1000 ms.
    pub slow: u32,
    /// So many of a hundred go out on a connection of their own.
    pub fresh: u32,
    /// Websockets held open on each of these paths, saying something four times a second.
    pub sockets: Vec<String>,
}

impl Mix {
    /// GETs only, on connections that are kept.
    pub fn gets(paths: &[&str], rate: u32) -> Self {
        let paths = paths.iter().map(|p| (*p).to_owned()).collect();
        Self { paths, rate, posts: 0, slow: 0, fresh: 0, sockets: Vec::new() }
    }

    /// What request `number` is. The kinds are spread evenly, and over all paths.
    fn of(&self, number: usize) -> (usize, Kind, bool) {
        let path = number % self.paths.len();
        // 37 and 61 have no divisor in common with 100: every hundred of turns has each percentage exactly.
        let turn = number / self.paths.len();
        let dice = (turn * 37 + path * 13) % 100;
        let fresh = (turn * 61 + path * 29) % 100 < self.fresh as usize;
        let kind = match u32::try_from(dice).unwrap_or(0) {
            dice if dice < self.posts => Kind::Post,
            dice if dice < self.posts + self.slow => Kind::Slow(100 + u32::try_from(turn * 7 % 10).unwrap_or(0) * 100),
            _ => Kind::Get,
        };
        (path, kind, fresh)
    }
}

/// Requests on their way.
#[derive(Debug)]
pub struct Load {
    began: Instant,
    end: Arc<AtomicBool>,
    worker: JoinHandle<Report>,
    /// What became known so far, for who watches.
    heard: Arc<AtomicUsize>,
}

impl Load {
    /// GETs of these paths in turn, so many a second, until [`Load::stop`].
    pub fn start(to: SocketAddr, paths: &[&str], rate: u32) -> Self {
        Self::with(to, Mix::gets(paths, rate))
    }

    /// A mix of requests, until [`Load::stop`].
    pub fn with(to: SocketAddr, mix: Mix) -> Self {
        let (end, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (ended, count) = (Arc::clone(&end), Arc::clone(&heard));
        let (told, begins) = mpsc::channel();
        let worker = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap_or_else(|e| panic!("no runtime for the load: {e}"));
            let began = Instant::now();
            _ = told.send(began);
            let tasks = tokio::task::LocalSet::new();
            runtime.block_on(tasks.run_until(drive(to, mix, began, ended, count)))
        });
        let began = begins.recv().unwrap_or_else(|_| Instant::now());
        Self { began, end, worker, heard }
    }

    /// How long it has gone on.
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
    /// When it began.
    pub fn began(&self) -> Instant {
        self.began
    }
    /// How many requests have ended.
    pub fn heard(&self) -> usize {
        self.heard.load(Ordering::SeqCst)
    }
    /// Waits until it has gone on for so long.
    pub fn until(&self, after: Duration) {
        thread::sleep(after.saturating_sub(self.began.elapsed()));
    }
    /// Ends it, waits for every answer, and says what came of it.
    pub fn stop(self) -> Report {
        let report = self.quietly();
        eprintln!("  load: {report}");
        report
    }
    /// Ends it and waits for every answer.
    pub fn quietly(self) -> Report {
        self.end.store(true, Ordering::SeqCst);
        self.worker.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
    }
}

async fn drive(to: SocketAddr, mix: Mix, began: Instant, end: Arc<AtomicBool>, heard: Arc<AtomicUsize>) -> Report {
    let pool = Rc::new(Pool::new(to));
    let asked = Rc::new(RefCell::new(Vec::new()));
    let sockets = Rc::new(RefCell::new(Sockets::default()));
    let mut tasks = tokio::task::JoinSet::new();
    for (number, path) in mix.sockets.iter().enumerate() {
        let (path, end, sockets) = (path.clone(), Arc::clone(&end), Rc::clone(&sockets));
        tasks.spawn_local(async move { websocket::hold(to, &path, number, began, &end, &sockets).await });
    }
    // Ids of two loads must not be the same ones.
    let run = format!("{:x}-{:x}", std::process::id(), std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos());
    let paths: Rc<[String]> = mix.paths.clone().into();
    for number in 0.. {
        let due = Duration::from_secs(1) * number / mix.rate;
        tokio::time::sleep_until((began + due).into()).await;
        if end.load(Ordering::SeqCst) {
            break;
        }
        let (path, kind, fresh) = mix.of(usize::try_from(number).unwrap_or(0));
        let (pool, all, heard) = (Rc::clone(&pool), Rc::clone(&asked), Arc::clone(&heard));
        let (id, paths) = (format!("{run}-{number}"), Rc::clone(&paths));
        tasks.spawn_local(async move {
            let answer = ask(&pool, &paths[path], kind, &id, fresh).await.map_err(|e| e.to_string());
            let took = began.elapsed().saturating_sub(due);
            let id = matches!(kind, Kind::Post).then_some(id);
            all.borrow_mut().push(Asked { due, took, path, kind, fresh, id, answer });
            heard.fetch_add(1, Ordering::SeqCst);
        });
        // What has ended is of no more use.
        while tasks.try_join_next().is_some() {}
    }
    while tasks.join_next().await.is_some() {}
    let mut asked = asked.take();
    asked.sort_by_key(|a| a.due);
    Report::new(asked, mix.paths, sockets.take(), began)
}

async fn ask(pool: &Pool, path: &str, kind: Kind, id: &str, fresh: bool) -> io::Result<Answer> {
    match kind {
        Kind::Get => pool.ask(&format!("GET {path} HTTP/1.1\r\nHost: load\r\n\r\n"), fresh).await,
        Kind::Slow(ms) => pool.ask(&format!("GET {path}slow?ms={ms} HTTP/1.1\r\nHost: load\r\n\r\n"), fresh).await,
        Kind::Post => {
            let body = format!("{id} {}", "x".repeat(200));
            let length = body.len();
            let head =
                format!("POST {path} HTTP/1.1\r\nHost: load\r\nX-Request-Id: {id}\r\nContent-Length: {length}\r\n");
            let answer = pool.ask(&format!("{head}\r\n{body}"), fresh).await?;
            if answer.status == 200 && !answer.body.contains(&body) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "another body came back"));
            }
            Ok(answer)
        }
    }
}
