//! A plan in TOML: `[apps.NAME]` and `[defaults]`, read key by key with the place of each.
//!
//! Reads what is written; what it means together with other keys and applications is `check`'s.
//! `plans/reference.toml` describes the keys, and a test holds the two together.

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    check::{Cache, Draft, NodeEntry, Paths, Settings},
    diagnostic::{Notes, Source, Span, nearest},
    field, health, limits, table,
    table::{Fields, Value},
    update, value,
};
use crate::model::{AppName, Invalid, NodeName, PathPrefix, Port};

/// The keys of an application.
pub const APP_KEYS: &[&str] = &[
    "image",
    "nodes",
    "replicas",
    "port",
    "publish",
    "path",
    "host",
    "strip_path",
    "environment",
    "command",
    "entrypoint",
    "volumes",
    "memory",
    "cpus",
    "user",
    "working_dir",
    "health",
    "restart",
    "labels",
    "cache",
    "idempotent",
    "drain_timeout",
    "stop_timeout",
    "update",
];
/// The keys that only make sense for one application.
const ONLY_APPS: &[&str] = &["image", "publish", "path", "host"];
/// The keys of `[defaults]`: an application's but for `image`, `publish`, `path` and `host`.
pub const DEFAULTS_KEYS: &[&str] = &[
    "nodes",
    "replicas",
    "port",
    "strip_path",
    "environment",
    "command",
    "entrypoint",
    "volumes",
    "memory",
    "cpus",
    "user",
    "working_dir",
    "health",
    "restart",
    "labels",
    "cache",
    "idempotent",
    "drain_timeout",
    "stop_timeout",
    "update",
];
/// The keys of an entry of `nodes` that is a table.
pub const NODE_KEYS: &[&str] = &["node", "publish"];
/// The keys of an entry of `volumes` that is a table.
pub const VOLUME_KEYS: &[&str] = &["source", "target", "read_only"];

/// What to write instead of a key that Compose, or habit, would use.
fn advice(key: &str) -> Option<String> {
    Some(
        match key {
            "mem_limit" | "mem" => "write memory, as in memory = \"64m\"",
            "stop_grace_period" => "write stop_timeout, as in stop_timeout = \"10s\"",
            "ports" | "expose" => "write port for the port inside the container and publish for the host's",
            "healthcheck" => "write health, as in health = \"/healthz\"",
            "env" | "env_file" => "write environment, as in environment = { NAME = \"value\" }",
            "deploy" | "scale" | "instances" | "count" => "write replicas, as in replicas = 3",
            "container_name" => "leave it out: instances are named NAME.1, NAME.2 and so on",
            "build" => "leave it out: matrix create-image and matrix install-image make images",
            "depends_on" | "links" => "leave it out: an instance is routed once its health check answers",
            "networks" | "network_mode" => "leave it out: each instance is reached by its node's address and port",
            "cmd" => "write command, as in command = [\"serve\", \"--verbose\"]",
            "workdir" => "write working_dir, as in working_dir = \"/srv\"",
            "domain" | "domains" | "hostname" => "write host, as in host = \"shop.example\"",
            _ => return None,
        }
        .to_owned(),
    )
}

/// The applications a TOML text describes, as far as it can be read.
pub(super) fn read(source: &Source, found: &mut Notes) -> Vec<Draft> {
    let mut syntax = Notes::default();
    let root = table::parse(source.text(), &mut syntax);
    let mut meaning = Notes::default();
    let drafts = drafts(&root, &mut meaning);
    if syntax.has_errors() {
        // What follows from a line that is no TOML is noise, and so is a whole table below such a header.
        let (broken, headless) = syntax.broken_lines(source);
        meaning.retain(|note| {
            let line = source.line(note.span.start);
            !broken.contains(&line) && !headless.contains(&line)
        });
        syntax.retain(|note| !headless.contains(&source.line(note.span.start)));
    } else if drafts.is_empty() && !meaning.has_errors() {
        meaning.error(0..0, "the plan names no application").hint("add [apps.NAME]; an empty table is enough");
    }
    found.extend(syntax);
    found.extend(meaning);
    drafts
}

fn drafts(root: &DeTable<'_>, found: &mut Notes) -> Vec<Draft> {
    let strays = |key: &str| match root.get(key).map(Spanned::get_ref) {
        _ if nearest(key, ["apps", "defaults"]).is_some() => None,
        Some(DeValue::Table(table)) if table.keys().any(|k| APP_KEYS.contains(&k.get_ref().as_ref())) => {
            Some(format!("for an application of this name write [apps.{key}]"))
        }
        _ => (key == "services").then(|| "write [apps.NAME] for each application".to_owned()),
    };
    let fields = Fields::new(root, &["apps", "defaults"], "a plan", strays, found);
    let defaults = match fields.get("defaults") {
        Some(value) => match value.get_ref() {
            DeValue::Table(table) => {
                let advice = |key: &str| {
                    if ONLY_APPS.contains(&key) {
                        Some("write it in each application: it cannot be the same for two".to_owned())
                    } else {
                        advice(key)
                    }
                };
                settings(Fields::new(table, DEFAULTS_KEYS, "[defaults]", advice, found), true, found)
            }
            _ => {
                table::wrong_type("defaults", "a table", value, found);
                Settings::default()
            }
        },
        None => Settings::default(),
    };
    let Some(apps) = fields.get("apps") else { return Vec::new() };
    let DeValue::Table(apps) = apps.get_ref() else {
        table::wrong_type("apps", "a table of applications", apps, found).hint("write [apps.NAME]");
        return Vec::new();
    };
    let mut drafts = Vec::new();
    for (key, value) in apps {
        let name: Option<AppName> = match key.get_ref().parse() {
            Ok(name) => Some(name),
            Err(error) => {
                found.error(key.span(), error.to_string());
                None
            }
        };
        let DeValue::Table(table) = value.get_ref() else {
            let note =
                table::wrong_type(&format!("application {}", table::quoted(key.get_ref())), "a table", value, found);
            note.hint("write [apps.NAME], or NAME = { … } below [apps]");
            continue;
        };
        let settings = settings(Fields::new(table, APP_KEYS, "an application", advice, found), false, found);
        if let Some(name) = name {
            drafts.push(Draft::new(name, key.span(), settings.over(&defaults)));
        }
    }
    drafts.sort_by_key(|draft| draft.span.start);
    drafts
}

/// `value` with its place.
fn at<T>(span: Span, value: T) -> Spanned<T> {
    Spanned::new(span, value)
}

fn settings(fields: Fields<'_>, in_defaults: bool, found: &mut Notes) -> Settings {
    let get = |key| fields.get(key).map(|value| (key, value));
    let app = |key| if in_defaults { None } else { get(key) };
    Settings {
        image: app("image").and_then(|(key, v)| {
            Some(at(v.span(), table::parsed(key, "an image's name in quotes, as in \"shop:v2\"", v, found)?))
        }),
        nodes: get("nodes").and_then(|(_, v)| Some(at(v.span(), nodes(v, in_defaults, found)?))),
        replicas: get("replicas")
            .and_then(|(key, v)| Some(at(v.span(), table::number(key, 0, limits::REPLICAS, v, found)?))),
        port: get("port").and_then(|(key, v)| port(key, v, found)),
        publish: app("publish").and_then(|(key, v)| Some(at(v.span(), port(key, v, found)?))),
        paths: app("path").and_then(|(_, v)| paths(v, found)),
        hosts: app("host").map(|(key, v)| {
            let wanted = "a host name in quotes, or a list of them";
            let hosts = table::one_or_more(v)
                .filter_map(|v| Some(at(v.span(), table::parsed(key, wanted, v, found)?)))
                .collect::<Vec<_>>();
            if v.get_ref().as_array().is_some_and(|list| list.is_empty()) {
                found.error(v.span(), "host is an empty list").hint("leave it out to serve any host");
            }
            at(v.span(), hosts)
        }),
        strip_path: get("strip_path").and_then(|(key, v)| table::boolean(key, v, found)),
        environment: get("environment").map(|(_, v)| field::environment(v, found)).unwrap_or_default(),
        command: get("command").and_then(|(key, v)| field::command(key, v, found)),
        entrypoint: get("entrypoint").and_then(|(key, v)| field::command(key, v, found)),
        volumes: get("volumes").and_then(|(_, v)| field::volumes(v, found)),
        memory: get("memory").and_then(|(key, v)| field::memory(key, v, found)),
        cpus: get("cpus").and_then(|(_, v)| field::cpus(v, found)),
        user: get("user").and_then(|(_, v)| field::user(v, found)),
        working_dir: get("working_dir").and_then(|(key, v)| {
            let path = table::text(key, "an absolute path in quotes", v, found)?;
            if value::absolute(path) {
                return Some(path.to_owned());
            }
            found.error(v.span(), format!("working_dir {path:?} is not an absolute path in the container"));
            None
        }),
        health: get("health").map(|(_, v)| health::read(v, found)).unwrap_or_default(),
        restart: get("restart").and_then(|(_, v)| field::restart(v, found)),
        labels: get("labels").map(|(_, v)| field::labels(v, found)).unwrap_or_default(),
        cache: get("cache").and_then(|(key, v)| match v.get_ref() {
            DeValue::Boolean(false) => Some(Cache::Never),
            _ => seconds(key, 1, limits::CACHE_SECONDS, v, found).map(Cache::Seconds),
        }),
        idempotent: get("idempotent").and_then(|(key, v)| table::boolean(key, v, found)),
        drain_timeout: get("drain_timeout").and_then(|(k, v)| seconds(k, 0, limits::WAIT_SECONDS, v, found)),
        stop_timeout: get("stop_timeout").and_then(|(k, v)| seconds(k, 0, limits::WAIT_SECONDS, v, found)),
        update: get("update").map(|(_, v)| update::read(v, found)).unwrap_or_default(),
    }
}

fn port(key: &str, value: &Value<'_>, found: &mut Notes) -> Option<Port> {
    if let DeValue::String(text) = value.get_ref()
        && text.contains(':')
    {
        table::wrong_type(key, "a number from 1 to 65535", value, found)
            .hint("write publish for the host's port and port for the one inside the container");
        return None;
    }
    u16::try_from(table::number(key, 1, 65535, value, found)?).ok().and_then(Port::new)
}

/// A duration in milliseconds between two, both included.
pub(crate) fn milliseconds(key: &str, from: u64, to: u64, value: &Value<'_>, found: &mut Notes) -> Option<u64> {
    let wanted = "a duration in quotes, as in \"10s\" or \"500ms\"";
    if let DeValue::Integer(number) = value.get_ref() {
        let note = table::wrong_type(key, wanted, value, found);
        note.hint(format!("with its unit: {key} = \"{}s\"", number.as_str()));
        return None;
    }
    let text = table::text(key, wanted, value, found)?;
    let Some(ms) = value::milliseconds(text) else {
        let message = format!("{key} {} is not numbers with units h, m, s or ms", table::quoted(text));
        found.error(value.span(), message).hint(format!("as in {key} = \"10s\", \"500ms\" or \"1m30s\""));
        return None;
    };
    if (from..=to).contains(&ms) {
        return Some(ms);
    }
    found.error(value.span(), format!("{key} is from {} to {}", value::duration(from), value::duration(to)));
    None
}

/// A duration in whole seconds.
pub(super) fn seconds(key: &str, from: u32, to: u32, value: &Value<'_>, found: &mut Notes) -> Option<u32> {
    let ms = milliseconds(key, u64::from(from) * 1000, u64::from(to) * 1000, value, found)?;
    if !ms.is_multiple_of(1000) {
        found.error(value.span(), format!("{key} counts whole seconds"));
        return None;
    }
    u32::try_from(ms / 1000).ok()
}

fn nodes(value: &Value<'_>, in_defaults: bool, found: &mut Notes) -> Option<Vec<NodeEntry>> {
    let wanted = "a list of nodes, as in [\"node25\", \"node108\"]";
    let DeValue::Array(list) = value.get_ref() else {
        table::wrong_type("nodes", wanted, value, found);
        return None;
    };
    if list.is_empty() {
        found.error(value.span(), "nodes is an empty list").hint("leave it out to let the manager choose");
        return None;
    }
    let name = |v: &Value<'_>, found: &mut Notes| -> Option<NodeName> {
        let text = table::text("a node", "a name in quotes", v, found)?;
        text.parse()
            .map_err(|error: Invalid| {
                let note = found.error(v.span(), error.to_string());
                if let Some((short, _)) = text.split_once('.').filter(|(short, _)| short.parse::<NodeName>().is_ok()) {
                    note.hint(format!("write {short:?}, without its domain"));
                }
            })
            .ok()
    };
    let mut entry = |v: &Value<'_>| match v.get_ref() {
        DeValue::Table(entry) => {
            let fields = Fields::new(entry, NODE_KEYS, "an entry of nodes", |_| None, found);
            let node = match fields.get("node") {
                Some(v) => name(v, found),
                None => {
                    found.error(v.span(), "an entry of nodes names no node").hint("as in { node = \"node25\" }");
                    None
                }
            };
            let publish = fields.get("publish").and_then(|v| {
                if in_defaults {
                    found.error(v.span(), "publish cannot be in [defaults]").hint("write it in each application");
                    return None;
                }
                port("publish", v, found)
            });
            Some(at(v.span(), (node?, publish)))
        }
        _ => Some(at(v.span(), (name(v, found)?, None))),
    };
    let read: Vec<_> = list.iter().filter_map(&mut entry).collect();
    (read.len() == list.len()).then_some(read)
}

fn paths(value: &Value<'_>, found: &mut Notes) -> Option<Paths> {
    let wanted = "a path in quotes, a list of them, or false for not routed";
    match value.get_ref() {
        DeValue::Boolean(false) => return Some(Paths::Unrouted),
        DeValue::Boolean(true) => {
            found.error(value.span(), format!("path is {wanted}")).hint("leave it out for the path /NAME");
            return None;
        }
        DeValue::Array(list) if list.is_empty() => {
            found.error(value.span(), "path is an empty list").hint("for not routed write path = false");
            return None;
        }
        _ => {}
    }
    let paths = table::one_or_more(value)
        .filter_map(|v| {
            let text = table::text("path", wanted, v, found)?;
            match text.parse() {
                Ok(path) => Some(at(v.span(), path)),
                Err(error) => {
                    let error: Invalid = error;
                    let note = found.error(v.span(), error.to_string());
                    if let Some(with_slash) = Some(format!("/{text}")).filter(|t| t.parse::<PathPrefix>().is_ok()) {
                        note.hint(format!("did you mean {with_slash:?}?"));
                    }
                    None
                }
            }
        })
        .collect();
    Some(Paths::At(paths))
}
