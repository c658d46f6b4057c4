//! An application's `update`: a word, or a table. How a release replaces its instances, and how long it is watched.
//!
//! Only what is written; what has no room for old and new at once is for whoever knows the nodes.

use toml::de::DeValue;

use super::{
    Mode, canary,
    canary::CanarySettings,
    diagnostic::{Notes, nearest},
    document::seconds,
    limits, table,
    table::{Fields, Value},
};

/// The keys of `update`.
pub const UPDATE_KEYS: &[&str] = &["mode", "batch", "pause", "watch", "share", "time", "errors", "latency"];

/// The words of `update.mode`.
const MODES: [(&str, Mode); 4] =
    [("staged", Mode::Staged), ("rolling", Mode::Rolling), ("canary", Mode::Canary), ("recreate", Mode::Recreate)];

/// What `update` says. None: nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct UpdateSettings {
    pub(super) mode: Option<Mode>,
    pub(super) batch: Option<u32>,
    pub(super) pause: Option<u32>,
    pub(super) watch: Option<u32>,
    pub(super) canary: CanarySettings,
}

impl Mode {
    /// As plans write it.
    pub fn word(self) -> &'static str {
        MODES.iter().find(|(_, mode)| *mode == self).map_or("staged", |(word, _)| word)
    }
}

fn advice(key: &str) -> Option<String> {
    Some(
        match key {
            "parallelism" => "write batch: how many instances are replaced at once",
            "delay" => "write pause: how long to wait before the next batch",
            "monitor" => "write watch: how long an application that begins to fail takes its release back",
            "weight" | "percent" | "percentage" | "steps" => {
                "write share: so many of a hundred requests go to the new instances of a canary"
            }
            "duration" | "interval" | "analysis" => "write time: how long a canary has its share of the requests",
            "error_rate" | "max_failure_ratio" => {
                "write errors: by how much a canary's share of failed requests may exceed the old instances'"
            }
            "order" => {
                "leave it out: a new instance always answers before an old one goes, but for mode = \"recreate\""
            }
            "failure_action" => "leave it out: a release that fails is always taken back",
            _ => return None,
        }
        .to_owned(),
    )
}

pub(super) fn read(value: &Value<'_>, found: &mut Notes) -> UpdateSettings {
    match value.get_ref() {
        DeValue::String(_) => UpdateSettings { mode: mode("update", value, found), ..UpdateSettings::default() },
        DeValue::Table(entries) => {
            let fields = Fields::new(entries, UPDATE_KEYS, "update", advice, found);
            let written = fields.get("mode");
            let read = written.and_then(|v| mode("update.mode", v, found));
            let mut canary = canary::read(&fields, found);
            // What belongs to a mode that cannot be read is not known.
            canary.first.take_if(|_| written.is_some() && read.is_none());
            UpdateSettings {
                mode: read,
                batch: fields.get("batch").and_then(|v| table::number("update.batch", 1, limits::REPLICAS, v, found)),
                pause: fields.get("pause").and_then(|v| seconds("update.pause", 0, limits::WAIT_SECONDS, v, found)),
                watch: fields.get("watch").and_then(|v| seconds("update.watch", 0, limits::WAIT_SECONDS, v, found)),
                canary,
            }
        }
        _ => {
            table::wrong_type("update", "staged, rolling, canary or recreate in quotes, or a table", value, found);
            UpdateSettings::default()
        }
    }
}

fn mode(key: &str, value: &Value<'_>, found: &mut Notes) -> Option<Mode> {
    let wanted = "staged, rolling, canary or recreate, in quotes";
    let word = table::text(key, wanted, value, found)?;
    let known = MODES.iter().find(|(known, _)| *known == word).map(|(_, mode)| *mode);
    if known.is_none() {
        let note = found.error(value.span(), format!("{key} is {wanted}, not {}", table::quoted(word)));
        if let Some(near) = nearest(word, MODES.map(|(word, _)| word)) {
            note.hint(format!("did you mean {near:?}?"));
        }
    }
    known
}
