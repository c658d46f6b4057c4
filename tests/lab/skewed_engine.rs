//! A node's engine whose clock is off: a fake in front of the real engine, since nodes of a lab are namespaces of one kernel
//! and have one CLOCK_REALTIME.
//!
//! Answers nothing by itself: it passes on bytes both ways, and moves the engine's times in answers (and `since` and `until`
//! in requests the other way) without changing a length, so that streams, chunks and upgraded connections stay whole. An
//! image's `Created` moves as well, though its builder's clock made it.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::Shutdown,
    os::{
        fd::AsRawFd,
        unix::{
            fs::{MetadataExt as _, chown},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use jiff::{SignedDuration, civil::DateTime};

use crate::rig::Lab;

/// How a time is written, by what stands before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `2026-11-26T12:30:00`, in UTC.
    Stamp,
    /// Ten digits.
    Seconds,
    /// Nineteen digits.
    Nanos,
    /// `Thu, 26 Nov 2026 12:30:00 GMT`
    Http,
}

const ANSWERS: [(&[u8], Form); 9] = [
    (b"\"Created\":\"", Form::Stamp),
    (b"\"StartedAt\":\"", Form::Stamp),
    (b"\"FinishedAt\":\"", Form::Stamp),
    (b"\"SystemTime\":\"", Form::Stamp),
    (b"\"Created\":", Form::Seconds),
    (b"\"time\":", Form::Seconds),
    (b"\"timeNano\":", Form::Nanos),
    (b"\"time\":\"", Form::Stamp),
    (b"Date: ", Form::Http),
];
const QUESTIONS: [(&[u8], Form); 4] = [
    (b"?since=", Form::Seconds),
    (b"&since=", Form::Seconds),
    (b"?until=", Form::Seconds),
    (b"&until=", Form::Seconds),
];

impl Form {
    fn width(self) -> usize {
        match self {
            Self::Stamp | Self::Nanos => 19,
            Self::Seconds => 10,
            Self::Http => 29,
        }
    }

    /// None: it is no time, or one that no clock made (`0001-01-01T00:00:00Z` stands for never).
    fn moved(self, text: &str, seconds: i64) -> Option<String> {
        let civil = |format: &str| {
            let at = DateTime::strptime(format, text).ok().filter(|at| at.year() >= 2000)?;
            let moved = at.checked_add(SignedDuration::from_secs(seconds)).ok()?;
            Some(moved.strftime(format).to_string())
        };
        let number = |unit: i64| {
            let at = text.parse::<u64>().ok()?;
            Some(at.checked_add_signed(seconds * unit)?.to_string())
        };
        let moved = match self {
            Self::Stamp => civil("%Y-%m-%dT%H:%M:%S"),
            Self::Http => civil("%a, %d %b %Y %H:%M:%S GMT"),
            Self::Seconds => number(1),
            Self::Nanos => number(1_000_000_000),
        };
        moved.filter(|moved| moved.len() == text.len())
    }
}

/// Moves times in what comes, piece by piece.
struct Mover {
    forms: &'static [(&'static [u8], Form)],
    /// The beginning of what may be a time: it waits for the rest.
    held: Vec<u8>,
}

impl Mover {
    /// What can be passed on, and how many times it had.
    fn pass(&mut self, piece: &[u8], seconds: i64) -> (Vec<u8>, usize) {
        let mut bytes = std::mem::take(&mut self.held);
        bytes.extend(piece);
        let (mut at, mut count) = (0, 0);
        while at < bytes.len() {
            let rest = &bytes[at..];
            let cut = |(before, form): &&(&[u8], Form)| {
                before.starts_with(rest) || rest.starts_with(before) && rest.len() < before.len() + form.width()
            };
            if rest.len() < 48 && self.forms.iter().any(|form| cut(&form)) {
                self.held = bytes.split_off(at);
                break;
            }
            let found = self.forms.iter().find_map(|(before, form)| {
                let text = rest.strip_prefix(*before)?.get(..form.width())?;
                Some((before.len(), form.moved(std::str::from_utf8(text).ok()?, seconds)?))
            });
            match found {
                Some((before, text)) => {
                    bytes[at + before..at + before + text.len()].copy_from_slice(text.as_bytes());
                    at += before + text.len();
                    count += 1;
                }
                None => at += 1,
            }
        }
        (bytes, count)
    }
}

struct Shared {
    /// What the clock is ahead, in seconds.
    skew: AtomicI64,
    /// How many times were moved in answers.
    moved: AtomicUsize,
    ending: AtomicBool,
}

/// The engine of a node with a clock that is off, until dropped. What is connected by then stays so, in true time.
pub struct SkewedEngine {
    /// The node's /run, whatever becomes of the process by which it was found.
    run: File,
    ours: u64,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl SkewedEngine {
    #[track_caller]
    pub fn on(lab: &Lab, node: &str, seconds: i64) -> Self {
        let engine = engine(lab, node).unwrap_or_else(|| panic!("no dockerd on {node}"));
        let run = File::open(engine.join("run")).unwrap();
        let at = |name: &str| within(&run, name);
        for left in ["docker.true.sock", "docker.skewed.sock", "docker.next.sock"] {
            _ = fs::remove_file(at(left));
        }
        fs::hard_link(at("docker.sock"), at("docker.true.sock")).unwrap();
        let listener = UnixListener::bind(at("docker.skewed.sock")).unwrap();
        let real = fs::metadata(at("docker.sock")).unwrap();
        chown(at("docker.skewed.sock"), Some(real.uid()), Some(real.gid())).unwrap();
        fs::set_permissions(at("docker.skewed.sock"), real.permissions()).unwrap();
        fs::hard_link(at("docker.skewed.sock"), at("docker.next.sock")).unwrap();
        // In one step: nobody finds no engine.
        fs::rename(at("docker.next.sock"), at("docker.sock")).unwrap();
        let ours = fs::metadata(at("docker.sock")).unwrap().ino();
        let shared = Arc::new(Shared { skew: seconds.into(), moved: 0.into(), ending: false.into() });
        let (of, held) = (Arc::clone(&shared), run.try_clone().unwrap());
        let accepting = thread::spawn(move || accept(&listener, &held, &of));
        Self { run, ours, shared, accepting: Some(accepting) }
    }

    pub fn set(&self, seconds: i64) {
        self.shared.skew.store(seconds, Ordering::SeqCst);
    }

    /// How many times it has moved in answers: none means that nobody asks this engine.
    pub fn moved(&self) -> usize {
        self.shared.moved.load(Ordering::SeqCst)
    }
}

impl Drop for SkewedEngine {
    fn drop(&mut self) {
        let at = |name: &str| within(&self.run, name);
        // An engine that was started anew meanwhile has put its own in this place.
        if fs::metadata(at("docker.sock")).is_ok_and(|found| found.ino() == self.ours) {
            _ = fs::rename(at("docker.true.sock"), at("docker.sock"));
        }
        self.shared.skew.store(0, Ordering::SeqCst);
        self.shared.ending.store(true, Ordering::SeqCst);
        let woken = UnixStream::connect(at("docker.skewed.sock")).is_ok();
        if let Some(thread) = self.accepting.take().filter(|_| woken) {
            _ = thread.join();
        }
        for left in ["docker.true.sock", "docker.skewed.sock"] {
            _ = fs::remove_file(at(left));
        }
    }
}

fn within(run: &File, name: &str) -> PathBuf {
    Path::new("/proc/self/fd").join(run.as_raw_fd().to_string()).join(name)
}

/// The root of a node's engine, as this machine sees it.
fn engine(lab: &Lab, node: &str) -> Option<PathBuf> {
    let group = format!("/matrix-lab/{}/node-{node}", lab.name);
    let read = |at: &Path, file: &str| fs::read_to_string(at.join(file)).unwrap_or_default();
    let all = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    let mut engines = all.filter(|at| read(at, "comm").trim() == "dockerd" && read(at, "cgroup").contains(&group));
    engines.next().map(|at| at.join("root"))
}

fn accept(listener: &UnixListener, run: &File, shared: &Arc<Shared>) {
    loop {
        // Who came before the end is served.
        if shared.ending.load(Ordering::SeqCst) {
            _ = listener.set_nonblocking(true);
        }
        let Ok((asking, _)) = listener.accept() else {
            if shared.ending.load(Ordering::SeqCst) {
                return;
            }
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        _ = asking.set_nonblocking(false);
        // An engine that is gone: the connection ends.
        let Ok(answering) = UnixStream::connect(within(run, "docker.true.sock")) else { continue };
        let (from, to) = (asking.try_clone().unwrap(), answering.try_clone().unwrap());
        let (one, other) = (Arc::clone(shared), Arc::clone(shared));
        thread::spawn(move || pass(from, to, &QUESTIONS, || (-one.skew.load(Ordering::SeqCst), None)));
        thread::spawn(move || {
            pass(answering, asking, &ANSWERS, || (other.skew.load(Ordering::SeqCst), Some(&other.moved)));
        });
    }
}

/// Passes on until either side ends. What is no HTTP any more is passed on as it is.
fn pass<'a>(
    mut from: UnixStream,
    mut to: UnixStream,
    forms: &'static [(&'static [u8], Form)],
    how: impl Fn() -> (i64, Option<&'a AtomicUsize>),
) {
    let mut mover = Mover { forms, held: Vec::new() };
    let mut buffer = vec![0; 64 << 10];
    let mut upgraded = false;
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let piece = &buffer[..length];
        upgraded |= piece.starts_with(b"HTTP/1.1 101 ");
        let (seconds, counter) = how();
        let (bytes, count) = if upgraded { (piece.to_vec(), 0) } else { mover.pass(piece, seconds) };
        if let Some(counter) = counter {
            counter.fetch_add(count, Ordering::SeqCst);
        }
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    _ = to.write_all(&mover.held);
    // Half: the other way may have something to say yet.
    _ = to.shutdown(Shutdown::Write);
    _ = from.shutdown(Shutdown::Read);
}

#[test]
fn times_move_wherever_a_piece_ends_and_nothing_else_does() {
    let before = "HTTP/1.1 200 OK\r\nDate: Thu, 26 Nov 2026 23:30:00 GMT\r\n\r\n\
        {\"Created\":1795735800,\"StartedAt\":\"2026-11-26T23:30:00.123456789Z\",\"FinishedAt\":\"0001-01-01T00:00:00Z\",\
        \"timeNano\":1795735800123456789,\"Labels\":{\"built\":\"2026-11-26T23:30:00Z\"}}\n";
    let after = "HTTP/1.1 200 OK\r\nDate: Fri, 27 Nov 2026 01:30:00 GMT\r\n\r\n\
        {\"Created\":1795743000,\"StartedAt\":\"2026-11-27T01:30:00.123456789Z\",\"FinishedAt\":\"0001-01-01T00:00:00Z\",\
        \"timeNano\":1795743000123456789,\"Labels\":{\"built\":\"2026-11-26T23:30:00Z\"}}\n";
    for cut in 0..before.len() {
        let mut mover = Mover { forms: &ANSWERS, held: Vec::new() };
        let (one, other) = before.as_bytes().split_at(cut);
        let (first, second) = (mover.pass(one, 7200), mover.pass(other, 7200));
        assert_eq!(String::from_utf8([first.0, second.0].concat()).unwrap(), after, "cut at {cut}");
        assert_eq!(first.1 + second.1, 4);
        assert!(mover.held.is_empty());
    }
}
