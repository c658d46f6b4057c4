//! Websockets that are held open: each says something, and waits to hear it back.

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};

use super::{http, report::Sockets};

const PAUSE: Duration = Duration::from_millis(250);
/// An echo that takes longer means that the socket is lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// How a socket ended.
enum End {
    /// The load is over.
    Ours,
    /// The server said goodbye.
    Closed,
}

/// Holds one open, and a new one when that ends, until the load does.
pub(super) async fn hold(
    to: SocketAddr,
    path: &str,
    number: usize,
    began: Instant,
    end: &AtomicBool,
    sockets: &RefCell<Sockets>,
) {
    while !end.load(Ordering::SeqCst) {
        match one(to, path, number, end, sockets).await {
            Ok(End::Ours) => return,
            Ok(End::Closed) => sockets.borrow_mut().closed += 1,
            Err(error) => {
                let what = format!("{path}: {error}");
                sockets.borrow_mut().broken.push((began.elapsed(), what));
                sleep(PAUSE).await;
            }
        }
    }
}

async fn one(
    to: SocketAddr,
    path: &str,
    number: usize,
    end: &AtomicBool,
    sockets: &RefCell<Sockets>,
) -> io::Result<End> {
    let silent = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no word in {} s", PATIENCE.as_secs()));
    let mut stream = timeout(PATIENCE, http::connect(to)).await.map_err(silent)??;
    let upgrade = format!(
        "GET {path}socket HTTP/1.1\r\nHost: load\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(upgrade.as_bytes()).await?;
    let (status, headers) = timeout(PATIENCE, http::head(&mut stream)).await.map_err(silent)??;
    let accepted = headers.iter().any(|(n, v)| n == "sec-websocket-accept" && v == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    if status != 101 || !accepted {
        return Err(io::Error::other(format!("not opened: {status}")));
    }
    sockets.borrow_mut().opened += 1;
    for turn in 0.. {
        if end.load(Ordering::SeqCst) {
            stream.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await?;
            return Ok(End::Ours);
        }
        let word = format!("socket {number} turn {turn}");
        let length = u8::try_from(word.len()).unwrap_or(0);
        // Masked with zeros, which leaves the words as they are.
        let frame = [&[0x81, 0x80 | length, 0, 0, 0, 0], word.as_bytes()].concat();
        stream.write_all(&frame).await?;
        sockets.borrow_mut().sent += 1;
        let mut head = [0; 2];
        timeout(PATIENCE, stream.read_exact(&mut head)).await.map_err(silent)??;
        let mut body = vec![0; usize::from(head[1] & 0x7f)];
        timeout(PATIENCE, stream.read_exact(&mut body)).await.map_err(silent)??;
        match head[0] & 0x0f {
            8 => return Ok(End::Closed),
            1 if body == word.as_bytes() => sockets.borrow_mut().echoed += 1,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "something else came back")),
        }
        sleep(PAUSE).await;
    }
    Ok(End::Ours)
}
