//! How far the loop is, for whoever asks; and what it writes down.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::model::InstanceId;

use super::{decide::names, events::Kind, journal::Remembered, run::Loop};

/// How far the cloud is from what is wanted.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// The release it is about: the one on its way, or else the active one; 0: none yet.
    pub release: u64,
    /// How far that is, for people; none: it is active.
    #[serde(default)]
    pub rollout: Option<String>,
    /// Whether all of it answers and the switch waits for somebody to ask for it.
    #[serde(default)]
    pub staged: bool,
    /// The last release that failed, until another one is asked for.
    #[serde(default)]
    pub failed: Option<u64>,
    /// The last submission that is taken into account, counted since the manager started.
    pub turn: u64,
    /// Whether there is nothing to do and nothing under way.
    pub settled: bool,
    /// What failed last, by instance, and is tried again later.
    pub failures: BTreeMap<InstanceId, String>,
    /// What cannot go on yet, and on what it waits.
    pub waiting: BTreeMap<InstanceId, String>,
    /// What finds no place.
    pub unplaced: BTreeMap<InstanceId, String>,
    /// What the gateway refused.
    pub gateway: Option<String>,
    /// Whether lost nodes' instances stay where they are, since the manager is unsure.
    pub frozen: Option<String>,
}

/// What the manager knows, for views.
#[derive(Debug, Clone, Default)]
pub struct Overview {
    /// What is remembered: release, places, what answered, the table.
    pub remembered: Arc<Remembered>,
    /// How far it is.
    pub progress: Progress,
}

impl Loop {
    /// Writes down what is new, also what messages have brought: a manager that is killed goes on from there.
    pub(super) fn remember(&mut self) {
        let (known, last) = (&self.known, &self.written);
        let written = self.parts.journal.world(
            (known.assignments != last.assignments).then_some(&known.assignments),
            (known.staged != last.staged).then_some(&known.staged),
            (known.verified != last.verified).then_some(&known.verified),
            (known.table != last.table).then_some(&known.table),
        );
        if *known != *last {
            self.written = known.clone();
        }
        if let Err(error) = written {
            self.parts.events.tell(Kind::Failed, "manager", None, format!("cannot keep the state: {error}"));
        }
    }

    pub(super) fn publish(&self, progress: Progress) {
        self.parts.overview.send_if_modified(|overview| {
            let changed = overview.progress != progress || *overview.remembered != self.known;
            if changed {
                *overview = Overview { remembered: Arc::new(self.known.clone()), progress };
            }
            changed
        });
    }

    pub(super) fn failures(&self, wanted: &BTreeSet<String>) -> BTreeMap<InstanceId, String> {
        let all = names(&self.known.assignments).chain(names(&self.known.staged));
        let ids: BTreeMap<String, &InstanceId> = all.collect();
        self.holds
            .iter()
            .filter(|(name, _)| wanted.contains(*name))
            .filter_map(|(name, hold)| Some(((*ids.get(name)?).clone(), hold.why.clone())))
            .collect()
    }
}
