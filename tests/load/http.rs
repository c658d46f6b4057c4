//! HTTP/1.1 by hand: what was sent and what was lost is known to the byte.

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

/// Longer than anything the gateway waits for: what is not answered then is lost.
const PATIENCE: Duration = Duration::from_secs(70);
/// Varnish closes connections that are idle for 5 s; a request sent just then would be lost to nobody's fault.
const IDLE: Duration = Duration::from_secs(3);

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Answer {
    /// The instance that answered, as the hello program says it.
    pub fn instance(&self) -> Option<&str> {
        match self.body.split_once("instance <b>") {
            Some((_, rest)) => rest.split_once("</b>").map(|(id, _)| id),
            None => self.body.split_once(" got ")?.0.rsplit(' ').next(),
        }
    }
}

type Connection = BufReader<TcpStream>;

/// Connections to one place that are kept.
#[derive(Debug)]
pub struct Pool {
    to: SocketAddr,
    idle: RefCell<Vec<(Instant, Connection)>>,
}

impl Pool {
    pub fn new(to: SocketAddr) -> Self {
        Self { to, idle: RefCell::default() }
    }

    /// Sends these bytes and reads one answer. Nothing is tried twice.
    pub async fn ask(&self, bytes: &str, fresh: bool) -> io::Result<Answer> {
        timeout(PATIENCE, self.asked(bytes, fresh)).await.unwrap_or_else(|_| Err(silent()))
    }

    async fn asked(&self, bytes: &str, fresh: bool) -> io::Result<Answer> {
        let kept = if fresh { None } else { self.kept() };
        let mut connection = match kept {
            Some(connection) => connection,
            None => connect(self.to).await?,
        };
        connection.write_all(bytes.as_bytes()).await?;
        let (answer, keep) = read(&mut connection).await?;
        if keep && !fresh {
            self.idle.borrow_mut().push((Instant::now(), connection));
        }
        Ok(answer)
    }

    /// The one used last, if the other side has not closed it.
    fn kept(&self) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|(since, _)| since.elapsed() < IDLE);
        while let Some((_, connection)) = idle.pop() {
            let open =
                matches!(connection.get_ref().try_read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock);
            if open {
                return Some(connection);
            }
        }
        None
    }
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {} s", PATIENCE.as_secs()))
}

pub(super) async fn connect(to: SocketAddr) -> io::Result<Connection> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

/// One request by any method on a connection of its own.
pub fn request(to: SocketAddr, head: &str) -> io::Result<Answer> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let bytes = format!("{head}\r\nHost: load\r\nConnection: close\r\n\r\n");
    runtime.block_on(async {
        let pool = Pool::new(to);
        timeout(Duration::from_secs(30), pool.ask(&bytes, true)).await.unwrap_or_else(|_| Err(silent()))
    })
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Reads a head: its status and its headers, names in lower case.
pub(super) async fn head(stream: &mut Connection) -> io::Result<(u16, Vec<(String, String)>)> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Err(broken("closed without an answer"));
    }
    let status = line.split_whitespace().nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| broken("no status"))?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(broken("cut off in its head"));
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok((status, headers));
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }
}

async fn read(stream: &mut Connection) -> io::Result<(Answer, bool)> {
    let (status, headers) = head(stream).await?;
    let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.to_ascii_lowercase());
    let mut keep = header("connection").is_none_or(|value| value != "close");
    let mut body = Vec::new();
    if header("transfer-encoding").is_some_and(|value| value == "chunked") {
        loop {
            let mut size = String::new();
            stream.read_line(&mut size).await?;
            let size = usize::from_str_radix(size.trim(), 16).map_err(|_| broken("no chunk"))?;
            exactly(stream, size + 2, &mut body).await?;
            body.truncate(body.len() - 2);
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = header("content-length").and_then(|value| value.parse().ok()) {
        exactly(stream, length, &mut body).await?;
    } else {
        keep = false;
        stream.read_to_end(&mut body).await?;
    }
    Ok((Answer { status, body: String::from_utf8_lossy(&body).into_owned() }, keep))
}

async fn exactly(stream: &mut Connection, length: usize, body: &mut Vec<u8>) -> io::Result<()> {
    let before = body.len();
    stream.take(length as u64).read_to_end(body).await?;
    if body.len() - before == length { Ok(()) } else { Err(broken("cut off")) }
}
