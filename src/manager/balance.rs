//! When load is spread again: some time after everything came to rest, one move at a time.
//!
//! Decides no move: `schedule::better` does, and is asked only here.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use crate::{
    inventory::{Admission, Node, Snapshot},
    model::{AppName, NodeName},
    schedule::Move,
};

use super::{
    config::{Config, Rebalance},
    progress::Progress,
};

/// Since when all is calm, and what did not work.
#[derive(Debug, Default)]
pub(super) struct Balance {
    calm_since: Option<Instant>,
    /// Nothing was to be moved while these nodes took instances, or not.
    good_with: Option<BTreeMap<NodeName, bool>>,
    /// Where an application failed: it is not sent there again.
    avoid: BTreeSet<(AppName, NodeName)>,
}

impl Balance {
    /// An instance did not come up there.
    pub(super) fn failed(&mut self, app: &AppName, node: &NodeName) {
        self.avoid.insert((app.clone(), node.clone()));
    }
    /// Another release: what failed may work now.
    pub(super) fn released(&mut self) {
        *self = Self::default();
    }
    /// The next move, where it is time for one.
    pub(super) fn turn(
        &mut self,
        config: &Config,
        progress: &Progress,
        snapshot: &Snapshot,
        better: impl FnOnce(&BTreeSet<(AppName, NodeName)>) -> Option<Move>,
    ) -> Option<Move> {
        if config.rebalance == Rebalance::Off {
            return None;
        }
        if !is_calm(progress, snapshot) {
            (self.calm_since, self.good_with) = (None, None);
            return None;
        }
        if self.calm_since.get_or_insert_with(Instant::now).elapsed() < config.rebalance_pause.0 {
            return None;
        }
        let nodes = snapshot.nodes.values().map(|node| (node.name.clone(), node.takes_instances())).collect();
        if self.good_with.as_ref() == Some(&nodes) {
            return None;
        }
        let found = better(&self.avoid);
        if found.is_some() {
            self.calm_since = None;
        } else {
            self.good_with = Some(nodes);
        }
        found
    }
}

/// Whether everything is at rest and well, and every node is there.
fn is_calm(progress: &Progress, snapshot: &Snapshot) -> bool {
    let admitted = |node: &&Node| matches!(node.admission, Admission::Admitted { .. });
    progress.settled
        && progress.rollout.is_none()
        && progress.frozen.is_none()
        && progress.gateway.is_none()
        && progress.failures.is_empty()
        && progress.waiting.is_empty()
        && snapshot.nodes.values().filter(admitted).all(Node::is_ready)
}
