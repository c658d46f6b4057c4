//! The manager's API as the command line calls it: over its unix socket, or over TCP with a token.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::{TcpStream, UnixStream};

use crate::api::ErrorBody;

use super::{Exit, Failure, Global};

/// Where the manager listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManagerAddress {
    /// A unix socket.
    Socket(PathBuf),
    /// `HOST:PORT`, written `http://HOST:PORT`.
    Http(String),
}
impl FromStr for ManagerAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "is neither a socket's absolute path nor http://HOST:PORT".to_owned();
        if let Some(authority) = text.strip_prefix("http://") {
            let authority = authority.trim_end_matches('/');
            return match authority.parse::<http::uri::Authority>() {
                Ok(parsed) if parsed.port_u16().is_some() => Ok(Self::Http(authority.to_owned())),
                _ => Err(wrong()),
            };
        }
        let path = text.strip_prefix("unix://").unwrap_or(text);
        if path.starts_with('/') { Ok(Self::Socket(path.into())) } else { Err(wrong()) }
    }
}
impl fmt::Display for ManagerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Http(authority) => write!(f, "http://{authority}"),
        }
    }
}

/// How long a TCP connection to the manager may take.
const CONNECT: Duration = Duration::from_secs(5);

/// A way to the manager. Each call is a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    address: ManagerAddress,
    token: Option<String>,
}

/// The lines of an NDJSON answer, as they come.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    buffer: BytesMut,
}

impl Client {
    /// The manager these options name.
    pub fn new(global: &Global) -> Self {
        Self { address: global.manager.clone(), token: global.token.clone() }
    }

    /// `GET path`, the answer read as JSON.
    ///
    /// # Errors
    /// When the manager is not reached, refuses, or answers something else.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let response = self.request(Method::GET, path, Bytes::new()).await?;
        self.read(response).await
    }

    /// `method path` with a JSON body, the answer read as JSON.
    ///
    /// # Errors
    /// When the manager is not reached, refuses, or answers something else.
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let response = self.request(method, path, json(body)?).await?;
        self.read(response).await
    }

    /// `method path` with a JSON body, the answer read line by line as it comes.
    ///
    /// # Errors
    /// When the manager is not reached or refuses.
    pub async fn stream(&self, method: Method, path: &str, body: &impl Serialize) -> Result<Lines, Failure> {
        let response = self.request(method, path, json(body)?).await?;
        Ok(Lines { body: response.into_body(), buffer: BytesMut::new() })
    }

    async fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Incoming>, Failure> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "matrix");
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .body(Full::new(body))
            .map_err(|e| Failure::invalid(format!("cannot ask the manager for {path}: {e}")))?;
        let response = match &self.address {
            ManagerAddress::Socket(path) => {
                let stream = UnixStream::connect(path).await.map_err(|e| self.unreachable(&e))?;
                self.exchange(TokioIo::new(stream), request).await?
            }
            ManagerAddress::Http(authority) => {
                let connecting = tokio::time::timeout(CONNECT, TcpStream::connect(authority)).await;
                let stream = connecting.map_err(|e| self.unreachable(&e))?.map_err(|e| self.unreachable(&e))?;
                self.exchange(TokioIo::new(stream), request).await?
            }
        };
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
    }

    async fn exchange<S>(&self, stream: S, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failure>
    where
        S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(stream).await.map_err(|e| self.unreachable(&e))?;
        tokio::spawn(connection);
        sender.send_request(request).await.map_err(|e| self.unreachable(&e))
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> Failure {
        Failure::unreachable(format!("cannot reach the manager at {}: {error}", self.address)).hint(
            "is `matrix serve` running here? Name another with --manager or MATRIX_MANAGER (`matrix lab env` prints a lab's)",
        )
    }

    async fn refusal(&self, response: Response<Incoming>) -> Failure {
        let status = response.status();
        let exit = match status {
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY => Exit::Invalid,
            _ => Exit::Failed,
        };
        let bytes = response.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => Failure { exit, message: body.error, hint: body.hint },
            Err(_) => Failure { exit, message: format!("the manager answered {status}"), hint: None },
        }
    }

    async fn read<T: DeserializeOwned>(&self, response: Response<Incoming>) -> Result<T, Failure> {
        let bytes = response.into_body().collect().await.map_err(|e| self.unreachable(&e))?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|e| {
            Failure::failed(format!("cannot read the manager's answer: {e}"))
                .hint("are the manager and this command of the same version?")
        })
    }
}

impl Lines {
    /// The next line's value; none at the end.
    ///
    /// # Errors
    /// When the connection breaks or a line is not of this shape.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        loop {
            if let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|e| Failure::failed(format!("cannot read the manager's answer: {e}")));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(e)) => {
                    return Err(Failure::unreachable(format!("the manager went away: {e}"))
                        .hint("what was accepted goes on when it is back: see `matrix status`"));
                }
            }
        }
    }
}

fn json(value: &impl Serialize) -> Result<Bytes, Failure> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|e| Failure::failed(format!("cannot write JSON: {e}")))
}
