//! `GET /v1/vcl`: what the gateway runs.
//!
//! Shows and never changes: routes follow from a release alone.

use std::collections::BTreeMap;

use axum::{Json, Router, extract::State, routing::get};
use serde::{Deserialize, Serialize};

use super::ApiError;
use crate::{manager::gateway::Gateway, model::Timestamp, routing::RoutingTable};

/// What the gateway runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VclView {
    /// Whether varnishd runs it now.
    pub up: bool,
    /// Since when it is up, or not.
    pub since: Timestamp,
    /// What went wrong last; none when all is well.
    pub error: Option<String>,
    /// Who serves what.
    pub table: RoutingTable,
    /// The text: `(root)`, and each application's by its name.
    pub vcl: BTreeMap<String, String>,
}

/// The call, over this gateway, where the manager has one.
pub fn router(gateway: Option<Gateway>) -> Router {
    Router::new().route("/v1/vcl", get(show)).with_state(gateway)
}

async fn show(State(gateway): State<Option<Gateway>>) -> Result<Json<VclView>, ApiError> {
    let Some(gateway) = gateway else {
        return Err(ApiError::not_found("this manager has no gateway").hint("its configuration has no [varnish]"));
    };
    let vcl = gateway.vcl().await;
    let state = gateway.state().borrow().clone();
    Ok(Json(VclView {
        up: state.up,
        since: state.since,
        error: state.error,
        table: state.active.as_deref().cloned().unwrap_or_default(),
        vcl,
    }))
}
