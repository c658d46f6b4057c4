//! `POST /v1/deploy`, `/v1/rollback`, `/v1/activate` and `/v1/follow`: a plan's text, or a release's number, in; NDJSON
//! out: what changes, what happens, how it ended. `POST /v1/abort` ends it.
//!
//! Who hangs up stops watching, not the release.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc};

use crate::{
    manager::{Manager, Progress, Rollback, Submission, SubmitError, Submitted, events::Event},
    model::Timestamp,
    plan::{self, Diagnostic},
    release::{Ending, State as Ended},
};

use super::ApiError;

/// One line of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum DeployLine {
    /// The plan was taken; what it changes. Always first.
    Submitted(Submitted),
    /// Something happened.
    Event(Event),
    /// The end. Always last.
    End(DeployEnd),
}

/// How a deploy ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeployEnd {
    /// The release.
    pub release: u64,
    /// Whether every instance that can be reached serves.
    pub ok: bool,
    /// How long it took, in milliseconds.
    pub millis: i64,
    /// What failed, for people; each may have several lines.
    pub errors: Vec<String>,
    /// What waits, for people: a node that does not answer.
    pub warnings: Vec<String>,
    /// Whether it stands beside the active release and waits for `activate`.
    #[serde(default)]
    pub staged: bool,
}

/// Who steers a release that is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steer {
    /// A user's name.
    pub by: String,
}

/// A release that was thrown away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aborted {
    /// Its number.
    pub release: u64,
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let status = match &error {
            SubmitError::Plan(_)
            | SubmitError::Images(_)
            | SubmitError::Disks(_)
            | SubmitError::NoRelease(_)
            | SubmitError::NotKept(_) => StatusCode::UNPROCESSABLE_ENTITY,
            SubmitError::Busy { .. } | SubmitError::NoRollout => StatusCode::CONFLICT,
            SubmitError::Registry(_) => StatusCode::BAD_GATEWAY,
            SubmitError::State(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let hint = error.hint();
        let refusal = Self::new(status, crate::manager::chain(&error));
        match hint {
            Some(hint) => refusal.hint(hint),
            None => refusal,
        }
    }
}

pub(super) async fn deploy(
    State(manager): State<Manager>,
    Json(submission): Json<Submission>,
) -> Result<Response, ApiError> {
    let begun = Begun::now(&manager, submission.dry_run);
    let submitted = manager.submit(submission).await?;
    Ok(begun.told(manager, submitted))
}

pub(super) async fn rollback(
    State(manager): State<Manager>,
    Json(rollback): Json<Rollback>,
) -> Result<Response, ApiError> {
    let begun = Begun::now(&manager, rollback.dry_run);
    let submitted = manager.rollback(rollback).await?;
    Ok(begun.told(manager, submitted))
}

pub(super) async fn activate(State(manager): State<Manager>, Json(_): Json<Steer>) -> Result<Response, ApiError> {
    let begun = Begun::now(&manager, false);
    let submitted = manager.activate()?;
    Ok(begun.told(manager, submitted))
}

pub(super) async fn watch(State(manager): State<Manager>, Json(_): Json<Steer>) -> Result<Response, ApiError> {
    let begun = Begun::now(&manager, false);
    let submitted = manager.on_its_way()?;
    Ok(begun.told(manager, submitted))
}

pub(super) async fn abort(State(manager): State<Manager>, Json(steer): Json<Steer>) -> Result<Json<Aborted>, ApiError> {
    let release = manager.abort(&steer.by)?;
    let mut overview = manager.overview();
    let over = |overview: &crate::manager::Overview| {
        overview.remembered.rollout.as_ref().is_none_or(|rollout| rollout.release.number != release)
    };
    _ = overview.wait_for(over).await;
    Ok(Json(Aborted { release }))
}

/// What is noted before a submission, so that nothing that follows it is missed.
pub(super) struct Begun {
    at: Timestamp,
    events: broadcast::Receiver<Event>,
    dry_run: bool,
}

impl Begun {
    pub(super) fn now(manager: &Manager, dry_run: bool) -> Self {
        Self { at: Timestamp::now(), events: manager.events().subscribe(), dry_run }
    }

    /// The answer: lines until the release is out.
    pub(super) fn told(self, manager: Manager, submitted: Submitted) -> Response {
        let (lines, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            // A send that fails means nobody watches any more.
            if lines.send(DeployLine::Submitted(submitted.clone())).await.is_ok() && !self.dry_run {
                follow(&manager, &submitted, self.at, self.events, &lines).await;
            }
        });
        let body = futures_util::stream::unfold(receiver, async |mut receiver| {
            let line = receiver.recv().await?;
            let mut text = serde_json::to_vec(&line).unwrap_or_default();
            text.push(b'\n');
            Some((Ok::<_, std::convert::Infallible>(Bytes::from(text)), receiver))
        });
        ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(body)).into_response()
    }
}

/// A plan to look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanText {
    /// The file's name, for messages.
    pub file: String,
    /// The plan's text.
    pub text: String,
}

pub(super) async fn check(
    State(manager): State<Manager>,
    Json(plan): Json<PlanText>,
) -> Result<Json<Vec<Diagnostic>>, ApiError> {
    let checked = plan::read(&plan.file, &plan.text).map_err(SubmitError::Plan)?;
    Ok(Json(manager.check(&checked).await))
}

async fn follow(
    manager: &Manager,
    submitted: &Submitted,
    begun: Timestamp,
    mut events: broadcast::Receiver<Event>,
    lines: &mpsc::Sender<DeployLine>,
) {
    let mut overview = manager.overview();
    let release = submitted.release;
    loop {
        let (progress, ending) = {
            let known = overview.borrow_and_update();
            (known.progress.clone(), known.remembered.endings.get(&release).cloned())
        };
        // Asked for again, the active release is as good as it is now: also one whose way back came to nothing.
        let again = submitted.turn > 0 && !submitted.new;
        let ending = ending.filter(|_| !again);
        let over = ending.is_some() || again;
        let taken = progress.turn >= submitted.turn;
        if taken && progress.settled && (over || progress.staged && progress.release == release) {
            while let Ok(event) = events.try_recv() {
                _ = lines.send(DeployLine::Event(event)).await;
            }
            _ = lines.send(DeployLine::End(end(&progress, release, ending.as_ref(), begun))).await;
            return;
        }
        tokio::select! {
            event = events.recv() => {
                if let Ok(event) = event && lines.send(DeployLine::Event(event)).await.is_err() {
                    return;
                }
            }
            changed = overview.changed() => if changed.is_err() { return },
            () = manager.stopped().cancelled() => return,
            // A watcher that hung up is noticed by the next line; none comes while nothing happens.
            () = tokio::time::sleep(Duration::from_secs(5)) => if lines.is_closed() { return },
        }
    }
}

fn end(progress: &Progress, release: u64, ending: Option<&Ending>, begun: Timestamp) -> DeployEnd {
    let millis = i64::try_from(Timestamp::now().duration_since(begun).as_millis()).unwrap_or(i64::MAX);
    let mut errors: Vec<String> = Vec::new();
    match ending {
        Some(ending) if ending.state != Ended::Good => errors.extend(ending.why.iter().cloned()),
        _ if progress.release > release => errors.push(format!("release {} came after it", progress.release)),
        _ => {
            errors.extend(progress.failures.iter().map(|(id, why)| format!("{id}: {why}")));
            errors.extend(progress.unplaced.iter().map(|(id, why)| format!("{id} has no place: {why}")));
            let refused = |why: &String| format!("the gateway refused the routing, the old one stays: {why}");
            errors.extend(progress.gateway.iter().map(refused));
        }
    }
    let warnings = progress.waiting.iter().map(|(id, why)| format!("{id} waits: {why}")).collect();
    let staged = progress.staged && ending.is_none();
    DeployEnd { release, ok: errors.is_empty(), millis, errors, warnings, staged }
}
