//! One question to an instance: does it answer as its plan says? What was asked and answered is kept for people.
//!
//! Does not repeat, does not decide.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};

use crate::{model::Port, plan::Check};

/// Why an instance does not serve yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// Nothing accepts there.
    #[error("no connection to {address}: {why}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        why: String,
    },
    /// It accepted and said nothing, or not in time.
    #[error("{asked}: no answer within {millis} ms")]
    Silent {
        /// `GET http://10.10.10.25:20001/`
        asked: String,
        /// The time allowed.
        millis: u32,
    },
    /// It answered something that is not HTTP, or hung up.
    #[error("{asked}: {why}")]
    Broken {
        /// `GET http://10.10.10.25:20001/`
        asked: String,
        /// What happened.
        why: String,
    },
    /// It answered another status.
    #[error("{asked} answered {got}, wanted {wanted}{excerpt}")]
    Status {
        /// `GET http://10.10.10.25:20001/`
        asked: String,
        /// The status it gave.
        got: u16,
        /// `200`, or `any below 500`.
        wanted: String,
        /// `: ` and the beginning of its body, or nothing.
        excerpt: String,
    },
}

/// Asks once. Answers the HTTP status it gave (none for a TCP check).
///
/// # Errors
/// When it does not serve.
pub async fn probe(address: IpAddr, port: Port, check: &Check, millis: u32) -> Result<Option<u16>, ProbeError> {
    let address = SocketAddr::new(address, port.get());
    let connect_error = |why: String| ProbeError::Connect { address, why };
    let allowed = Duration::from_millis(u64::from(millis));
    let connected = timeout(allowed, TcpStream::connect(address)).await;
    let stream = match connected {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) => return Err(connect_error(e.to_string())),
        Err(_) => return Err(connect_error(format!("no answer within {millis} ms"))),
    };
    let Check::Http { path, host, status } = check else { return Ok(None) };
    let asked = format!("GET http://{address}{path}");
    let host = host.clone().unwrap_or_else(|| address.to_string());
    let exchange = async {
        let broken = |e: &dyn std::error::Error| ProbeError::Broken { asked: asked.clone(), why: e.to_string() };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
        let request = Request::get(path)
            .header(header::HOST, host)
            .header(header::USER_AGENT, "matrix-health")
            .header(header::CONNECTION, "close")
            .body(Empty::<Bytes>::new())
            .map_err(|e| broken(&e))?;
        let talk = async {
            let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
            let got = response.status().as_u16();
            let good = status.map_or(got < 500, |wanted| wanted == got);
            if good {
                return Ok(Some(got));
            }
            let body = Limited::new(response.into_body(), 16 << 10).collect().await;
            let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            Err(ProbeError::Status {
                asked: asked.clone(),
                got,
                wanted: status.map_or_else(|| "any below 500".to_owned(), |wanted| wanted.to_string()),
                excerpt: excerpt(&body),
            })
        };
        tokio::select! {
            answer = talk => answer,
            // The connection is driven beside the request; its own end is told by the request.
            () = async { _ = connection.await; std::future::pending().await } => unreachable!("pending"),
        }
    };
    timeout(allowed, exchange).await.unwrap_or_else(|_| Err(ProbeError::Silent { asked: asked.clone(), millis }))
}

/// What a port says to a stranger at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Knock {
    /// It lets him in.
    Accepted,
    /// Somebody is there and says no.
    Refused,
    /// Nobody says anything.
    Silent,
}

/// Opens a connection and closes it.
pub async fn knock(address: IpAddr, port: Port, within: Duration) -> Knock {
    use std::io::ErrorKind;
    match timeout(within, TcpStream::connect((address, port.get()))).await {
        Ok(Ok(_)) => Knock::Accepted,
        Ok(Err(error)) => match error.kind() {
            ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Knock::Silent,
            // Also what goes wrong on this side: it says nothing of the other.
            _ => Knock::Refused,
        },
        Err(_) => Knock::Silent,
    }
}

fn excerpt(body: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(body).split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() { String::new() } else { format!(": {}", text.chars().take(120).collect::<String>()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    async fn serve(answer: &'static str) -> Port {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                _ = stream.read(&mut request).await;
                _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Port::new(port).expect("a port")
    }

    #[tokio::test]
    async fn answers_are_told_apart() {
        let local = IpAddr::from([127, 0, 0, 1]);
        let http = |status| Check::Http { path: "/health".into(), host: None, status };
        let ok = serve("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(probe(local, ok, &http(None), 1000).await, Ok(Some(404)));
        let error = probe(local, ok, &http(Some(200)), 1000).await.expect_err("not 200");
        assert!(error.to_string().contains("/health answered 404, wanted 200"), "{error}");
        let bad = serve("HTTP/1.1 500 Oops\r\nContent-Length: 9\r\n\r\nno\nluck\u{7}\n").await;
        let error = probe(local, bad, &http(None), 1000).await.expect_err("500");
        assert!(error.to_string().ends_with("answered 500, wanted any below 500: no luck\u{7}"), "{error}");
        let silent = serve("").await;
        assert_eq!(probe(local, silent, &Check::Tcp, 1000).await, Ok(None));
        assert!(matches!(probe(local, silent, &http(None), 300).await, Err(ProbeError::Broken { .. })));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let free = Port::new(listener.local_addr().expect("an address").port()).expect("a port");
        assert_eq!(knock(local, free, Duration::from_secs(1)).await, Knock::Accepted);
        drop(listener);
        assert_eq!(knock(local, free, Duration::from_secs(1)).await, Knock::Refused);
        assert!(matches!(probe(local, free, &Check::Tcp, 300).await, Err(ProbeError::Connect { .. })));
    }
}
