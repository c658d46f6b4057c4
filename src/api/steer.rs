//! `POST /v1/scale` and `/v1/restart`: answered line by line, as a deploy is.
//!
//! Who hangs up stops watching, not the release.

use axum::{Json, extract::State, response::Response};

use crate::manager::{Again, Manager, Scale, SteerError};

use super::{ApiError, deploy::Begun};

pub(super) async fn scale(State(manager): State<Manager>, Json(scale): Json<Scale>) -> Result<Response, ApiError> {
    let begun = Begun::now(&manager, scale.dry_run);
    let submitted = manager.scale(scale).await?;
    Ok(begun.told(manager, submitted))
}

pub(super) async fn restart(State(manager): State<Manager>, Json(again): Json<Again>) -> Result<Response, ApiError> {
    let begun = Begun::now(&manager, again.dry_run);
    let submitted = manager.restart(again).await?;
    Ok(begun.told(manager, submitted))
}

impl From<SteerError> for ApiError {
    fn from(error: SteerError) -> Self {
        match error {
            SteerError::Refused(_) => Self::invalid(error.to_string()),
            SteerError::Submit(error) => error.into(),
        }
    }
}
