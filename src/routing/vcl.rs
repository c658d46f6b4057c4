//! VCL text from a routing table: a root that chooses the application, and one VCL for each application.
//!
//! The templates hold no decisions and no value reaches them unchecked: what could leave its string or identifier is
//! refused, never repaired. No time, no host names to resolve: the same table gives the same bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Write},
    sync::LazyLock,
};

use serde::Serialize;
use sha2::{Digest, Sha256};
use tera::{Context, Kwargs, State, Tera, Value};

use super::{AppRouting, Backend, Canary, Probe, RoutingTable, paths};
use crate::model::AppName;

/// What every VCL and label of ours is called: others' are never touched.
pub const PREFIX: &str = "matrix_";

/// What a label stands for before its application's VCL is in use: `templates/empty.vcl`.
pub const NOTHING: &str = "matrix_nothing";

/// Why a table has no VCL.
#[derive(Debug, thiserror::Error)]
pub enum VclError {
    /// A value that could leave its place in the text.
    #[error("cannot write the VCL of {what}")]
    Refused {
        /// `shop`, or `the routes`.
        what: String,
        /// What was refused.
        source: tera::Error,
    },
}

static TEMPLATES: LazyLock<Tera> = LazyLock::new(|| {
    let mut tera = Tera::default();
    tera.autoescape_on([".vcl"]);
    tera.set_escape_fn(plain);
    tera.register_filter("quoted", quoted);
    tera.register_filter("spaces", spaces);
    tera.add_raw_templates([
        ("root.vcl", include_str!("../../templates/root.vcl")),
        ("app.vcl", include_str!("../../templates/app.vcl")),
    ])
    .unwrap_or_else(|e| unreachable!("the templates are part of the program: {e}"));
    tera
});

/// Identifiers, addresses and numbers as they are; anything else is refused.
fn plain(text: &str, out: &mut dyn Write) -> io::Result<()> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"._:/-".contains(&b);
    if text.bytes().all(fits) {
        out.write_all(text.as_bytes())
    } else {
        Err(io::Error::other(format!("{text:?} may not stand in VCL")))
    }
}

/// A VCL string: it ends at a quote or a line's end and knows no escapes.
fn quoted(text: &str, _: Kwargs, _: &State) -> tera::TeraResult<Value> {
    if text.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'"') {
        Ok(Value::safe_string(&format!("\"{text}\"")))
    } else {
        Err(tera::Error::message(format!("{text:?} may not stand in a VCL string")))
    }
}

fn spaces(depth: u64, _: Kwargs, _: &State) -> Value {
    Value::safe_string(&"    ".repeat(usize::try_from(depth).unwrap_or(0)))
}

fn render(template: &str, what: impl Into<String>, view: &impl Serialize) -> Result<String, VclError> {
    let refused = |source| VclError::Refused { what: what.into(), source };
    match Context::from_serialize(view).and_then(|context| TEMPLATES.render(template, &context)) {
        Ok(text) => Ok(text),
        Err(source) => Err(refused(source)),
    }
}

/// The label under which an application's VCL is found, whichever version it is.
pub fn label(app: &AppName) -> String {
    format!("{PREFIX}{}", app.vcl_identifier())
}

/// An application's second label. A root names one of the two: another root that names the other one lets several
/// applications change in the one step of using it.
pub fn second_label(app: &AppName) -> String {
    format!("{PREFIX}second_{}", app.vcl_identifier())
}

/// The label a root names that names the second one of these.
pub fn label_in(app: &AppName, second: &BTreeSet<AppName>) -> String {
    if second.contains(app) { second_label(app) } else { label(app) }
}

/// The name of an application's VCL of this text: another text has another name.
pub fn app_version(app: &AppName, text: &str) -> String {
    app_versions(app) + &version(text)
}

/// The names of all of an application's VCLs, but for the hexadecimal digits at their end.
pub fn app_versions(app: &AppName) -> String {
    format!("{PREFIX}vcl_{}_", app.vcl_identifier())
}

/// The name of the root of this text.
pub fn root_version(text: &str) -> String {
    format!("{PREFIX}root_{}", version(text))
}

/// The arguments varnishd wants beyond its address and folder, from `templates/varnishd.params`, one `-p` each.
pub fn varnishd_parameters() -> impl Iterator<Item = &'static str> {
    let lines = include_str!("../../templates/varnishd.params").lines();
    lines.map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).flat_map(|l| ["-p", l])
}

fn version(text: &str) -> String {
    hex(&Sha256::digest(text)[..6])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// A container's backend; two distinct names never share one.
///
/// Lower-case letters and digits stay, any other byte becomes `_` and two hexadecimal digits. What would be longer than
/// Varnish's counters like to be called is named by its hash.
pub fn backend_id(container: &str) -> String {
    let mut id = String::from("b_");
    for byte in container.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => id.push(byte.into()),
            _ => id = id + "_" + &hex(&[byte]),
        }
    }
    if id.len() <= 120 {
        return id;
    }
    format!("h_{}", hex(&Sha256::digest(container)))
}

/// The root: host and longest path to an application's label, a page for all else.
pub fn root(table: &RoutingTable) -> Result<String, VclError> {
    root_naming(table, &BTreeSet::new())
}

/// The same, naming the second label of these applications.
pub fn root_naming(table: &RoutingTable, second: &BTreeSet<AppName>) -> Result<String, VclError> {
    #[derive(Serialize)]
    struct Root {
        by_host: bool,
        steps: Vec<paths::Step>,
    }
    let steps = paths::steps(table, second);
    let by_host = steps.iter().any(paths::Step::by_host);
    render("root.vcl", "the routes", &Root { by_host, steps })
}

/// What the root is called among the applications: a name that none can have.
pub const ROOT: &str = "(root)";

/// All VCL of a table: [`ROOT`], and each application's by its name.
pub fn all(table: &RoutingTable) -> Result<BTreeMap<String, String>, VclError> {
    let apps = table.apps.iter().map(|(name, routing)| Ok((name.to_string(), app(name, routing)?)));
    std::iter::once(root(table).map(|text| (ROOT.to_owned(), text))).chain(apps).collect()
}

/// One application's VCL.
///
/// A backend that serves no more is left out: new requests never reach it, and those in flight end in the VCL they
/// began in, which Varnish keeps for as long as it is busy.
pub fn app(name: &AppName, routing: &AppRouting) -> Result<String, VclError> {
    #[derive(Serialize)]
    struct App<'a> {
        name: &'a str,
        id: String,
        backends: Vec<BackendView>,
        several: bool,
        canary: Option<CanaryView>,
        retries: usize,
        patience: String,
        strip_by_host: bool,
        strip: Vec<paths::Cut>,
        idempotent: bool,
        cache_seconds: u32,
    }
    let serving = || routing.backends.iter().filter(|(_, b)| b.serving);
    let backends: Vec<_> = serving().map(|(key, b)| BackendView::new(key, b)).collect();
    let strip = if routing.strip_path { paths::cuts(&routing.routes) } else { Vec::new() };
    let view = App {
        name: name.as_str(),
        id: name.vcl_identifier(),
        several: backends.len() > 1,
        canary: routing.canary.as_ref().and_then(|canary| CanaryView::new(canary, serving().map(|(key, _)| key))),
        // Varnish itself ends at four (max_retries).
        retries: backends.len().saturating_sub(1).min(4),
        patience: seconds(patience(routing)),
        strip_by_host: strip.iter().any(paths::Cut::by_host),
        strip,
        idempotent: routing.idempotent,
        cache_seconds: routing.cache_seconds.unwrap_or(0),
        backends,
    };
    render("app.vcl", name.as_str(), &view)
}

/// How long a request that may be repeated waits for its answer to begin, in milliseconds: ten times what the health check
/// may take. Long, since a page that is only slow must not run twice; connections to a node that is lost are cut earlier.
fn patience(routing: &AppRouting) -> u32 {
    let slowest = routing.backends.values().filter_map(|b| Some(b.probe.as_ref()?.timeout_ms)).max();
    slowest.map_or(10_000, |timeout| timeout.saturating_mul(10).clamp(3_000, 60_000))
}

/// Who is tried out, and who is not.
#[derive(Serialize)]
struct CanaryView {
    share: u32,
    new: Vec<String>,
    old: Vec<String>,
}

impl CanaryView {
    /// None where only one kind serves: that takes all requests.
    fn new<'a>(canary: &Canary, serving: impl Iterator<Item = &'a String>) -> Option<Self> {
        let (new, old): (Vec<_>, Vec<_>) = serving.partition(|key| canary.backends.contains(*key));
        let ids = |keys: Vec<&String>| keys.into_iter().map(|key| backend_id(key)).collect::<Vec<_>>();
        let view = Self { share: canary.share, new: ids(new), old: ids(old) };
        (!view.new.is_empty() && !view.old.is_empty()).then_some(view)
    }
}

#[derive(Serialize)]
struct BackendView {
    id: String,
    host: String,
    port: u16,
    probe: Option<ProbeView>,
}

#[derive(Serialize)]
struct ProbeView {
    path: String,
    request: Option<[String; 4]>,
    status: u16,
    interval: String,
    timeout: String,
}

impl BackendView {
    fn new(container: &str, backend: &Backend) -> Self {
        Self {
            id: backend_id(container),
            host: backend.address.to_string(),
            port: backend.port.get(),
            probe: backend.probe.as_ref().map(ProbeView::new),
        }
    }
}

impl ProbeView {
    fn new(probe: &Probe) -> Self {
        let request = probe.host.as_ref().map(|host| {
            [
                format!("GET {} HTTP/1.1", probe.path),
                format!("Host: {host}"),
                "User-Agent: matrix".to_owned(),
                "Connection: close".to_owned(),
            ]
        });
        Self {
            path: probe.path.clone(),
            request,
            status: probe.status,
            interval: seconds(probe.interval_ms),
            timeout: seconds(probe.timeout_ms),
        }
    }
}

fn seconds(millis: u32) -> String {
    format!("{}.{:03}", millis / 1000, millis % 1000)
}
