//! `POST /v1/gc`: what would go, what happens, how it ended, as NDJSON.
//!
//! Who hangs up stops watching, not the cleaning.

use std::{sync::Mutex, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::{
    clean::Forecast,
    manager::{
        Manager, chain,
        events::Event,
        gc::{Cleaned, GcError},
    },
};

use super::ApiError;

/// How long something under way is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GcRequest {
    /// Whether only to say what would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum GcLine {
    /// What goes. Always first; under `dry_run` all there is.
    Forecast(Forecast),
    /// Something happened.
    Event(Event),
    /// How it ended. Always last.
    End(Cleaned),
}

impl From<GcError> for ApiError {
    fn from(error: GcError) -> Self {
        match error {
            GcError::Busy | GcError::UnderWay(_) => {
                Self::conflict(error.to_string()).hint("`matrix status` shows what is under way; try again after it")
            }
            GcError::State(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, chain(&error)),
        }
    }
}

pub(super) async fn gc(State(manager): State<Manager>, Json(request): Json<GcRequest>) -> Result<Response, ApiError> {
    let (lines, receiver) = mpsc::channel(64);
    if request.dry_run {
        let forecast = manager.gc_forecast().await?;
        _ = lines.send(GcLine::Forecast(forecast)).await;
    } else {
        let (begun, begins) = oneshot::channel();
        tokio::spawn(follow(manager, begun, lines));
        // Dropped without a word: the manager ends.
        begins.await.unwrap_or(Err(GcError::Busy))?;
    }
    let body = futures_util::stream::unfold(receiver, async |mut receiver| {
        let line = receiver.recv().await?;
        let mut text = serde_json::to_vec(&line).unwrap_or_default();
        text.push(b'\n');
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(text)), receiver))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response())
}

/// Cleans, and sends lines to whoever still listens.
async fn follow(manager: Manager, begun: oneshot::Sender<Result<(), GcError>>, lines: mpsc::Sender<GcLine>) {
    let mut events = manager.events().subscribe();
    let begun = Mutex::new(Some(begun));
    let begins = |result| _ = begun.lock().ok().and_then(|mut begun| begun.take()).map(|begun| begun.send(result));
    let cleaning = manager.gc(PATIENCE, |forecast| {
        _ = lines.try_send(GcLine::Forecast(forecast.clone()));
        begins(Ok(()));
    });
    let mut cleaning = std::pin::pin!(cleaning);
    let tell = async |event: Event| {
        if event.subject == "gc" {
            _ = lines.send(GcLine::Event(event)).await;
        }
    };
    let result = loop {
        tokio::select! {
            result = &mut cleaning => break result,
            event = events.recv() => if let Ok(event) = event { tell(event).await },
        }
    };
    while let Ok(event) = events.try_recv() {
        tell(event).await;
    }
    match result {
        Ok(cleaned) => _ = lines.send(GcLine::End(cleaned)).await,
        Err(error) => begins(Err(error)),
    }
}
