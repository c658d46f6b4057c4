//! Cleaning: old releases, stopped containers of ours, images on nodes, manifests and blobs in the registry that nobody needs.
//!
//! Decides nothing itself (`clean` does), and takes nothing away while a release is on its way.

mod nightly;
mod nodes;
mod registry;
mod releases;
mod window;

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    clean::{self, Forecast, Item, Needed},
    inventory::ContainerSpec,
    model::Timestamp,
    release::{Ending, Naming, State},
    store::{Change, StoreError, get_json},
};

use super::{Manager, Overview, events::Kind};

pub(super) use nightly::nightly;

const LAST: &str = "gc/last";

/// What the manager keeps for cleaning.
#[derive(Debug, Default)]
pub(super) struct Gc {
    /// One at a time.
    one: tokio::sync::Mutex<()>,
    /// Why the last one failed, for the status.
    problem: Mutex<Option<String>>,
}

/// Why nothing was cleaned.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// Somebody else's is under way.
    #[error("another cleaning is under way")]
    Busy,
    /// A release is on its way, or the cloud is not as it should be.
    #[error("nothing is cleaned now: {0}")]
    UnderWay(String),
    /// The releases cannot be read.
    #[error("cannot read the releases")]
    State(#[from] StoreError),
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cleaned {
    /// How many things are gone.
    pub removed: usize,
    /// Bytes that are free now.
    pub freed: u64,
    /// What stays for now, and why.
    pub notes: Vec<String>,
    /// What failed.
    pub errors: Vec<String>,
    /// How long it took, in milliseconds.
    pub millis: u64,
}
impl Cleaned {
    fn add(&mut self, other: Self) {
        self.removed += other.removed;
        self.freed += other.freed;
        self.notes.extend(other.notes);
        self.errors.extend(other.errors);
    }
}

/// How the last one ended, over restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Last {
    at: Timestamp,
    errors: Vec<String>,
}

/// What is kept of releases.
struct Kept {
    /// Those one can go back to.
    releases: BTreeSet<u64>,
    /// Those that go.
    outdated: Vec<Item>,
    /// What the first need.
    needed: Needed,
}

/// Why something is not taken away after all.
enum Stays {
    /// Nothing more is: a release began.
    All(String),
    /// This one: it is needed now.
    This,
}

impl Manager {
    /// What would be cleaned now. Changes nothing.
    ///
    /// # Errors
    /// When the releases cannot be read.
    pub async fn gc_forecast(&self) -> Result<Forecast, GcError> {
        let Kept { releases, outdated, needed } = self.kept()?;
        let mut forecast = Forecast { kept: releases.into_iter().collect(), items: outdated, ..Forecast::default() };
        nodes::forecast(self, &needed, &mut forecast).await;
        registry::forecast(self, &needed, &mut forecast).await;
        Ok(forecast)
    }

    /// Cleans; `told` hears first what will go.
    ///
    /// # Errors
    /// When another cleaning or a release is under way; nothing was touched then.
    pub async fn gc(&self, patience: Duration, told: impl FnOnce(&Forecast)) -> Result<Cleaned, GcError> {
        let _one = self.0.gc.one.try_lock().map_err(|_| GcError::Busy)?;
        self.quiet(patience).await?;
        let begun = Instant::now();
        let forecast = self.gc_forecast().await?;
        told(&forecast);
        let mut cleaned = Cleaned { notes: forecast.notes.clone(), ..Cleaned::default() };
        cleaned.add(releases::clean(self, &forecast.items).await);
        cleaned.add(nodes::clean(self, &forecast.items).await);
        cleaned.add(registry::clean(self, &forecast.items, patience).await);
        cleaned.millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.ended(&cleaned);
        Ok(cleaned)
    }

    /// What is wrong with cleaning, for the status.
    pub fn gc_problem(&self) -> Option<String> {
        self.0.gc.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads what the last one before this start left.
    pub(super) fn gc_remember(&self) {
        if let Ok(Some(last)) = get_json::<Last>(&**self.store(), LAST) {
            self.set_gc_problem(&last);
        }
    }

    fn set_gc_problem(&self, last: &Last) {
        let problem = last.errors.first().map(|first| format!("the cleaning of {:.0} failed: {first}", last.at));
        *self.0.gc.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    fn ended(&self, cleaned: &Cleaned) {
        let last = Last { at: Timestamp::now(), errors: cleaned.errors.clone() };
        self.set_gc_problem(&last);
        if let Ok(change) = Change::put(LAST, &last) {
            _ = self.store().transact(&[change]);
        }
        let (kind, word) =
            if cleaned.errors.is_empty() { (Kind::Done, "freed") } else { (Kind::Failed, "failed; freed") };
        let text = format!("{word} {} of {} things", bytesize::ByteSize(cleaned.freed), cleaned.removed);
        self.0.events.tell(kind, "gc", None, text);
    }

    /// Waits until no release is on its way.
    async fn quiet(&self, patience: Duration) -> Result<(), GcError> {
        let mut overview = self.overview();
        let begun = Instant::now();
        loop {
            let why = under_way(&overview.borrow_and_update());
            let Some(why) = why else { return Ok(()) };
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(GcError::UnderWay(why));
            }
            _ = tokio::time::timeout(left.min(Duration::from_secs(1)), overview.changed()).await;
        }
    }

    /// What is kept of releases.
    fn kept(&self) -> Result<Kept, StoreError> {
        let releases = self.journal().releases()?;
        let endings = self.journal().endings()?;
        let current = self.0.overview.borrow().remembered.release.as_ref().map(|release| release.number);
        let config = self.config();
        let good = |number| endings.get(&number).is_none_or(|ending: &Ending| ending.state == State::Good);
        let kept = clean::kept(&releases, current, config.gc.keep_releases, good);
        let outdated = clean::outdated(&releases, &kept, current, config.gc.keep_releases, good);
        let naming = Naming { registry: &config.registry.name, namespace: &config.registry.namespace };
        let needed = clean::needed(&releases, &kept, naming);
        Ok(Kept { releases: kept, outdated, needed })
    }

    /// Names of the containers that have a place.
    fn placed(&self) -> BTreeSet<String> {
        let overview = self.0.overview.borrow();
        let places = overview.remembered.assignments.iter();
        places.map(|(id, a)| ContainerSpec::name_of(id, &a.spec, &a.node, a.host_port)).collect()
    }

    /// What is kept now, asked with the lock held under which releases are made: none can begin before it is let go.
    fn still(&self, _lock: &tokio::sync::MutexGuard<'_, ()>) -> Result<Kept, Stays> {
        if let Some(why) = under_way(&self.0.overview.borrow()) {
            return Err(Stays::All(why));
        }
        self.kept().map_err(|e| Stays::All(super::chain(&e)))
    }
}

/// What goes on that cleaning must not meet.
fn under_way(overview: &Overview) -> Option<String> {
    let progress = &overview.progress;
    match (&progress.frozen, &overview.remembered.rollout) {
        (Some(why), _) => Some(format!("the manager is unsure of the cloud: {why}")),
        (None, Some(rollout)) => Some(format!("release {} is on its way", rollout.release.number)),
        (None, None) => (!progress.settled).then(|| format!("release {} is being brought about", progress.release)),
    }
}
