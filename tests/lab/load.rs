//! Requests at a fixed rate, each counted: an open loop, so that a server that stalls is not asked less.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// As many as may wait at once: at 200 a second, a stall of less than half a second delays no later request.
const CONNECTIONS: usize = 96;
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    /// The instance that answered, as the hello program says it.
    pub fn instance(&self) -> Option<&str> {
        self.body.split_once("instance <b>")?.1.split_once("</b>").map(|(id, _)| id)
    }
}

/// One request of a load.
#[derive(Debug)]
struct Asked {
    /// Since the load's begin.
    due: Duration,
    /// From when it was due to the answer's last byte.
    took: Duration,
    path: usize,
    answer: Result<Answer, String>,
}

/// Requests on their way.
#[derive(Debug)]
pub struct Load {
    began: Instant,
    end: Arc<AtomicBool>,
    workers: Vec<JoinHandle<Vec<Asked>>>,
    paths: Vec<String>,
}

/// What came of a load.
#[derive(Debug)]
pub struct Report {
    asked: Vec<Asked>,
    paths: Vec<String>,
}

impl Load {
    /// GETs of these paths in turn, so many a second, until [`Load::stop`].
    pub fn start(varnish: SocketAddr, paths: &[&str], rate: u32) -> Self {
        let began = Instant::now();
        let end = Arc::new(AtomicBool::new(false));
        let next = Arc::new(AtomicUsize::new(0));
        let paths: Vec<String> = paths.iter().map(|p| (*p).to_owned()).collect();
        let worker = |_| {
            let (end, next, paths) = (Arc::clone(&end), Arc::clone(&next), paths.clone());
            thread::spawn(move || {
                let (mut asked, mut connection) = (Vec::new(), None);
                while !end.load(Ordering::SeqCst) {
                    let number = next.fetch_add(1, Ordering::SeqCst);
                    let due = Duration::from_secs(1) * u32::try_from(number).unwrap() / rate;
                    thread::sleep(due.saturating_sub(began.elapsed()));
                    let path = number % paths.len();
                    let answer = ask(&mut connection, varnish, &paths[path]).map_err(|e| e.to_string());
                    asked.push(Asked { due, took: began.elapsed().saturating_sub(due), path, answer });
                }
                asked
            })
        };
        Self { began, workers: (0..CONNECTIONS).map(worker).collect(), end, paths }
    }
    /// Waits until it has gone on for so long.
    pub fn until(&self, after: Duration) {
        thread::sleep(after.saturating_sub(self.began.elapsed()));
    }
    /// Ends it, and waits for every answer.
    pub fn stop(self) -> Report {
        self.end.store(true, Ordering::SeqCst);
        let mut asked: Vec<Asked> = self.workers.into_iter().flat_map(|w| w.join().unwrap()).collect();
        asked.sort_by_key(|a| a.due);
        let report = Report { asked, paths: self.paths };
        _ = writeln!(io::stderr(), "  load: {report}");
        report
    }
}

impl Report {
    pub fn total(&self) -> usize {
        self.asked.len()
    }
    /// Requests that got no 200.
    pub fn lost(&self) -> usize {
        self.asked.iter().filter(|a| !a.is_good()).count()
    }
    /// Every request was answered by 200, and there were enough to say so.
    #[track_caller]
    pub fn none_lost(&self) {
        assert!(self.total() > 200, "too few requests to say anything: {self}");
        assert_eq!(self.lost(), 0, "{self}");
    }
    /// From the first to the last request that ended so; no status: without an answer.
    pub fn span_of(&self, so: impl Fn(Option<u16>) -> bool) -> Duration {
        let status = |a: &Asked| a.answer.as_ref().ok().map(|a| a.status);
        let mut such = self.asked.iter().filter(|a| so(status(a))).map(|a| a.due);
        let first = such.next().unwrap_or_default();
        such.next_back().unwrap_or(first).saturating_sub(first)
    }
    /// How many requests to a path each instance answered.
    pub fn by_instance(&self, path: &str) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for asked in self.asked.iter().filter(|a| self.paths[a.path] == path) {
            if let Some(id) = asked.answer.as_ref().ok().and_then(Answer::instance) {
                *counts.entry(id.to_owned()).or_default() += 1;
            }
        }
        counts
    }
    /// How long so many in a hundred took at most; 100: the longest.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut all: Vec<_> = self.asked.iter().map(|a| a.took).collect();
        all.sort_unstable();
        all.get((all.len() * percent / 100).min(all.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |p: usize| self.percentile(p).as_secs_f64() * 1000.0;
        let (total, lost) = (self.total(), self.lost());
        write!(f, "{total} requests, {lost} lost, p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", ms(50), ms(99), ms(100))?;
        for asked in self.asked.iter().filter(|a| !a.is_good()).take(12) {
            let why = match &asked.answer {
                Ok(answer) => format!("{} {}", answer.status, answer.body.lines().next().unwrap_or_default()),
                Err(error) => error.clone(),
            };
            write!(
                f,
                "\n    at {:.3} s {} after {} ms: {why}",
                asked.due.as_secs_f64(),
                self.paths[asked.path],
                asked.took.as_millis()
            )?;
        }
        Ok(())
    }
}

impl Asked {
    fn is_good(&self) -> bool {
        self.answer.as_ref().is_ok_and(|a| a.status == 200)
    }
}

/// One GET on a connection that is kept; a new one where there is none. Nothing is tried twice.
fn ask(connection: &mut Option<BufReader<TcpStream>>, to: SocketAddr, path: &str) -> io::Result<Answer> {
    let mut stream = match connection.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            BufReader::new(stream)
        }
    };
    write!(stream.get_mut(), "GET {path} HTTP/1.1\r\nHost: load\r\n\r\n")?;
    let (answer, keep) = read(&mut stream)?;
    *connection = keep.then_some(stream);
    Ok(answer)
}

/// One request by any method on a connection of its own.
pub fn request(to: SocketAddr, head: &str) -> io::Result<Answer> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(format!("{head}\r\nHost: load\r\nConnection: close\r\n\r\n").as_bytes())?;
    Ok(read(&mut stream)?.0)
}

fn read(stream: &mut BufReader<TcpStream>) -> io::Result<(Answer, bool)> {
    let broken = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(broken("closed without an answer"));
    }
    let status = line.split_whitespace().nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| broken("no status"))?;
    let (mut length, mut chunked, mut keep) = (None, false, true);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        match line.split_once(':').map(|(name, value)| (name, value.trim())) {
            None if line.is_empty() => break,
            Some(("content-length", value)) => length = value.parse::<u64>().ok(),
            Some(("transfer-encoding", "chunked")) => chunked = true,
            Some(("connection", "close")) => keep = false,
            _ => {}
        }
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            let mut size = String::new();
            stream.read_line(&mut size)?;
            let size = u64::from_str_radix(size.trim(), 16).map_err(|_| broken("no chunk"))?;
            if stream.take(size + 2).read_to_end(&mut body)? < usize::try_from(size).unwrap() + 2 {
                return Err(broken("cut off"));
            }
            body.truncate(body.len() - 2);
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = length {
        if stream.take(length).read_to_end(&mut body)? < usize::try_from(length).unwrap() {
            return Err(broken("cut off"));
        }
    } else {
        keep = false;
        stream.read_to_end(&mut body)?;
    }
    let mut text = String::new();
    _ = write!(text, "{}", String::from_utf8_lossy(&body));
    Ok((Answer { status, body: text }, keep))
}
