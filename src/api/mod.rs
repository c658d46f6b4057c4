//! The manager's API: HTTP over its unix socket, and over TCP for reading (for steering with the token).
//!
//! | call | does |
//! |---|---|
//! | `GET /v1/status` | [`views::StatusView`] |
//! | `POST /v1/deploy` | a [`crate::manager::Submission`] in; NDJSON of [`DeployLine`] out |
//! | `GET /v1/releases` | [`ReleasesView`] |
//! | `POST /v1/rollback` | a [`crate::manager::Rollback`] in; NDJSON of [`DeployLine`] out |
//! | `POST /v1/activate` | [`Steer`] in; the staged release becomes active; NDJSON of [`DeployLine`] out |
//! | `POST /v1/follow` | [`Steer`] in; NDJSON of [`DeployLine`] of the release on its way out |
//! | `POST /v1/abort` | [`Steer`] in; the release on its way is thrown away; [`Aborted`] out |
//! | `POST /v1/scale` | a [`crate::manager::Scale`] in; NDJSON of [`DeployLine`] out |
//! | `POST /v1/restart` | a [`crate::manager::Again`] in; NDJSON of [`DeployLine`] out |
//! | `POST /v1/plan/check` | a plan's file name and text in; what the cloud and the registry do not know of it out |
//! | `POST /v1/nodes/NAME/cordon`, `undrain`, `drain`, `remove` | an [`OperateBody`] in |
//! | `GET /v1/nodes/NAME/drain` | a [`crate::manager::Drain`]: what is there still |
//! | `POST /v1/gc` | [`GcRequest`] in; NDJSON of [`GcLine`] out |
//! | `GET /v1/registry` | the private registry's name and address |
//! | `GET /v1/vcl` | [`vcl::VclView`]: what the gateway runs |
//! | `GET /v1/events` | the last events, then each as it happens, as server-sent events |
//!
//! Never talks to a node itself.

mod deploy;
mod error;
mod gc;
pub mod nodes;
mod operate;
mod releases;
mod server;
mod steer;
mod stream;
pub mod vcl;
pub mod views;

pub use deploy::{Aborted, DeployEnd, DeployLine, PlanText, Steer};
pub use error::{ApiError, ErrorBody};
pub use gc::{GcLine, GcRequest};
pub use operate::OperateBody;
pub use releases::ReleasesView;
pub use server::{ServeError, serve};
pub use stream::changes;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    response::IntoResponse,
    routing::{get, post},
};

use crate::{manager::Manager, plan};

/// Every route, over this manager.
pub fn router(manager: Manager) -> Router {
    let nodes = nodes::routes(manager.nodes().clone());
    let operate = operate::routes(manager.clone());
    let vcl = vcl::router(manager.gateway().cloned());
    Router::new()
        .route("/v1/status", get(async |State(manager): State<Manager>| Json(views::status(&manager))))
        .route("/v1/deploy", post(deploy::deploy).layer(DefaultBodyLimit::max(2 * plan::MAX_BYTES)))
        .route("/v1/rollback", post(deploy::rollback))
        .route("/v1/activate", post(deploy::activate))
        .route("/v1/follow", post(deploy::watch))
        .route("/v1/abort", post(deploy::abort))
        .route("/v1/scale", post(steer::scale))
        .route("/v1/restart", post(steer::restart))
        .route("/v1/releases", get(releases::list))
        .route("/v1/plan/check", post(deploy::check).layer(DefaultBodyLimit::max(2 * plan::MAX_BYTES)))
        .route("/v1/gc", post(gc::gc))
        .route("/v1/registry", get(registry))
        .route("/v1/events", get(stream::events))
        .with_state(manager)
        .merge(nodes)
        .merge(operate)
        .merge(vcl)
}

async fn registry(State(manager): State<Manager>) -> impl IntoResponse {
    let registry = &manager.config().registry;
    Json(serde_json::json!({ "name": registry.name, "endpoint": registry.endpoint }))
}
