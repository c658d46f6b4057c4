//! Versioned keys: get, list, compare-and-set in one transaction, watch.
//!
//! Knows nothing of what the values mean. SQLite embedded; another store only needs this trait.

mod sqlite;

use std::collections::BTreeMap;

use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

pub use sqlite::Sqlite;

/// A value and how often its key was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Vec<u8>,
    /// 1 at the first write, one more at each other.
    pub version: u64,
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// The new value; none deletes.
    pub value: Option<Vec<u8>>,
    /// The version the key must have now (0: absent) for the transaction to happen; none: any.
    pub expect: Option<u64>,
}

impl Change {
    /// Write a value whatever is there.
    ///
    /// # Errors
    /// When the value cannot be written as JSON.
    pub fn put(key: impl Into<String>, value: &impl Serialize) -> Result<Self, StoreError> {
        let key = key.into();
        let value = serde_json::to_vec(value).map_err(|e| StoreError::Value(key.clone(), e))?;
        Ok(Self { key, value: Some(value), expect: None })
    }
    /// Delete a key whatever it holds.
    pub fn delete(key: impl Into<String>) -> Self {
        Self { key: key.into(), value: None, expect: None }
    }
    /// The same, only if the key has this version now (0: absent).
    #[must_use]
    pub fn expect(mut self, version: u64) -> Self {
        self.expect = Some(version);
        self
    }
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else wrote the key first.
    #[error("{0} was changed by somebody else meanwhile")]
    Conflict(String),
    /// The value is not the JSON it should be.
    #[error("the value of {0} in the state file is not readable")]
    Value(String, #[source] serde_json::Error),
    /// Another value names this one.
    #[error("{0} is missing in the state file")]
    Missing(String),
    /// The database failed.
    #[error("cannot use the state file {file}")]
    Database {
        /// The file.
        file: String,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
}

/// Versioned keys. Calls take well under a millisecond but for `transact`, which waits for the disk.
pub trait Store: Send + Sync + std::fmt::Debug {
    /// The value of a key.
    ///
    /// # Errors
    /// When the database fails.
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;
    /// All keys that begin with `prefix`, in order.
    ///
    /// # Errors
    /// When the database fails.
    fn list(&self, prefix: &str) -> Result<BTreeMap<String, Entry>, StoreError>;
    /// All changes, or none.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when an expectation does not hold; otherwise when the database fails.
    fn transact(&self, changes: &[Change]) -> Result<(), StoreError>;
    /// Counts transactions: changes whenever anything was written.
    fn watch(&self) -> watch::Receiver<u64>;
}

/// Reads a JSON value.
///
/// # Errors
/// When the database fails or the value is not of this shape.
pub fn get_json<T: DeserializeOwned>(store: &dyn Store, key: &str) -> Result<Option<T>, StoreError> {
    store
        .get(key)?
        .map(|entry| serde_json::from_slice(&entry.value).map_err(|e| StoreError::Value(key.to_owned(), e)))
        .transpose()
}

/// Reads all JSON values whose keys begin with `prefix`; keys come without it.
///
/// # Errors
/// When the database fails or a value is not of this shape.
pub fn list_json<T: DeserializeOwned>(store: &dyn Store, prefix: &str) -> Result<BTreeMap<String, T>, StoreError> {
    store
        .list(prefix)?
        .into_iter()
        .map(|(key, entry)| {
            let value = serde_json::from_slice(&entry.value).map_err(|e| StoreError::Value(key.clone(), e))?;
            Ok((key[prefix.len()..].to_owned(), value))
        })
        .collect()
}
