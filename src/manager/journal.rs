//! What the manager remembers over restarts: releases, places, what was seen to answer, the last routing table.
//!
//! The journal says what was meant; the world says what is. Nothing here is trusted about the world but to keep it as it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    model::NodeName,
    release::{Ending, Release, Rollout, State},
    routing::RoutingTable,
    schedule::Assignments,
    store::{Change, Store, StoreError, get_json, list_json},
};

use super::undo::Watch;

/// What was seen of a container that answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The engine's id: another container of the same name has not answered.
    pub id: String,
    /// The HTTP status it gave.
    pub status: Option<u16>,
    /// The node it runs on.
    pub node: NodeName,
}

/// What is remembered.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Remembered {
    /// The release the cloud should run.
    pub release: Option<Release>,
    /// The one before.
    pub previous: Option<Release>,
    /// The release that is on its way.
    pub rollout: Option<Rollout>,
    /// Where the instances of that belong.
    pub staged: Assignments,
    /// The active one, while it is watched.
    pub watch: Option<Watch>,
    /// How releases ended.
    pub endings: BTreeMap<u64, Ending>,
    /// Where instances are.
    pub assignments: Assignments,
    /// Containers (by name) that answered.
    pub verified: BTreeMap<String, Answered>,
    /// The gateway's table.
    pub table: RoutingTable,
}

/// The store, in the manager's words.
#[derive(Debug, Clone)]
pub struct Journal(Arc<dyn Store>);

const RELEASE: &str = "release/";
const CURRENT: &str = "current-release";
const ROLLOUT: &str = "rollout";
const STAGED: &str = "staged";
const WATCH: &str = "watch";
const ENDING: &str = "ending/";
const ASSIGNMENTS: &str = "assignments";
const VERIFIED: &str = "verified";
const TABLE: &str = "routing-table";

/// Releases sort by number as text.
fn release_key(number: u64) -> String {
    format!("{RELEASE}{number:012}")
}

fn ending_key(number: u64) -> String {
    format!("{ENDING}{number:012}")
}

/// The last release before this one that was active and stayed whole.
fn before<'a>(releases: &'a [Release], number: u64, endings: &BTreeMap<u64, Ending>) -> Option<&'a Release> {
    let good = |r: &&Release| r.number < number && endings.get(&r.number).is_none_or(|e| e.state == State::Good);
    releases.iter().rev().find(good)
}

impl Journal {
    /// The journal in this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self(store)
    }
    /// All that is remembered.
    ///
    /// # Errors
    /// When the store fails or holds something unreadable.
    pub fn read(&self) -> Result<Remembered, StoreError> {
        let store = &*self.0;
        // All of them, so that a damaged one is found before anything is done, not when it is asked for.
        let releases = self.releases()?;
        let endings = self.endings()?;
        let current = get_json::<u64>(store, CURRENT)?;
        let before = current.and_then(|number| before(&releases, number, &endings).cloned());
        let missing = |number| StoreError::Missing(release_key(number));
        let release = current.map(|current| {
            releases.into_iter().find(|release| release.number == current).ok_or_else(|| missing(current))
        });
        let release = release.transpose()?;
        Ok(Remembered {
            release,
            previous: before,
            rollout: get_json(store, ROLLOUT)?,
            staged: get_json(store, STAGED)?.unwrap_or_default(),
            watch: get_json(store, WATCH)?,
            endings,
            assignments: get_json(store, ASSIGNMENTS)?.unwrap_or_default(),
            verified: get_json(store, VERIFIED)?.unwrap_or_default(),
            table: get_json(store, TABLE)?.unwrap_or_default(),
        })
    }
    /// Every release kept, by number.
    ///
    /// # Errors
    /// When the store fails or holds something unreadable.
    pub fn releases(&self) -> Result<Vec<Release>, StoreError> {
        Ok(list_json::<Release>(&*self.0, RELEASE)?.into_values().collect())
    }
    /// How each release ended.
    ///
    /// # Errors
    /// When the store fails or holds something unreadable.
    pub fn endings(&self) -> Result<BTreeMap<u64, Ending>, StoreError> {
        let read = list_json::<Ending>(&*self.0, ENDING)?;
        Ok(read.into_iter().filter_map(|(number, ending)| Some((number.parse().ok()?, ending))).collect())
    }
    /// Keeps a new release, on its way.
    ///
    /// # Errors
    /// When the store fails, or another release took the number.
    pub fn begin(&self, rollout: &Rollout) -> Result<(), StoreError> {
        let release = Change::put(release_key(rollout.release.number), &rollout.release)?.expect(0);
        self.0.transact(&[release, Change::put(ROLLOUT, rollout)?, Change::delete(STAGED)])
    }
    /// Keeps how far it is.
    ///
    /// # Errors
    /// When the store fails.
    pub fn rollout(&self, rollout: &Rollout) -> Result<(), StoreError> {
        self.0.transact(&[Change::put(ROLLOUT, rollout)?])
    }
    /// Ends it, all in one transaction: a good one becomes the active one, at these places.
    ///
    /// # Errors
    /// When the store fails.
    pub fn end(
        &self,
        number: u64,
        ending: &Ending,
        places: &Assignments,
        watch: Option<&Watch>,
    ) -> Result<(), StoreError> {
        let mut changes =
            vec![Change::put(ending_key(number), ending)?, Change::delete(ROLLOUT), Change::delete(STAGED)];
        if ending.state == State::Good {
            changes.push(Change::put(CURRENT, &number)?);
            changes.push(Change::put(ASSIGNMENTS, places)?);
            changes.push(watch.map_or_else(|| Ok(Change::delete(WATCH)), |watch| Change::put(WATCH, watch))?);
        }
        self.0.transact(&changes)
    }
    /// Keeps that an active release failed, and the way back, in one transaction.
    ///
    /// # Errors
    /// When the store fails, or another release took the number.
    pub fn undo(&self, number: u64, ending: &Ending, back: &Rollout) -> Result<(), StoreError> {
        self.0.transact(&[
            Change::put(ending_key(number), ending)?,
            Change::put(release_key(back.release.number), &back.release)?.expect(0),
            Change::put(ROLLOUT, back)?,
            Change::delete(STAGED),
            Change::delete(WATCH),
        ])
    }
    /// Forgets these releases and how they ended, in one transaction.
    ///
    /// # Errors
    /// When the store fails.
    pub fn forget(&self, numbers: &BTreeSet<u64>) -> Result<(), StoreError> {
        let keys = numbers.iter().flat_map(|number| [release_key(*number), ending_key(*number)]);
        self.0.transact(&keys.map(Change::delete).collect::<Vec<_>>())
    }
    /// Keeps what changed of the rest.
    ///
    /// # Errors
    /// When the store fails.
    pub fn world(
        &self,
        assignments: Option<&Assignments>,
        staged: Option<&Assignments>,
        verified: Option<&BTreeMap<String, Answered>>,
        table: Option<&RoutingTable>,
    ) -> Result<(), StoreError> {
        let mut changes = Vec::new();
        if let Some(assignments) = assignments {
            changes.push(Change::put(ASSIGNMENTS, assignments)?);
        }
        if let Some(staged) = staged {
            changes.push(Change::put(STAGED, staged)?);
        }
        if let Some(verified) = verified {
            changes.push(Change::put(VERIFIED, verified)?);
        }
        if let Some(table) = table {
            changes.push(Change::put(TABLE, table)?);
        }
        if changes.is_empty() { Ok(()) } else { self.0.transact(&changes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Sqlite;

    #[test]
    fn what_is_forgotten_is_gone_with_its_ending_and_the_rest_is_as_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let journal = Journal::new(Arc::new(Sqlite::open(&folder.path().join("matrix.db")).expect("a store")));
        for number in 1..=4 {
            let release = Release { number, ..Release::none() };
            journal.begin(&Rollout::new(release, jiff::Timestamp::UNIX_EPOCH, false)).expect("begun");
            let state = if number == 2 { State::Failed } else { State::Good };
            let ending = Ending { state, why: Vec::new(), at: jiff::Timestamp::UNIX_EPOCH };
            journal.end(number, &ending, &Assignments::new(), None).expect("ended");
        }
        let before = journal.read().expect("a state");
        journal.forget(&BTreeSet::from([1, 2])).expect("forgotten");
        let numbers = |releases: Vec<Release>| releases.iter().map(|release| release.number).collect::<Vec<_>>();
        assert_eq!(numbers(journal.releases().expect("releases")), [3, 4]);
        let after = journal.read().expect("a state");
        assert_eq!(after.endings.keys().copied().collect::<Vec<_>>(), [3, 4]);
        assert_eq!(Remembered { endings: before.endings.clone(), ..after }, before);
        // Never by cleaning: then it is a damaged file, not a cloud without a release.
        journal.forget(&BTreeSet::from([4])).expect("forgotten");
        assert!(matches!(journal.read(), Err(StoreError::Missing(key)) if key == "release/000000000004"));
    }
}
