//! The manager's API: HTTP over its unix socket, and over TCP for reading (for steering with the token).
//!
//! | call | does |
//! |---|---|
//! | `GET /v1/status` | applications, instances, routes, nodes in short |
//! | `POST /v1/deploy` | a plan's text; answers NDJSON: changes, events, the end |
//! | `GET /v1/registry` | the private registry's name and address |
//! | `GET /v1/events` | what happens, as server-sent events |
//!
//! Never talks to a node itself.

mod error;
pub mod nodes;

pub use error::{ApiError, ErrorBody};

use axum::{Json, Router, extract::State, response::IntoResponse, routing::get};

use crate::manager::Manager;

/// Every route, over this manager.
pub fn router(manager: Manager) -> Router {
    Router::new().route("/v1/registry", get(registry)).with_state(manager)
}

async fn registry(State(manager): State<Manager>) -> impl IntoResponse {
    Json(serde_json::json!({ "name": manager.config().registry.name, "endpoint": manager.config().registry.endpoint }))
}
