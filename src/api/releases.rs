//! `GET /v1/releases`: every release kept, whole.

use axum::{Json, extract::State};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::{
    manager::{Manager, chain},
    release::Release,
};

use super::ApiError;

/// The releases kept; the JSON of `matrix releases --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasesView {
    /// The number of the one the cloud should run; none yet.
    pub current: Option<u64>,
    /// All of them, oldest first.
    pub releases: Vec<Release>,
}

pub(super) async fn list(State(manager): State<Manager>) -> Result<Json<ReleasesView>, ApiError> {
    let releases =
        manager.journal().releases().map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, chain(&e)))?;
    let current = manager.overview().borrow().remembered.release.as_ref().map(|release| release.number);
    Ok(Json(ReleasesView { current, releases }))
}
