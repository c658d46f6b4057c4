//! The store in one SQLite file, WAL, synchronous: what `transact` returned from survives a power cut.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rusqlite::{Connection, OptionalExtension, params};
use tokio::sync::watch;

use super::{Change, Entry, Store, StoreError};

/// The layout's version, in `user_version`.
const LAYOUT: i64 = 1;

/// A store in a file.
pub struct Sqlite {
    file: PathBuf,
    connection: Mutex<Connection>,
    written: watch::Sender<u64>,
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sqlite").field(&self.file).finish()
    }
}

impl Sqlite {
    /// Opens the file, or makes it (its folder must be there). Checks it first: a corrupt file is refused, not repaired.
    ///
    /// # Errors
    /// When it cannot be opened, is corrupt, or was written by a newer version.
    pub fn open(file: &Path) -> Result<Self, StoreError> {
        let wrap = |source| StoreError::Database { file: file.display().to_string(), source };
        let corrupt = |why: String| {
            rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), Some(why))
        };
        // SQLite takes an empty file for a new database; ours was cut off: a new one has its first page at once.
        if std::fs::metadata(file).is_ok_and(|it| it.len() == 0) {
            return Err(wrap(corrupt("it is empty".to_owned())));
        }
        let connection = Connection::open(file).map_err(wrap)?;
        let prepare = || -> rusqlite::Result<()> {
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.busy_timeout(std::time::Duration::from_secs(5))?;
            let sound: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
            let layout: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            if sound != "ok" {
                return Err(corrupt(sound));
            }
            if layout > LAYOUT {
                return Err(corrupt(format!("its layout {layout} was written by a newer matrix")));
            }
            connection.execute_batch(
                "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value BLOB NOT NULL, version INTEGER NOT NULL) \
                 WITHOUT ROWID",
            )?;
            connection.pragma_update(None, "user_version", LAYOUT)
        };
        prepare().map_err(wrap)?;
        Ok(Self { file: file.to_owned(), connection: Mutex::new(connection), written: watch::Sender::new(0) })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic inside a transaction rolled it back: the connection is sound.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrap(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Database { file: self.file.display().to_string(), source }
    }
}

impl Store for Sqlite {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.connection()
            .query_row("SELECT value, version FROM entries WHERE key = ?1", [key], |row| {
                Ok(Entry { value: row.get(0)?, version: row.get(1)? })
            })
            .optional()
            .map_err(|e| self.wrap(e))
    }

    fn list(&self, prefix: &str) -> Result<BTreeMap<String, Entry>, StoreError> {
        let connection = self.connection();
        let read = || -> rusqlite::Result<BTreeMap<String, Entry>> {
            connection
                .prepare_cached(
                    "SELECT key, value, version FROM entries WHERE key >= ?1 AND substr(key, 1, length(?1)) = ?1",
                )?
                .query_map([prefix], |row| Ok((row.get(0)?, Entry { value: row.get(1)?, version: row.get(2)? })))?
                .collect()
        };
        read().map_err(|e| self.wrap(e))
    }

    fn transact(&self, changes: &[Change]) -> Result<(), StoreError> {
        let mut connection = self.connection();
        let transaction = connection.transaction().map_err(|e| self.wrap(e))?;
        for change in changes {
            let now: u64 = transaction
                .query_row("SELECT version FROM entries WHERE key = ?1", [&change.key], |row| row.get(0))
                .optional()
                .map_err(|e| self.wrap(e))?
                .unwrap_or(0);
            if change.expect.is_some_and(|wanted| wanted != now) {
                return Err(StoreError::Conflict(change.key.clone()));
            }
            match &change.value {
                Some(value) => transaction.execute(
                    "INSERT INTO entries VALUES (?1, ?2, 1) ON CONFLICT (key) DO UPDATE SET value = ?2, version = version + 1",
                    params![change.key, value],
                ),
                None => transaction.execute("DELETE FROM entries WHERE key = ?1", [&change.key]),
            }
            .map_err(|e| self.wrap(e))?;
        }
        transaction.commit().map_err(|e| self.wrap(e))?;
        self.written.send_modify(|n| *n += 1);
        Ok(())
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{get_json, list_json};

    #[test]
    fn writes_are_kept_and_conflicts_change_nothing() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("matrix.db");
        let store = Sqlite::open(&file).expect("a store");
        store
            .transact(&[
                Change::put("a/1", &1).expect("json").expect(0),
                Change::put("a/2", &2).expect("json"),
                Change::put("b", &3).expect("json"),
            ])
            .expect("written");
        let again =
            store.transact(&[Change::put("a/2", &9).expect("json"), Change::put("a/1", &9).expect("json").expect(0)]);
        assert!(matches!(again, Err(StoreError::Conflict(key)) if key == "a/1"));
        drop(store);
        let store = Sqlite::open(&file).expect("the store again");
        let all: BTreeMap<String, u8> = list_json(&store, "a/").expect("a list");
        assert_eq!(all, BTreeMap::from([("1".into(), 1), ("2".into(), 2)]));
        store.transact(&[Change::delete("a/1").expect(1)]).expect("deleted");
        assert_eq!(get_json::<u8>(&store, "a/1").expect("a look"), None);
    }

    #[test]
    fn a_corrupt_file_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("matrix.db");
        let store = Sqlite::open(&file).expect("a store");
        let values: Vec<Change> =
            (0..50).map(|n| Change::put(format!("k/{n}"), &"x".repeat(500)).expect("json")).collect();
        store.transact(&values).expect("written");
        drop(store);
        let good = std::fs::read(&file).expect("a file");
        let garbage = |from: usize, to: usize| {
            let mut bytes = good.clone();
            bytes[from..to].fill(0xa5);
            bytes
        };
        for (what, bytes) in [
            ("no database", b"this is no database, but long enough to look like one".repeat(100)),
            ("empty", Vec::new()),
            ("a garbage header", garbage(0, 100)),
            ("a garbage page", garbage(2 * 4096, 3 * 4096)),
            ("the second half cut off", good[..good.len() / 2].to_vec()),
        ] {
            std::fs::write(&file, bytes).expect("a file");
            let error = Sqlite::open(&file).expect_err(what);
            assert!(error.to_string().contains("matrix.db"), "{what}: {error}");
        }
        std::fs::write(&file, good).expect("a file");
        let all: BTreeMap<String, String> = list_json(&Sqlite::open(&file).expect("sound"), "k/").expect("a list");
        assert_eq!(all.len(), 50);
    }
}
