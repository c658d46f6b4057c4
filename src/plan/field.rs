//! The values of an application's keys that describe its container: environment, command, mounts, limits.
//!
//! Each by itself; what is read wrong becomes a finding and nothing.

use std::collections::BTreeMap;

use toml::de::DeValue;

use super::{
    Restart, Volume,
    diagnostic::{Notes, Span, nearest},
    document::VOLUME_KEYS,
    limits, table,
    table::{Fields, Lines, Value},
    value,
};
use crate::model::{Cpus, Memory};

/// A table, or Compose's list of `NAME=VALUE`.
fn pairs(key: &str, lines: Lines, value: &Value<'_>, found: &mut Notes) -> Vec<(String, Span, String)> {
    let mut pairs = Vec::new();
    match value.get_ref() {
        DeValue::Table(entries) => {
            for (name, value) in entries {
                let what = format!("{key} {}", table::quoted(name.get_ref()));
                if let Some(text) = table::scalar(&what, lines, value, found) {
                    pairs.push((name.get_ref().clone().into_owned(), name.span(), text));
                }
            }
        }
        DeValue::Array(list) => {
            for entry in list {
                let Some(text) = table::scalar(&format!("an entry of {key}"), lines, entry, found) else { continue };
                let Some((name, value)) = text.split_once('=') else {
                    found
                        .error(entry.span(), format!("{} of {key} has no value", table::quoted(&text)))
                        .hint("write \"NAME=VALUE\"; nothing is taken from the manager's own environment");
                    continue;
                };
                if pairs.iter().any(|(other, _, _)| other == name) {
                    found.error(entry.span(), format!("{} is there twice in {key}", table::quoted(name)));
                }
                pairs.push((name.to_owned(), entry.span(), value.to_owned()));
            }
        }
        _ => {
            table::wrong_type(key, "a table, as in { NAME = \"value\" }", value, found);
        }
    }
    pairs
}

pub(super) fn environment(value: &Value<'_>, found: &mut Notes) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    for (name, span, text) in pairs("environment", Lines::Many, value, found) {
        if name.is_empty() || name.contains(|c: char| c == '=' || c.is_control()) {
            let message = format!("environment name {name:?} is empty or holds = or a control character");
            found.error(span, message);
        } else if name.len() + text.len() > limits::STRING {
            found.error(
                span,
                format!("environment {} is longer than 128 KiB, which no process can be given", table::quoted(&name)),
            );
        } else {
            map.insert(name, text);
        }
    }
    map
}

pub(super) fn labels(value: &Value<'_>, found: &mut Notes) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    for (name, span, text) in pairs("labels", Lines::One, value, found) {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
        if name.starts_with("matrix.") {
            found
                .error(span, format!("label {} is reserved", table::quoted(&name)))
                .hint("labels that begin with matrix. say whose a container is; choose another name");
        } else if name.is_empty() || name.len() > 255 || !name.chars().all(fits) {
            found.error(span, format!("label name {name:?} may hold only letters, digits, . _ - and /, at most 255"));
        } else {
            map.insert(name, text);
        }
    }
    map
}

pub(super) fn command(key: &str, value: &Value<'_>, found: &mut Notes) -> Option<Vec<String>> {
    let words = match value.get_ref() {
        DeValue::Array(list) => {
            let read: Option<Vec<String>> = list
                .iter()
                .map(|v| match v.get_ref() {
                    DeValue::String(text) => {
                        table::clean(key, text, Lines::Many, v.span(), found).then(|| text.clone().into_owned())
                    }
                    _ => {
                        table::wrong_type(&format!("an entry of {key}"), "a string", v, found)
                            .hint("write it in quotes");
                        None
                    }
                })
                .collect();
            read?
        }
        DeValue::String(line) => {
            if !table::clean(key, line, Lines::Many, value.span(), found) {
                return None;
            }
            match value::words(line) {
                Ok((words, None)) => words,
                Ok((words, Some(word))) => {
                    found
                        .warning(
                            value.span(),
                            format!("{} in {key} is passed on as it is: no shell reads it", table::quoted(&word)),
                        )
                        .hint(format!("for a shell write {key} = [\"sh\", \"-c\", \"…\"]"));
                    words
                }
                Err(rule) => {
                    found.error(value.span(), format!("{key} {rule}"));
                    return None;
                }
            }
        }
        _ => {
            table::wrong_type(key, "a list of strings, or a string that is split at blanks", value, found);
            return None;
        }
    };
    if words.is_empty() || words[0].is_empty() {
        found.error(value.span(), format!("{key} is empty")).hint("leave it out to keep the image's own");
        return None;
    }
    if words.iter().any(|word| word.len() > limits::STRING) {
        found.error(value.span(), format!("{key} has a word longer than 128 KiB, which no process can be given"));
        return None;
    }
    Some(words)
}

pub(super) fn volumes(value: &Value<'_>, found: &mut Notes) -> Option<Vec<Volume>> {
    let DeValue::Array(list) = value.get_ref() else {
        table::wrong_type("volumes", "a list, as in [\"data:/var/lib/data\"]", value, found);
        return None;
    };
    let mut volumes: Vec<Volume> = Vec::new();
    for entry in list {
        let read = match entry.get_ref() {
            DeValue::Table(parts) => {
                let fields = Fields::new(parts, VOLUME_KEYS, "a volume", |_| None, found);
                let mut part = |key: &'static str| match fields.get(key) {
                    Some(v) => table::text(key, "a path or name in quotes", v, found),
                    None => {
                        found.error(entry.span(), format!("a volume has no {key}"));
                        None
                    }
                };
                let (source, target) = (part("source"), part("target"));
                let read_only = fields.get("read_only").map_or(Some(false), |v| table::boolean("read_only", v, found));
                let (Some(source), Some(target), Some(read_only)) = (source, target, read_only) else { continue };
                value::volume(source, target, read_only).map_err(|rule| (format!("{source}:{target}"), rule))
            }
            _ => {
                let Some(text) = table::text("a volume", "\"SOURCE:TARGET\" or a table", entry, found) else {
                    continue;
                };
                value::short_volume(text).map_err(|rule| (text.to_owned(), rule))
            }
        };
        match read {
            Ok(volume) if volumes.iter().any(|v| v.target == volume.target) => {
                found.error(entry.span(), format!("two volumes have the target {}", table::quoted(&volume.target)));
            }
            Ok(volume) => volumes.push(volume),
            Err((text, rule)) => {
                let text: String = text.chars().take(100).collect();
                found.error(entry.span(), format!("volume {text:?} {rule}")).hint("as in \"data:/var/lib/data\"");
            }
        }
    }
    Some(volumes)
}

pub(super) fn memory(key: &str, value: &Value<'_>, found: &mut Notes) -> Option<Memory> {
    if let DeValue::Integer(number) = value.get_ref() {
        let note = table::wrong_type(key, "a size in quotes, as in \"64m\"", value, found);
        note.hint(format!("with its unit: {key} = \"{}m\", or \"{}b\" for bytes", number.as_str(), number.as_str()));
        return None;
    }
    let memory: Memory = table::parsed(key, "a size in quotes, as in \"64m\"", value, found)?;
    if (limits::MEMORY.0..=limits::MEMORY.1).contains(&memory.bytes()) {
        return Some(memory);
    }
    found.error(value.span(), "memory is from 6m (an engine takes no less) to 1048576g");
    None
}

pub(super) fn cpus(value: &Value<'_>, found: &mut Notes) -> Option<Cpus> {
    let number = match value.get_ref() {
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::String(text) => text.clone().into_owned(),
        _ => {
            table::wrong_type("cpus", "a number, as in 0.5", value, found);
            return None;
        }
    };
    number.parse().map_err(|e: crate::model::Invalid| _ = found.error(value.span(), e.to_string())).ok()
}

pub(super) fn user(value: &Value<'_>, found: &mut Notes) -> Option<String> {
    let user = match value.get_ref() {
        DeValue::Integer(_) => table::number("user", 0, u32::MAX, value, found)?.to_string(),
        _ => table::text("user", "a user's name or number, as in \"www-data\" or 1000", value, found)?.to_owned(),
    };
    if value::user(&user) {
        return Some(user);
    }
    let user: String = user.chars().take(100).collect();
    found.error(value.span(), format!("user {user:?} is not USER or USER:GROUP, names or numbers"));
    None
}

pub(super) fn restart(value: &Value<'_>, found: &mut Notes) -> Option<Restart> {
    let wanted = "always, unless-stopped, on-failure or no, in quotes";
    if matches!(value.get_ref(), DeValue::Boolean(false)) {
        table::wrong_type("restart", wanted, value, found).hint("restart = \"no\"");
        return None;
    }
    match table::text("restart", wanted, value, found)? {
        "always" => Some(Restart::Always),
        "unless-stopped" => Some(Restart::UnlessStopped),
        "on-failure" => Some(Restart::OnFailure),
        "no" => Some(Restart::No),
        other => {
            let note = found.error(value.span(), format!("restart is {wanted}, not {}", table::quoted(other)));
            let known = ["always", "unless-stopped", "on-failure", "no"];
            if other.starts_with("on-failure:") {
                note.hint("a number of tries is not kept; write \"on-failure\"");
            } else if let Some(near) = nearest(&other.replace('_', "-"), known) {
                note.hint(format!("did you mean {near:?}?"));
            }
            None
        }
    }
}
