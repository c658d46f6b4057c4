//! Where the API listens: a unix socket for whoever may open it, TCP for reading and, with the token, for steering.

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use http::{Method, StatusCode, header};
use sha2::{Digest, Sha256};
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    task::JoinSet,
};

use crate::manager::Manager;

use super::{ApiError, router};

/// Why the API is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A socket cannot be had.
    #[error("cannot listen on {place}")]
    Listen {
        /// The socket's path or address.
        place: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Another manager answers on the socket.
    #[error("another manager answers on {}", .0.display())]
    Taken(PathBuf),
    /// The token's file cannot be read.
    #[error("cannot read the token from {file}")]
    Token {
        /// The file.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Serves until the manager stops. `ready` is called once every socket listens.
///
/// # Errors
/// When a socket cannot be had.
pub async fn serve(manager: Manager, pages: Router, ready: impl FnOnce()) -> Result<(), ServeError> {
    let config = manager.config().clone();
    let path = config.run.join("matrix.sock");
    let unix = unix_listener(&path).await?;
    let token = match &config.token_file {
        None => None,
        Some(file) => Some(
            tokio::fs::read_to_string(file)
                .await
                .map(|text| text.trim().to_owned())
                .map_err(|source| ServeError::Token { file: file.clone(), source })?,
        ),
    };
    let stop = manager.stopped().clone();
    let steering = router(manager).merge(pages);
    let reading = steering.clone().layer(middleware::from_fn_with_state(token, only_reading));
    let mut tasks = JoinSet::new();
    for address in &config.listen {
        let listener = tcp_listener(*address).await?;
        let ended = stop.clone().cancelled_owned();
        tasks.spawn(axum::serve(listener, reading.clone()).with_graceful_shutdown(ended).into_future());
    }
    tasks.spawn(axum::serve(unix, steering).with_graceful_shutdown(stop.clone().cancelled_owned()).into_future());
    ready();
    stop.cancelled().await;
    // Long streams end with the manager; whoever still hangs on is cut off.
    _ = tokio::time::timeout(std::time::Duration::from_secs(2), tasks.join_all()).await;
    _ = std::fs::remove_file(&path);
    Ok(())
}

async fn tcp_listener(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { place: address.to_string(), source })
}

async fn unix_listener(path: &Path) -> Result<UnixListener, ServeError> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(ServeError::Taken(path.to_owned()));
    }
    let wrap = |source| ServeError::Listen { place: path.display().to_string(), source };
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(wrap(e)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(wrap)?;
    // Whoever opens it steers the cloud: its owner and group only.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(wrap)?;
    Ok(listener)
}

async fn only_reading(State(token): State<Option<String>>, request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let given = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    // Hashes are compared: the time taken says nothing of the token.
    let same = |a: &str, b: &str| Sha256::digest(a) == Sha256::digest(b);
    match (reads, token, given) {
        (true, _, _) => next.run(request).await,
        (false, Some(token), Some(given)) if !token.is_empty() && same(&token, given) => next.run(request).await,
        _ => ApiError::new(StatusCode::FORBIDDEN, "over TCP this API only shows")
            .hint("steer over the manager's unix socket, or with --token where the configuration names a token_file")
            .into_response(),
    }
}
