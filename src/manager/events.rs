//! What happens, told to whoever listens; the last thousand are kept.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::model::{NodeName, Timestamp};

/// How an event is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Something began.
    Begin,
    /// Something is done.
    Done,
    /// Something failed.
    Failed,
    /// Something to know.
    Note,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts from 1 since the manager started.
    pub number: u64,
    /// When.
    pub at: Timestamp,
    /// How to take it.
    pub kind: Kind,
    /// Whom it concerns: an instance, an application, a node, `gateway`.
    pub subject: String,
    /// The node, where it happens on one.
    pub node: Option<NodeName>,
    /// What happened.
    pub text: String,
}

const KEPT: usize = 1000;

/// The events of this manager; cheap to clone.
#[derive(Clone)]
pub struct Events(Arc<Inner>);

struct Inner {
    kept: Mutex<(u64, VecDeque<Event>)>,
    sender: broadcast::Sender<Event>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

impl Default for Events {
    fn default() -> Self {
        Self(Arc::new(Inner { kept: Mutex::default(), sender: broadcast::Sender::new(KEPT) }))
    }
}

impl Events {
    /// Tells it, and writes it to the log.
    pub fn tell(&self, kind: Kind, subject: impl fmt::Display, node: Option<&NodeName>, text: impl Into<String>) {
        let (subject, text) = (subject.to_string(), text.into());
        match kind {
            Kind::Failed => tracing::warn!(%subject, node = node.map(NodeName::as_str), "{text}"),
            _ => tracing::info!(%subject, node = node.map(NodeName::as_str), "{text}"),
        }
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.0 += 1;
        let event = Event { number: kept.0, at: Timestamp::now(), kind, subject, node: node.cloned(), text };
        if kept.1.len() == KEPT {
            kept.1.pop_front();
        }
        kept.1.push_back(event.clone());
        // Nobody listening is no error.
        _ = self.0.sender.send(event);
    }
    /// What happens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.sender.subscribe()
    }
    /// The last ones, oldest first.
    pub fn last(&self, count: usize) -> Vec<Event> {
        let kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.1.iter().skip(kept.1.len().saturating_sub(count)).cloned().collect()
    }
}
