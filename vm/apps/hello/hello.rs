//! A web application to try a cloud with: it says which instance answered.
//!
//! Needs nothing but the kernel, so that an image of it can stand on nothing. Any path answers; besides
//! `/health`, `/slow?ms=N`, `/status?code=N`, POST says back what it got, and a websocket what it hears. With LEDGER (a
//! folder) every POST's X-Request-Id is written down there, `begun` when its head was read and `done` when its body was.
//! With FAILS=N every Nth answer, but for `/health`, is a 500.
//! SIGTERM: what has begun is finished, then it ends.

mod websocket;

use std::{
    env,
    fmt::Write as _,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::{SigSet, Signal};

/// A header or a line longer than this is no honest one.
const MAX_HEAD: u64 = 64 << 10;
/// A connection that says nothing for this long is closed.
const IDLE: Duration = Duration::from_secs(60);
/// What is said back of a body, at most.
const MAX_ECHO: u64 = 64 << 10;
/// What has begun when SIGTERM comes may take this long.
const FINISH: Duration = Duration::from_secs(25);

struct Server {
    app: String,
    instance: String,
    stopping: AtomicBool,
    busy: AtomicUsize,
    ledger: Option<fs::File>,
    /// Every which answer is a 500; 0: none.
    fails: usize,
    answers: AtomicUsize,
}

struct Request {
    method: String,
    target: String,
    length: u64,
    chunked: bool,
    keep: bool,
    expects: bool,
    id: Option<String>,
    /// The key of a websocket's handshake.
    websocket: Option<String>,
}

fn main() -> ExitCode {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    // Before any thread is made: all of them leave these signals to the one that waits.
    if signals.thread_block().is_err() {
        return ExitCode::FAILURE;
    }
    let port = env::var("PORT").ok().and_then(|p| p.parse().ok()).unwrap_or(8080u16);
    let listener = match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("hello: cannot listen on port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let instance = env::var("HOSTNAME").unwrap_or_else(|_| host.trim().to_owned());
    // Without it, or without room for it, everything else goes on.
    let ledger = env::var_os("LEDGER").and_then(|folder| {
        let file = std::path::Path::new(&folder).join(instance.replace('/', "_"));
        fs::OpenOptions::new().create(true).append(true).open(file).ok()
    });
    let server = Arc::new(Server {
        ledger,
        fails: env::var("FAILS").ok().and_then(|n| n.parse().ok()).unwrap_or(0),
        answers: AtomicUsize::new(0),
        app: env::var("APP").unwrap_or_else(|_| "hello".to_owned()),
        instance,
        stopping: AtomicBool::new(false),
        busy: AtomicUsize::new(0),
    });
    println!("hello: {} as {} on port {port}", server.app, server.instance);
    let accepting = Arc::clone(&server);
    thread::spawn(move || accept(&listener, &accepting));
    _ = signals.wait();
    server.stopping.store(true, Ordering::SeqCst);
    let until = Instant::now() + FINISH;
    while server.busy.load(Ordering::SeqCst) > 0 && Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
    }
    println!("hello: {} ends", server.instance);
    ExitCode::SUCCESS
}

fn accept(listener: &TcpListener, server: &Arc<Server>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // Out of file descriptors: asking again at once would burn the processor.
            thread::sleep(Duration::from_millis(10));
            continue;
        };
        if server.stopping.load(Ordering::SeqCst) {
            continue;
        }
        let server = Arc::clone(server);
        // Small stacks: many instances with many idle connections share one machine.
        _ = thread::Builder::new().stack_size(128 << 10).spawn(move || serve(&server, &stream));
    }
}

fn serve(server: &Server, stream: &TcpStream) {
    _ = stream.set_nodelay(true);
    _ = stream.set_read_timeout(Some(IDLE));
    let mut reader = BufReader::new(stream);
    while let Ok([_, ..]) = reader.fill_buf() {
        server.busy.fetch_add(1, Ordering::SeqCst);
        let keep = match read_request(&mut reader) {
            Ok(Some(request)) => answer(server, &request, &mut reader, stream).unwrap_or(false),
            _ => {
                _ = respond(stream, "GET", 400, "text/plain", b"bad request\n", false);
                false
            }
        };
        server.busy.fetch_sub(1, Ordering::SeqCst);
        if !keep {
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Request>> {
    let mut head = reader.by_ref().take(MAX_HEAD);
    let mut line = String::new();
    head.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next()) else {
        return Ok(None);
    };
    let mut request = Request {
        method: method.to_owned(),
        target: target.to_owned(),
        length: 0,
        chunked: false,
        keep: version == "HTTP/1.1",
        expects: false,
        id: None,
        websocket: None,
    };
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(Some(request));
        }
        let Some((name, value)) = line.split_once(':') else { return Ok(None) };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => match value.parse() {
                Ok(length) => request.length = length,
                Err(_) => return Ok(None),
            },
            "transfer-encoding" => request.chunked = value.eq_ignore_ascii_case("chunked"),
            "connection" if value.eq_ignore_ascii_case("close") => request.keep = false,
            "connection" if value.eq_ignore_ascii_case("keep-alive") => request.keep = true,
            "expect" => request.expects = true,
            "x-request-id" => request.id = Some(value.chars().filter(char::is_ascii_graphic).take(100).collect()),
            "sec-websocket-key" => request.websocket = Some(value.to_owned()),
            _ => {}
        }
    }
}

/// Answers; says whether the connection stays.
fn answer(
    server: &Server,
    request: &Request,
    reader: &mut BufReader<&TcpStream>,
    stream: &TcpStream,
) -> io::Result<bool> {
    if request.expects {
        (&mut &*stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    if let Some(key) = request.websocket.as_ref().filter(|_| request.method == "GET") {
        let accept = websocket::accept(key);
        let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
        (&mut &*stream).write_all(format!("{head}Sec-WebSocket-Accept: {accept}\r\n\r\n").as_bytes())?;
        websocket::echo(reader, stream, &server.stopping)?;
        return Ok(false);
    }
    let posts = request.method == "POST" || request.method == "PUT";
    let note = |what: &str| {
        if let (true, Some(mut ledger), Some(id)) = (posts, server.ledger.as_ref(), &request.id) {
            // One write: lines of many threads do not mix.
            _ = ledger.write_all(format!("{what} {id}\n").as_bytes());
        }
    };
    note("begun");
    let mut body = Body::default();
    if request.chunked {
        chunks(reader, &mut body)?;
    } else {
        count(reader, request.length, &mut body)?;
    }
    note("done");
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let number = |name: &str| {
        query.split('&').filter_map(|p| p.split_once('=')).find(|(n, _)| *n == name)?.1.parse::<u64>().ok()
    };
    // Behind a gateway that does not cut the route's path off, the last part says what is wanted.
    let what = path.rsplit('/').next().unwrap_or_default();
    if what == "slow" {
        thread::sleep(Duration::from_millis(number("ms").unwrap_or(1000).min(60_000)));
    }
    let keep = request.keep && !server.stopping.load(Ordering::SeqCst);
    let code = match what {
        "status" => {
            number("code").and_then(|c| u16::try_from(c).ok()).filter(|c| (200..=599).contains(c)).unwrap_or(200)
        }
        "health" => 200,
        _ if server.fails > 0 && server.answers.fetch_add(1, Ordering::Relaxed) % server.fails == server.fails - 1 => {
            500
        }
        _ => 200,
    };
    let (kind, text) = if what == "health" {
        ("text/plain", b"ok\n".to_vec())
    } else if posts {
        let mut said = format!("{} {} got {} bytes\n", server.app, server.instance, body.length).into_bytes();
        said.extend(body.kept);
        ("text/plain", said)
    } else {
        ("text/html; charset=utf-8", page(server, path).into_bytes())
    };
    respond(stream, &request.method, code, kind, &text, keep)?;
    Ok(keep)
}

fn page(server: &Server, path: &str) -> String {
    let mut page = String::new();
    let (app, instance, path) = (escaped(&server.app), escaped(&server.instance), escaped(path));
    _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{app}</title></head>\n\
         <body><h1>{app}</h1><p>instance <b>{instance}</b></p><p>path <code>{path}</code></p></body></html>\n"
    );
    page
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn respond(mut stream: &TcpStream, method: &str, code: u16, kind: &str, body: &[u8], keep: bool) -> io::Result<()> {
    let connection = if keep { "keep-alive" } else { "close" };
    let bodyless = code == 204 || code == 304;
    let length = if bodyless { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let mut bytes = format!(
        "HTTP/1.1 {code} {}\r\nContent-Type: {kind}\r\n{length}Connection: {connection}\r\n\r\n",
        if code < 400 { "OK" } else { "Error" }
    )
    .into_bytes();
    if method != "HEAD" && !bodyless {
        bytes.extend_from_slice(body);
    }
    stream.write_all(&bytes)
}

/// What came of a body: how many bytes, and the first of them.
#[derive(Default)]
struct Body {
    length: u64,
    kept: Vec<u8>,
}

/// Reads a body, or a part of one, to its end.
fn count(reader: &mut impl Read, length: u64, body: &mut Body) -> io::Result<()> {
    let room = MAX_ECHO.saturating_sub(body.kept.len() as u64).min(length);
    let kept = reader.by_ref().take(room).read_to_end(&mut body.kept)? as u64;
    let read = kept + io::copy(&mut reader.take(length - kept), &mut io::sink())?;
    body.length += read;
    if read == length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn chunks(reader: &mut BufReader<&TcpStream>, body: &mut Body) -> io::Result<()> {
    loop {
        let mut line = String::new();
        reader.by_ref().take(MAX_HEAD).read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim().split(';').next().unwrap_or_default(), 16)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        count(reader, size, body)?;
        // The line break behind a chunk; the last chunk's trailers are not for us.
        line.clear();
        reader.by_ref().take(MAX_HEAD).read_line(&mut line)?;
        if size == 0 {
            return Ok(());
        }
    }
}
