//! What the manager remembers over restarts: releases, places, what was seen to answer, the last routing table.
//!
//! The journal says what was meant; the world says what is. Nothing here is trusted about the world but to keep it as it is.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    model::NodeName,
    release::Release,
    routing::RoutingTable,
    schedule::Assignments,
    store::{Change, Store, StoreError, get_json, list_json},
};

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
const ASSIGNMENTS: &str = "assignments";
const VERIFIED: &str = "verified";
const TABLE: &str = "routing-table";

/// Releases sort by number as text.
fn release_key(number: u64) -> String {
    format!("{RELEASE}{number:012}")
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
        let release = match get_json::<u64>(store, CURRENT)? {
            Some(number) => get_json::<Release>(store, &release_key(number))?,
            None => None,
        };
        let previous = match &release {
            Some(release) if release.number > 1 => get_json(store, &release_key(release.number - 1))?,
            _ => None,
        };
        Ok(Remembered {
            release,
            previous,
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
    /// Keeps a release and makes it the current one, in one transaction.
    ///
    /// # Errors
    /// When the store fails, or another release took the number.
    pub fn release(&self, release: &Release) -> Result<(), StoreError> {
        self.0.transact(&[
            Change::put(release_key(release.number), release)?.expect(0),
            Change::put(CURRENT, &release.number)?,
        ])
    }
    /// Keeps what changed of the rest.
    ///
    /// # Errors
    /// When the store fails.
    pub fn world(
        &self,
        assignments: Option<&Assignments>,
        verified: Option<&BTreeMap<String, Answered>>,
        table: Option<&RoutingTable>,
    ) -> Result<(), StoreError> {
        let mut changes = Vec::new();
        if let Some(assignments) = assignments {
            changes.push(Change::put(ASSIGNMENTS, assignments)?);
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
