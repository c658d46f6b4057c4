//! What the templates show: words, signs and links, all settled here.
//!
//! Holds no markup: the templates hold that, and no decisions.

use std::net::{IpAddr, SocketAddr};

use bytesize::ByteSize;
use serde::Serialize;

use crate::{
    api::{
        nodes::{NodeView, NodesView, StateView, besides},
        views::{ApplicationView, InstanceState, InstanceView, StatusView},
    },
    manager::events::{Event, Kind},
    model::{AppName, HostName, ImageRef, PathPrefix, Port, Timestamp},
};

/// All a page is made from.
#[derive(Debug, Clone)]
pub struct Shown {
    /// When it was so.
    pub at: Timestamp,
    /// The cloud.
    pub status: StatusView,
    /// Its machines.
    pub nodes: NodesView,
    /// What happened last, oldest first.
    pub events: Vec<Event>,
    /// How routes become links; none: they are shown only.
    pub links: Option<Links>,
}

/// Where the gateway answers people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Links {
    host: String,
    port: Port,
}

impl Links {
    /// From a request's Host header: only what is a plain host name or an address is taken.
    pub fn new(host_header: &str, port: Port) -> Option<Self> {
        let authority: http::uri::Authority = host_header.parse().ok()?;
        let host = authority.host();
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let named = bare.to_ascii_lowercase().parse::<HostName>().is_ok_and(|h| h.wildcard_suffix().is_none());
        let sound = !host_header.contains('@') && (named || bare.parse::<IpAddr>().is_ok());
        sound.then(|| Self { host: host.to_owned(), port })
    }
    /// The address of a route, `/shop` or `shop.example/`; none where it has no one address.
    fn href(&self, route: &str) -> Option<String> {
        let (host, path) = route.split_at(route.find('/')?);
        let path: PathPrefix = path.parse().ok()?;
        let host = match host {
            "" => self.host.clone(),
            host => host.parse::<HostName>().ok().filter(|h| h.wildcard_suffix().is_none())?.to_string(),
        };
        let end = if path.is_root() { "" } else { "/" };
        Some(format!("http://{host}:{}{path}{end}", self.port))
    }
}

#[derive(Serialize)]
pub(super) struct View {
    title: String,
    at: Moment,
    cloud: String,
    overall: State,
    release: Option<ReleaseRow>,
    on_its_way: Option<OnItsWayRow>,
    instances: Count,
    ready: Count,
    candidates: usize,
    gateway: Gateway,
    problems: Vec<String>,
    applications: Vec<AppRow>,
    nodes: Vec<NodeRow>,
    lease_problems: Vec<String>,
    routes: Vec<RouteRow>,
    events: Vec<EventRow>,
}

/// A moment for programs and, where no script runs, for people.
#[derive(Serialize)]
struct Moment {
    iso: String,
    text: String,
}

/// `class` is `good`, `move`, `warn`, `bad` or `idle`: it chooses the sign.
#[derive(Serialize)]
struct State {
    class: &'static str,
    word: String,
}

#[derive(Serialize)]
struct ReleaseRow {
    number: u64,
    created: Moment,
    by: String,
    message: Option<String>,
}

/// The release that follows: its number, and how far it is.
#[derive(Serialize)]
struct OnItsWayRow {
    number: u64,
    step: String,
}

#[derive(Serialize)]
struct Count {
    good: usize,
    all: usize,
}

#[derive(Serialize)]
struct Gateway {
    word: &'static str,
    more: &'static str,
}

#[derive(Serialize)]
struct AppRow {
    name: String,
    class: &'static str,
    serving: String,
    image: String,
    image_full: String,
    routes: Vec<Link>,
    instances: Vec<InstanceRow>,
}

#[derive(Serialize)]
struct Link {
    text: String,
    href: Option<String>,
}

#[derive(Serialize)]
struct InstanceRow {
    name: String,
    class: &'static str,
    state: &'static str,
    why: Option<String>,
    node: String,
    address: String,
    created: Option<Moment>,
    release: String,
}

#[derive(Serialize)]
struct NodeRow {
    name: String,
    class: &'static str,
    state: String,
    since: Moment,
    address: String,
    mac: Option<String>,
    engine: Option<EngineCell>,
    disk: Option<Disk>,
    instances: usize,
    foreign: usize,
    lease: Option<Moment>,
    why: Option<String>,
    todo: Option<String>,
}

#[derive(Serialize)]
struct EngineCell {
    version: String,
    machine: String,
}

#[derive(Serialize)]
struct Disk {
    /// In hundredths.
    used: u64,
    text: String,
}

#[derive(Serialize)]
struct RouteRow {
    link: Link,
    app: String,
    class: &'static str,
    served: String,
}

#[derive(Serialize)]
struct EventRow {
    at: Moment,
    class: &'static str,
    kind: &'static str,
    subject: String,
    node: String,
    text: String,
}

impl View {
    pub(super) fn new(shown: &Shown) -> Self {
        let status = &shown.status;
        let nodes = &shown.nodes.nodes;
        let admitted = nodes.iter().filter(|n| !matches!(n.state, StateView::Candidate | StateView::Refused));
        Self {
            title: title(status),
            at: moment(shown.at),
            cloud: status.cloud.to_string(),
            overall: overall(status),
            release: status.release.as_ref().map(|release| ReleaseRow {
                number: release.number,
                created: moment(release.created),
                by: release.by.clone(),
                message: release.message.clone(),
            }),
            on_its_way: status
                .on_its_way
                .as_ref()
                .map(|next| OnItsWayRow { number: next.number, step: next.step.clone() }),
            instances: Count {
                good: status.applications.values().map(|app| app.serving as usize).sum(),
                all: status.applications.values().map(|app| app.wanted as usize).sum(),
            },
            ready: Count { good: nodes.iter().filter(|n| n.state == StateView::Ready).count(), all: admitted.count() },
            candidates: nodes.iter().filter(|n| n.state == StateView::Candidate).count(),
            gateway: match status.gateway_up {
                Some(true) => Gateway { word: "answers", more: "Varnish is up" },
                Some(false) => Gateway { word: "away", more: "Varnish does not answer" },
                None => Gateway { word: "none", more: "nothing is routed" },
            },
            problems: status.problems.clone(),
            applications: status.applications.iter().map(|(name, app)| app_row(name, app, shown)).collect(),
            nodes: nodes.iter().map(node_row).collect(),
            lease_problems: shown.nodes.problems.clone(),
            routes: routes(shown),
            events: shown.events.iter().rev().map(event_row).collect(),
        }
    }
}

/// What the browser's tab says: the state first, for who has many.
pub(super) fn title(status: &StatusView) -> String {
    let sign = match overall(status).class {
        "good" => "●",
        "move" => "◐",
        "bad" => "✕",
        _ => "○",
    };
    format!("{sign} {} · matrix", status.cloud)
}

fn overall(status: &StatusView) -> State {
    let state = |class, word: &str| State { class, word: word.to_owned() };
    let instances = || status.applications.values().flat_map(|app| &app.instances);
    let is_bad = |i: &InstanceView| instance_state(i.state).0 == "bad";
    let short = status.applications.values().any(|app| app.serving < app.wanted);
    let absent: Vec<&str> = status
        .nodes
        .iter()
        .filter(|(_, node)| matches!(node.state.as_str(), "lost" | "refused"))
        .map(|(name, _)| name.as_str())
        .collect();
    if !status.problems.is_empty() || instances().any(is_bad) {
        state("bad", "Needs attention")
    } else if !status.settled {
        state("move", "Under way")
    } else if !absent.is_empty() {
        state("warn", &format!("{} without {}", if short { "Serving less" } else { "All serving" }, absent.join(", ")))
    } else if short {
        state("move", "Under way")
    } else if status.release.is_none() {
        state("idle", "No release yet")
    } else if status.applications.values().all(|app| app.wanted == 0) {
        state("idle", "Nothing is to serve")
    } else {
        state("good", "All serving")
    }
}

fn moment(at: Timestamp) -> Moment {
    Moment {
        iso: at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        text: at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
    }
}

/// Sign and word.
fn instance_state(state: InstanceState) -> (&'static str, &'static str) {
    match state {
        InstanceState::Serving => ("good", "serving"),
        InstanceState::Unhealthy => ("bad", "unhealthy"),
        InstanceState::Starting => ("move", "starting"),
        InstanceState::Failed => ("bad", "failed"),
        InstanceState::Waiting => ("warn", "waiting"),
        InstanceState::Unreachable => ("warn", "unreachable"),
        InstanceState::Unplaced => ("bad", "no place"),
        InstanceState::Leaving => ("idle", "leaving"),
    }
}

/// Sign and words: how many of an application's instances serve.
fn serving(app: &ApplicationView) -> (&'static str, String) {
    let class = match (app.serving, app.wanted) {
        (_, 0) => "idle",
        (0, _) => "bad",
        (serving, wanted) if serving < wanted => "warn",
        _ => "good",
    };
    let words = match (app.wanted, app.instances.is_empty()) {
        (0, true) => "none wanted".to_owned(),
        (0, false) => "leaving".to_owned(),
        (wanted, _) => format!("{} of {wanted} serving", app.serving),
    };
    (class, words)
}

fn link(route: &str, links: Option<&Links>) -> Link {
    Link { text: route.to_owned(), href: links.and_then(|links| links.href(route)) }
}

fn app_row(name: &AppName, app: &ApplicationView, shown: &Shown) -> AppRow {
    let (class, serving) = serving(app);
    AppRow {
        name: name.to_string(),
        class,
        serving,
        image: ImageRef::brief(&app.image),
        image_full: app.image.clone(),
        routes: app.routes.iter().map(|route| link(route, shown.links.as_ref())).collect(),
        instances: app.instances.iter().map(instance_row).collect(),
    }
}

fn instance_row(instance: &InstanceView) -> InstanceRow {
    let (class, state) = instance_state(instance.state);
    let address = instance.address.zip(instance.port).map(|(a, port)| SocketAddr::new(a, Port::get(port)));
    InstanceRow {
        name: instance.instance.to_string(),
        class,
        state,
        why: instance.why.clone(),
        node: instance.node.as_ref().map(ToString::to_string).unwrap_or_default(),
        address: address.map(|address| address.to_string()).unwrap_or_default(),
        created: instance.created.map(moment),
        release: instance.release.map(|number| number.to_string()).unwrap_or_default(),
    }
}

fn node_row(node: &NodeView) -> NodeRow {
    let (class, state) = match node.state {
        StateView::Candidate => ("idle", "candidate"),
        StateView::Refused => ("bad", "refused"),
        StateView::Unknown => ("idle", "unknown"),
        StateView::Ready => ("good", "ready"),
        StateView::Suspect => ("warn", "suspect"),
        StateView::Lost => ("bad", "lost"),
    };
    let besides = besides(node.intake, node.disk_full, node.instances);
    let class = if class == "good" && !besides.is_empty() { "warn" } else { class };
    let size = |bytes| ByteSize(bytes).display().iec().to_string();
    let disk = node.engine.as_ref().and_then(|engine| engine.disk_free.zip(engine.disk_total));
    NodeRow {
        name: node.name.to_string(),
        class,
        state: [vec![state], besides].concat().join(", "),
        since: moment(node.since),
        address: node.address.to_string(),
        mac: node.mac.map(|mac| mac.to_string()),
        engine: node.engine.as_ref().map(|engine| EngineCell {
            version: engine.version.clone(),
            machine: format!("{} CPUs, {}, {}", engine.cpus, size(engine.memory.bytes()), engine.architecture),
        }),
        disk: disk.filter(|(_, total)| *total > 0).map(|(free, total)| Disk {
            used: 100 - free.min(total).saturating_mul(100) / total,
            text: format!("{} free of {}", size(free), size(total)),
        }),
        instances: node.instances,
        foreign: node.foreign,
        lease: node.lease_expires.map(moment),
        why: node.trouble.clone(),
        todo: (node.state == StateView::Candidate).then(|| format!("matrix nodes admit {}", node.name)),
    }
}

/// Every route, by its text; on one route the applications by name.
fn routes(shown: &Shown) -> Vec<RouteRow> {
    let mut all: Vec<_> = shown
        .status
        .applications
        .iter()
        .flat_map(|(name, app)| app.routes.iter().map(move |route| (route.as_str(), name, app)))
        .collect();
    all.sort_by_key(|(route, name, _)| (*route, *name));
    let row = |(route, name, app): (&str, &AppName, &ApplicationView)| {
        let (class, served) = match app.serving {
            0 if app.wanted == 0 => ("idle", "nobody, as planned (503)".to_owned()),
            0 => ("bad", "nobody (503)".to_owned()),
            1 => (serving(app).0, "1 instance".to_owned()),
            some => (serving(app).0, format!("{some} instances")),
        };
        RouteRow { link: link(route, shown.links.as_ref()), app: name.to_string(), class, served }
    };
    all.into_iter().map(row).collect()
}

fn event_row(event: &Event) -> EventRow {
    let (class, kind) = match event.kind {
        Kind::Begin => ("move", "began"),
        Kind::Done => ("good", "done"),
        Kind::Failed => ("bad", "failed"),
        Kind::Note => ("idle", "note"),
    };
    EventRow {
        at: moment(event.at),
        class,
        kind,
        subject: event.subject.clone(),
        node: event.node.as_ref().map(ToString::to_string).unwrap_or_default(),
        text: event.text.clone(),
    }
}
