//! The configuration file read key by key: every error at once, with its place and what to do.
//!
//! Reads text only; whether a named file is there is found out by whoever opens it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::config::{AdmissionPolicy, Config, FEWEST_RELEASES, Healing, PlanFile, StaticNode, Varnish};
use crate::{
    model::{ImageRef, Repository},
    plan::{
        Diagnostic,
        diagnostic::{Notes, Source, nearest},
        milliseconds,
        table::{self, Fields, Value, wrong_type},
    },
};

const KEYS: &[&str] = &[
    "cloud",
    "state",
    "run",
    "listen",
    "token_file",
    "leases",
    "ssh",
    "admission",
    "nodes",
    "registry",
    "ports",
    "disk_limit",
    "gc",
    "rebalance",
    "rebalance_pause",
    "varnish",
    "plan",
    "healing",
];
const SSH: &[&str] = &["user", "identity", "port", "engine_socket"];
const ADMISSION: &[&str] = &["policy", "macs"];
const NODE: &[&str] = &["name", "address"];
const REGISTRY: &[&str] = &["name", "endpoint", "namespace"];
const GC: &[&str] = &["at", "keep_releases", "grace_minutes", "tags", "storage", "collect", "restart"];
const VARNISH: &[&str] = &["workdir", "port"];
const PLAN: &[&str] = &["file", "watch"];
const HEALING: &[&str] = &["lost_after", "move_after", "freeze_share"];

impl Config {
    /// Reads a configuration; `file` is its name for people.
    ///
    /// # Errors
    /// All that is wrong with it, in the file's order.
    pub fn read(file: &str, text: &str) -> Result<Self, Vec<Diagnostic>> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let source = Source::new(file, text);
        let mut syntax = Notes::default();
        let root = table::parse(text, &mut syntax);
        if syntax.has_errors() {
            return Err(syntax.finish(&source));
        }
        let mut found = Notes::default();
        let config = config(&root, &mut found);
        if found.has_errors() { Err(found.finish(&source)) } else { Ok(config) }
    }
}

fn config(root: &DeTable<'_>, found: &mut Notes) -> Config {
    let mut config = Config::default();
    let file = Fields::new(root, KEYS, "the configuration", |_| None, found);
    set(&file, "cloud", &mut config.cloud, found);
    path(&file, "state", &mut config.state, found);
    path(&file, "run", &mut config.run, found);
    if let Some(v) = file.get("run").filter(|_| config.run.as_os_str().len() > 60) {
        found
            .error(v.span(), "run is longer than 60 characters")
            .hint("sockets live below it, and a socket's path ends at 108");
    }
    set(&file, "listen", &mut config.listen, found);
    optional_path(&file, "token_file", &mut config.token_file, found);
    optional_path(&file, "leases", &mut config.leases, found);
    set(&file, "ports", &mut config.ports, found);
    if let Some(v) = file.get("ports").filter(|_| config.ports[0] == 0 || config.ports[0] > config.ports[1]) {
        found.error(v.span(), "ports is the first and the last, from 1 to 65535").hint("as in ports = [20000, 29999]");
    }
    set(&file, "disk_limit", &mut config.disk_limit, found);
    set(&file, "rebalance", &mut config.rebalance, found);
    set(&file, "rebalance_pause", &mut config.rebalance_pause, found);
    if let Some(v) = file.get("disk_limit").filter(|_| !(1..=100).contains(&config.disk_limit)) {
        found.error(v.span(), "disk_limit is a percentage from 1 to 100");
    }
    if let Some(ssh) = section(&file, "ssh", SSH, found) {
        set(&ssh, "user", &mut config.ssh.user, found);
        path(&ssh, "identity", &mut config.ssh.identity, found);
        set(&ssh, "port", &mut config.ssh.port, found);
        path(&ssh, "engine_socket", &mut config.ssh.engine_socket, found);
        let user = &config.ssh.user;
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if let Some(v) =
            ssh.get("user").filter(|_| user.is_empty() || user.starts_with('-') || !user.chars().all(plain))
        {
            found.error(v.span(), format!("ssh.user {} is no user's name", table::quoted(user)));
        }
        if let Some(v) = ssh.get("port").filter(|_| config.ssh.port == 0) {
            found.error(v.span(), "ssh.port is a number from 1 to 65535");
        }
    }
    admission(&file, &mut config, found);
    nodes(&file, &mut config, found);
    registry(&file, &mut config, found);
    gc(&file, &mut config, found);
    if let Some(varnish) = section(&file, "varnish", VARNISH, found) {
        let mut workdir = PathBuf::new();
        if required(&file, &varnish, "varnish", "workdir", found) {
            path(&varnish, "workdir", &mut workdir, found);
        }
        let mut port = None;
        set(&varnish, "port", &mut port, found);
        config.varnish = Some(Varnish { workdir, port });
    }
    if let Some(plan) = section(&file, "plan", PLAN, found) {
        let mut read = PlanFile { file: PathBuf::new(), watch: false };
        if required(&file, &plan, "plan", "file", found) {
            path(&plan, "file", &mut read.file, found);
        }
        set(&plan, "watch", &mut read.watch, found);
        config.plan = Some(read);
    }
    healing(&file, &mut config.healing, found);
    config
}

fn healing(file: &Fields<'_>, config: &mut Healing, found: &mut Notes) {
    let Some(healing) = section(file, "healing", HEALING, found) else { return };
    let time = |key: &str, from: u64, slot: &mut Duration, found: &mut Notes| {
        let read = healing.get(key).and_then(|v| milliseconds(&format!("healing.{key}"), from, 3_600_000, v, found));
        *slot = read.map_or(*slot, Duration::from_millis);
    };
    // A second is what two heartbeats take.
    time("lost_after", 1000, &mut config.lost_after, found);
    time("move_after", 0, &mut config.move_after, found);
    set(&healing, "freeze_share", &mut config.freeze_share, found);
    if let Some(v) = healing.get("freeze_share").filter(|_| !(0.0..=1.0).contains(&config.freeze_share)) {
        found
            .error(v.span(), "healing.freeze_share is from 0.0 to 1.0")
            .hint("0.5: more than half of the nodes silent at once moves nothing");
    }
}

fn admission(file: &Fields<'_>, config: &mut Config, found: &mut Notes) {
    let Some(admission) = section(file, "admission", ADMISSION, found) else { return };
    let mut policy = String::new();
    let mut macs = Vec::new();
    if !required(file, &admission, "admission", "policy", found) {
        return;
    }
    set(&admission, "policy", &mut policy, found);
    set(&admission, "macs", &mut macs, found);
    let Some(at) = admission.get("policy").map(Value::span) else { return };
    config.admission = match policy.as_str() {
        "ask" => AdmissionPolicy::Ask,
        "first-use" => AdmissionPolicy::FirstUse,
        "mac" if admission.get("macs").is_none() => {
            found.error(at, "policy mac has no macs").hint("as in macs = [\"02:42:0a:0a:0a:19\"]");
            return;
        }
        "mac" => AdmissionPolicy::Mac { macs },
        other => {
            let known = ["ask", "mac", "first-use"];
            let note =
                found.error(at, format!("admission.policy is ask, mac or first-use, not {}", table::quoted(other)));
            if let Some(near) = nearest(&other.replace('_', "-"), known) {
                note.hint(format!("did you mean {near:?}?"));
            }
            return;
        }
    };
    if let Some(v) = admission.get("macs").filter(|_| policy != "mac") {
        found.error(v.span(), format!("macs has no meaning beside policy {policy}")).hint("policy = \"mac\" uses it");
    }
}

fn nodes(file: &Fields<'_>, config: &mut Config, found: &mut Notes) {
    let Some(value) = file.get("nodes") else { return };
    let DeValue::Array(list) = value.get_ref() else {
        wrong_type("nodes", "a list of tables, as in [[nodes]]", value, found);
        return;
    };
    for entry in list {
        let DeValue::Table(entries) = entry.get_ref() else {
            wrong_type(
                "an entry of nodes",
                "a table, as in { name = \"node25\", address = \"10.10.10.25\" }",
                entry,
                found,
            );
            continue;
        };
        let fields = Fields::new(entries, NODE, "an entry of nodes", |_| None, found);
        let (mut name, mut address) = (None, None);
        for key in NODE {
            if fields.get(key).is_none() {
                found.error(entry.span(), format!("an entry of nodes has no {key}"));
            }
        }
        set(&fields, "name", &mut name, found);
        set(&fields, "address", &mut address, found);
        if let (Some(name), Some(address)) = (name, address) {
            let node = StaticNode { name, address };
            if config.nodes.iter().any(|other| other.name == node.name || other.address == node.address) {
                found.error(entry.span(), format!("the name or address of {} is there twice", node.name));
            }
            config.nodes.push(node);
        }
    }
}

fn registry(file: &Fields<'_>, config: &mut Config, found: &mut Notes) {
    let Some(registry) = section(file, "registry", REGISTRY, found) else { return };
    let it = &mut config.registry;
    set(&registry, "name", &mut it.name, found);
    set(&registry, "endpoint", &mut it.endpoint, found);
    set(&registry, "namespace", &mut it.namespace, found);
    let image = |name: &str| format!("{name}/x").parse::<ImageRef>().ok().and_then(|image| image.registry);
    if let Some(v) = registry.get("name").filter(|_| image(&it.name).as_deref() != Some(it.name.as_str())) {
        found
            .error(v.span(), format!("registry.name {} is not a registry's HOST:PORT", table::quoted(&it.name)))
            .hint("as nodes know it, as in \"matrix-manager.matrix:5000\"");
    }
    let host = it.endpoint.strip_prefix("http://").or_else(|| it.endpoint.strip_prefix("https://"));
    let fits = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    if let Some(v) = registry.get("endpoint").filter(|_| !host.is_some_and(|h| !h.is_empty() && h.chars().all(fits))) {
        found
            .error(v.span(), format!("registry.endpoint {} is not http://HOST:PORT", table::quoted(&it.endpoint)))
            .hint("as the manager reaches it, as in \"http://127.0.0.1:5000\"");
    }
    if let Some(v) = registry.get("namespace").filter(|_| it.namespace.parse::<Repository>().is_err()) {
        found.error(
            v.span(),
            format!("registry.namespace {} cannot begin a repository's name", table::quoted(&it.namespace)),
        );
    }
}

fn gc(file: &Fields<'_>, config: &mut Config, found: &mut Notes) {
    let Some(gc) = section(file, "gc", GC, found) else { return };
    let it = &mut config.gc;
    set(&gc, "at", &mut it.at, found);
    set(&gc, "keep_releases", &mut it.keep_releases, found);
    set(&gc, "grace_minutes", &mut it.grace_minutes, found);
    set(&gc, "tags", &mut it.tags, found);
    optional_path(&gc, "storage", &mut it.storage, found);
    set(&gc, "collect", &mut it.collect, found);
    set(&gc, "restart", &mut it.restart, found);
    if let Some(v) = gc.get("keep_releases").filter(|_| it.keep_releases < FEWEST_RELEASES) {
        found
            .error(v.span(), format!("gc.keep_releases is at least {FEWEST_RELEASES}"))
            .hint("a bad release is often noticed some releases later");
    }
    if let Some(v) = gc.get("tags").filter(|_| it.tags == Some(0)) {
        found.error(v.span(), "gc.tags is at least 1");
    }
    // One without the other would collect while images come, or restart for nothing.
    let whole = it.storage.is_some() && !it.collect.is_empty() && !it.restart.is_empty();
    if let Some(v) = gc.get("collect").or(gc.get("restart")).filter(|_| !whole) {
        found
            .error(v.span(), "gc.collect and gc.restart work together, and with gc.storage")
            .hint("templates/matrix-reference.toml shows all three");
    }
}

/// A table that is there.
fn section<'a>(file: &Fields<'a>, key: &str, known: &'static [&'static str], found: &mut Notes) -> Option<Fields<'a>> {
    let value = file.get(key)?;
    match value.get_ref() {
        DeValue::Table(entries) => Some(Fields::new(entries, known, &format!("[{key}]"), |_| None, found)),
        _ => {
            wrong_type(key, &format!("a table, as in [{key}]"), value, found);
            None
        }
    }
}

/// Whether a table has a key it cannot do without; says so where not.
fn required(file: &Fields<'_>, section: &Fields<'_>, name: &str, key: &str, found: &mut Notes) -> bool {
    let there = section.get(key).is_some();
    if let Some(v) = file.get(name).filter(|_| !there) {
        found.error(v.span(), format!("[{name}] has no {key}"));
    }
    there
}

/// Sets what the key says, where it is there and reads.
fn set<T: DeserializeOwned>(fields: &Fields<'_>, key: &str, slot: &mut T, found: &mut Notes) {
    let Some(value) = fields.get(key) else { return };
    match T::deserialize(ValueDeserializer::from(value.clone())) {
        Ok(read) => *slot = read,
        Err(error) => {
            found.error(error.span().unwrap_or(value.span()), told(key, error.message()));
        }
    }
}

/// Serde's sentence in ours: `invalid type: string "x", expected u16` names neither the key nor a rule people know.
fn told(key: &str, message: &str) -> String {
    let wanted = message.split_once(", expected ").map(|(got, wanted)| {
        let wanted = match wanted {
            "u16" => "a number from 0 to 65535",
            "a sequence" => "a list",
            "a boolean" => "true or false",
            "path string" => "a path in quotes",
            "socket address" => "ADDRESS:PORT in quotes",
            "IP address" => "an address in quotes",
            other => other,
        };
        (got.trim_start_matches("invalid type: ").trim_start_matches("invalid value: "), wanted)
    });
    match wanted {
        Some((got, wanted)) => format!("{key} is {wanted}, not {got}"),
        None => format!("{key}: {message}"),
    }
}

fn path(fields: &Fields<'_>, key: &str, slot: &mut PathBuf, found: &mut Notes) {
    set(fields, key, slot, found);
    absolute(fields, key, slot, found);
}

/// As [`path`]; `false` says none where there is a default.
fn optional_path(fields: &Fields<'_>, key: &str, slot: &mut Option<PathBuf>, found: &mut Notes) {
    match fields.get(key).map(Value::get_ref) {
        None => {}
        Some(DeValue::Boolean(false)) => *slot = None,
        Some(_) => {
            let mut read = PathBuf::from("/");
            path(fields, key, &mut read, found);
            *slot = Some(read);
        }
    }
}

fn absolute(fields: &Fields<'_>, key: &str, read: &Path, found: &mut Notes) {
    let Some(value) = fields.get(key) else { return };
    let DeValue::String(text) = value.get_ref() else { return };
    if !read.is_absolute() || text.chars().any(char::is_control) {
        found
            .error(value.span(), format!("{key} {} is not an absolute path", table::quoted(text)))
            .hint("a daemon has no folder of its own to start from");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = include_str!("../../templates/matrix-reference.toml");

    /// What serde knows of a struct: the list it offers for a key it does not know.
    fn expected(text: &str) -> Vec<String> {
        let error = toml::from_str::<Config>(text).expect_err("an unknown key");
        let list = error.message().split_once("expected ").expect("a list").1;
        list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn the_known_keys_are_the_configurations() {
        for (text, keys) in [
            ("zzz = 1", KEYS),
            ("[ssh]\nzzz = 1", SSH),
            ("[[nodes]]\nzzz = 1", NODE),
            ("[registry]\nzzz = 1", REGISTRY),
            ("[gc]\nzzz = 1", GC),
            ("[varnish]\nzzz = 1", VARNISH),
            ("[plan]\nzzz = 1", PLAN),
            ("[healing]\nzzz = 1", HEALING),
        ] {
            assert_eq!(expected(text), keys, "{text}");
        }
    }

    /// `#KEY = VALUE` in the template is a key that has no default; each is there, and the template is valid both ways.
    #[test]
    fn the_template_shows_every_key_with_its_default() {
        let config = Config::read("matrix.toml", TEMPLATE).expect("a valid template");
        assert_eq!(
            format!("{config:?}"),
            format!("{:?}", Config::default()),
            "what is not commented out is the default"
        );
        let uncommented: String = TEMPLATE
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
                // The example below takes its place.
                _ if line == "policy = \"ask\"" => "\n".to_owned(),
                _ => format!("{line}\n"),
            })
            .collect();
        Config::read("matrix.toml", &uncommented).expect("valid with every example");
        let table: toml::Table = uncommented.parse().expect("TOML");
        let keys = |table: &toml::Table| table.keys().cloned().collect::<Vec<_>>();
        let sorted = |keys: &[&str]| {
            let mut keys: Vec<_> = keys.iter().map(|k| (*k).to_owned()).collect();
            keys.sort();
            keys
        };
        assert_eq!(keys(&table), sorted(KEYS));
        for (section, known) in [
            ("ssh", SSH),
            ("admission", ADMISSION),
            ("registry", REGISTRY),
            ("gc", GC),
            ("varnish", VARNISH),
            ("plan", PLAN),
            ("healing", HEALING),
        ] {
            assert_eq!(keys(table[section].as_table().expect("a table")), sorted(known), "{section}");
        }
        assert_eq!(keys(table["nodes"][0].as_table().expect("a table")), sorted(NODE));
    }

    #[test]
    fn every_error_is_told_at_once_with_its_place() {
        let text = "
cloud = \"My Cloud\"
state = \"state\"
runn = \"/run/matrix\"
listen = [\"10.10.10.1:8080\", \"here\"]
leases = 5
ports = [30000, 20000]
varnish = {}
plan = { watch = \"yes\" }
token_file = \"/etc/\\u001b[2J\"

[ssh]
user = \"-oProxyCommand=reboot\"
port = \"22\"

[admission]
policy = \"first_use\"

[registry]
name = \"registry; reboot\"
endpoint = \"ftp://x\"
namespace = \"Cloud\"

[[nodes]]
name = \"node25\"
address = \"10.10.10.25\"
[[nodes]]
name = \"node25\"
adress = \"10.10.10.26\"
[[nodes]]
name = \"node26\"
address = \"10.10.10.25\"
";
        let found = Config::read("matrix.toml", text).expect_err("much is wrong");
        let said: Vec<String> = found.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(said.join("\n"));
    }

    #[test]
    fn leases_can_be_left_to_static_nodes() {
        let config = Config::read("f", "leases = false\nnodes = [{ name = \"a\", address = \"::1\" }]").expect("valid");
        assert!(config.leases.is_none() && config.nodes.len() == 1);
        let config = Config::read("f", "[admission]\npolicy = \"mac\"\nmacs = [\"02:42:0a:0a:0a:19\"]").expect("valid");
        assert!(matches!(config.admission, AdmissionPolicy::Mac { macs } if macs.len() == 1));
        assert!(Config::read("f", "").is_ok() && Config::read("f", "= 1").is_err());
    }
}
