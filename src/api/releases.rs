//! `GET /v1/releases`: every release kept, whole.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::{
    manager::{Manager, chain},
    release::{Ending, Release},
};

use super::ApiError;

/// The releases kept; the JSON of `matrix releases --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasesView {
    /// The number of the one the cloud should run; none yet.
    pub current: Option<u64>,
    /// The number of the one on its way.
    #[serde(default)]
    pub on_its_way: Option<u64>,
    /// All of them, oldest first.
    pub releases: Vec<Release>,
    /// How they ended, by number.
    #[serde(default)]
    pub endings: BTreeMap<u64, Ending>,
}

pub(super) async fn list(State(manager): State<Manager>) -> Result<Json<ReleasesView>, ApiError> {
    let releases =
        manager.journal().releases().map_err(|e| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, chain(&e)))?;
    let known = std::sync::Arc::clone(&manager.overview().borrow().remembered);
    Ok(Json(ReleasesView {
        current: known.release.as_ref().map(|release| release.number),
        on_its_way: known.rollout.as_ref().map(|rollout| rollout.release.number),
        releases,
        endings: known.endings.clone(),
    }))
}
