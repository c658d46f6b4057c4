//! Nodes over the API: listed, their keys read, admitted, forgotten.
//!
//! Speaks to no node: [`Nodes`] does.

use std::net::IpAddr;

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{delete, get, post},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use crate::{
    inventory::{Admission, Container, ContainerState, Engine, HostKey, Intake, Node, NodeState},
    manager::nodes::{Nodes, NodesError},
    model::{CloudId, MacAddr, NodeName, Timestamp},
};

use super::ApiError;

/// The answer of `GET /v1/nodes`; the JSON of `matrix nodes --json`. Fields are only ever added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodesView {
    /// Every machine with a name, by name: nodes, candidates, refused ones.
    pub nodes: Vec<NodeView>,
    /// What is wrong with the leases file.
    pub problems: Vec<String>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its name.
    pub name: NodeName,
    /// Its address.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: Option<MacAddr>,
    /// What it is, and whether it answers.
    pub state: StateView,
    /// Since when it is in that state.
    pub since: Timestamp,
    /// Until when its lease runs; none: for ever, or it has none.
    pub lease_expires: Option<Timestamp>,
    /// The pinned key, where it is or was admitted.
    pub key: Option<HostKey>,
    /// The key it offers, where it is no node.
    pub offered: Option<HostKey>,
    /// Its engine and its machine, once it has answered.
    pub engine: Option<Engine>,
    /// How many containers of this cloud run there.
    pub instances: usize,
    /// How many containers of others, or of nobody, run there.
    pub foreign: usize,
    /// Why it is not ready.
    pub trouble: Option<String>,
    /// Whether instances are placed there.
    #[serde(default)]
    pub intake: Intake,
    /// Whether its disk is too full for anything new.
    #[serde(default)]
    pub disk_full: bool,
}

/// What is to be said of a node beside its state: `cordoned`, `draining`, `drained`, `disk full`.
pub fn besides(intake: Intake, disk_full: bool, instances: usize) -> Vec<&'static str> {
    let held = match intake {
        Intake::Open => None,
        Intake::Cordoned => Some("cordoned"),
        Intake::Draining if instances > 0 => Some("draining"),
        Intake::Draining => Some("drained"),
        Intake::Removed => Some("removed"),
    };
    held.into_iter().chain(disk_full.then_some("disk full")).collect()
}

/// What a machine is, and whether it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateView {
    /// Seen, not admitted.
    Candidate,
    /// Not the machine that was admitted, or a clone of another.
    Refused,
    /// Admitted, not yet spoken to.
    Unknown,
    /// Admitted; it answers.
    Ready,
    /// Admitted; it missed an answer or two.
    Suspect,
    /// Admitted; it does not answer.
    Lost,
}

/// The body of `POST /v1/nodes/NAME/admit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdmitBody {
    /// The fingerprint the key must have; none: any.
    pub fingerprint: Option<String>,
}

/// The routes, over these nodes.
pub fn routes(nodes: Nodes) -> Router {
    Router::new()
        .route("/v1/nodes", get(list))
        .route("/v1/nodes/{name}", delete(forget))
        .route("/v1/nodes/{name}/admit", post(admit))
        // Not GET: it makes the manager knock at a machine.
        .route("/v1/nodes/{name}/scan", post(scan))
        .with_state(nodes)
}

/// The machines as they are known.
pub fn view(nodes: &Nodes) -> NodesView {
    let snapshot = nodes.snapshot();
    NodesView {
        nodes: snapshot.nodes.values().map(|node| show(node, nodes.cloud())).collect(),
        problems: nodes.lease_problems(),
    }
}

fn show(node: &Node, cloud: &CloudId) -> NodeView {
    let (state, key, offered) = match &node.admission {
        Admission::Candidate { offered } => (StateView::Candidate, None, offered.clone()),
        Admission::Refused { pinned, offered, .. } => (StateView::Refused, pinned.clone(), offered.clone()),
        Admission::Admitted { key } => {
            let state = match node.state {
                NodeState::Unknown => StateView::Unknown,
                NodeState::Ready => StateView::Ready,
                NodeState::Suspect { .. } => StateView::Suspect,
                NodeState::Lost { .. } => StateView::Lost,
            };
            (state, Some(key.clone()), None)
        }
    };
    let is_ours = |c: &&Container| c.ours.as_ref().is_some_and(|ours| ours.cloud == *cloud);
    let running = || node.containers.iter().filter(|c| c.state == ContainerState::Running);
    NodeView {
        name: node.name.clone(),
        address: node.address,
        mac: node.mac,
        state,
        since: node.since,
        lease_expires: node.lease_expires,
        key,
        offered,
        engine: node.engine.clone(),
        instances: running().filter(is_ours).count(),
        foreign: running().filter(|c| !is_ours(c)).count(),
        trouble: node.trouble.clone(),
        intake: node.intake,
        disk_full: node.disk_full,
    }
}

async fn list(State(nodes): State<Nodes>) -> Json<NodesView> {
    Json(view(&nodes))
}

async fn scan(State(nodes): State<Nodes>, Path(name): Path<String>) -> Result<Json<HostKey>, ApiError> {
    Ok(Json(nodes.offered_key(&parse(&name)?).await?))
}

async fn admit(
    State(nodes): State<Nodes>,
    Path(name): Path<String>,
    Json(body): Json<AdmitBody>,
) -> Result<Json<HostKey>, ApiError> {
    Ok(Json(nodes.admit(&parse(&name)?, body.fingerprint.as_deref()).await?))
}

async fn forget(State(nodes): State<Nodes>, Path(name): Path<String>) -> Result<Json<()>, ApiError> {
    Ok(Json(nodes.forget(&parse(&name)?)?))
}

pub(super) fn parse(name: &str) -> Result<NodeName, ApiError> {
    name.parse().map_err(|e: crate::model::Invalid| ApiError::invalid(e.to_string()))
}

impl From<NodesError> for ApiError {
    fn from(error: NodesError) -> Self {
        let status = match &error {
            NodesError::Unknown { .. } => StatusCode::NOT_FOUND,
            NodesError::NotAdmitted { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            NodesError::OtherKey { .. } => StatusCode::CONFLICT,
            NodesError::Ssh(_) | NodesError::Engine(_) | NodesError::Store(_) => StatusCode::BAD_GATEWAY,
        };
        let hint = error.hint();
        let answer = Self::new(status, error.to_string());
        match hint {
            Some(hint) => answer.hint(hint),
            None => answer,
        }
    }
}
