//! Operating nodes over the API: cordoned, drained, removed, and how far a drain is.
//!
//! Speaks to no node: the manager's loop moves what has to.

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{get, post},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::manager::{Drain, Manager, OperateError, nodes::NodesError};

use super::{ApiError, nodes::parse};

/// The body of `POST /v1/nodes/NAME/cordon`, `undrain`, `drain` and `remove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperateBody {
    /// Who wants it.
    pub by: String,
    /// Whether only to say what would move.
    #[serde(default)]
    pub dry_run: bool,
    /// Whether to remove it although it is lost.
    #[serde(default)]
    pub force: bool,
}

/// The routes, over this manager.
pub fn routes(manager: Manager) -> Router {
    Router::new()
        .route("/v1/nodes/{name}/cordon", post(cordon))
        .route("/v1/nodes/{name}/remove", post(remove))
        .route("/v1/nodes/{name}/undrain", post(undrain))
        .route("/v1/nodes/{name}/drain", get(drained).post(drain))
        .with_state(manager)
}

async fn cordon(
    State(manager): State<Manager>,
    Path(name): Path<String>,
    Json(body): Json<OperateBody>,
) -> Result<Json<bool>, ApiError> {
    Ok(Json(manager.cordon(&parse(&name)?, &body.by)?))
}

async fn remove(
    State(manager): State<Manager>,
    Path(name): Path<String>,
    Json(body): Json<OperateBody>,
) -> Result<Json<bool>, ApiError> {
    Ok(Json(manager.remove(&parse(&name)?, &body.by, body.force)?))
}

async fn undrain(
    State(manager): State<Manager>,
    Path(name): Path<String>,
    Json(body): Json<OperateBody>,
) -> Result<Json<bool>, ApiError> {
    Ok(Json(manager.undrain(&parse(&name)?, &body.by)?))
}

async fn drain(
    State(manager): State<Manager>,
    Path(name): Path<String>,
    Json(body): Json<OperateBody>,
) -> Result<Json<Drain>, ApiError> {
    Ok(Json(manager.drain(&parse(&name)?, &body.by, body.dry_run)?))
}

async fn drained(State(manager): State<Manager>, Path(name): Path<String>) -> Result<Json<Drain>, ApiError> {
    Ok(Json(manager.drained(&parse(&name)?)?))
}

impl From<OperateError> for ApiError {
    fn from(error: OperateError) -> Self {
        match error {
            OperateError::Node(error) => NodesError::into(error),
            error @ (OperateError::LastNode { .. }
            | OperateError::NotEmpty { .. }
            | OperateError::Silent { .. }
            | OperateError::Unsure { .. }) => {
                let hint = error.hint();
                let answer = Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string());
                match hint {
                    Some(hint) => answer.hint(hint),
                    None => answer,
                }
            }
        }
    }
}
