//! What the keys mean together: defaults filled in, then no two applications want one port or one route.
//!
//! Both forms of a plan come through here, so that both get the same errors.

use std::collections::{BTreeMap, btree_map::Entry};

use toml::Spanned;

use super::{
    App, Check, Health, Mode, Pin, Placement, Plan, Restart, Update, Volume, defaults,
    diagnostic::{Notes, Source, Span},
    table::quoted,
    update::UpdateSettings,
};
use crate::model::{AppName, Cpus, HostName, ImageRef, Memory, NodeName, PathPrefix, Port, Route};

/// An entry of `nodes`: the node, and the host port that is its own.
pub(super) type NodeEntry = Spanned<(NodeName, Option<Port>)>;

/// What `path` says.
#[derive(Debug, Clone)]
pub(super) enum Paths {
    Unrouted,
    At(Vec<Spanned<PathPrefix>>),
}

/// What `cache` says.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cache {
    Never,
    Seconds(u32),
}

/// What an application, or `[defaults]`, says. None: nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    pub(super) image: Option<Spanned<ImageRef>>,
    pub(super) nodes: Option<Spanned<Vec<NodeEntry>>>,
    pub(super) replicas: Option<Spanned<u32>>,
    pub(super) port: Option<Port>,
    pub(super) publish: Option<Spanned<Port>>,
    pub(super) paths: Option<Paths>,
    pub(super) hosts: Option<Spanned<Vec<Spanned<HostName>>>>,
    pub(super) strip_path: Option<bool>,
    pub(super) environment: BTreeMap<String, String>,
    pub(super) command: Option<Vec<String>>,
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) volumes: Option<Vec<Volume>>,
    pub(super) memory: Option<Memory>,
    pub(super) cpus: Option<Cpus>,
    pub(super) user: Option<String>,
    pub(super) working_dir: Option<String>,
    pub(super) health: HealthSettings,
    pub(super) restart: Option<Restart>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) cache: Option<Cache>,
    pub(super) idempotent: Option<bool>,
    pub(super) drain_timeout: Option<u32>,
    pub(super) stop_timeout: Option<u32>,
    pub(super) update: UpdateSettings,
}

/// What `health` says.
#[derive(Debug, Clone, Default)]
pub(super) struct HealthSettings {
    pub(super) path: Option<Spanned<String>>,
    pub(super) host: Option<Spanned<String>>,
    pub(super) status: Option<Spanned<u16>>,
    pub(super) tcp: Option<Spanned<bool>>,
    pub(super) interval_ms: Option<u32>,
    pub(super) timeout_ms: Option<u32>,
    pub(super) deadline_seconds: Option<u32>,
}

impl Settings {
    /// These settings, and `below` where they say nothing. Environment, labels and health are merged key by key.
    pub(super) fn over(mut self, below: &Self) -> Self {
        // Who names nodes pins instances to them: a default number of replicas would undo that.
        if self.nodes.is_none() {
            self.replicas = self.replicas.or_else(|| below.replicas.clone());
        }
        macro_rules! inherit {
            ($($field:ident).+ $(, $($more:ident).+)*) => {
                self.$($field).+ = self.$($field).+.or_else(|| below.$($field).+.clone());
                $(self.$($more).+ = self.$($more).+.or_else(|| below.$($more).+.clone());)*
            };
        }
        // A check of one kind in the application hides a default of the other kind.
        if self.health.path.is_none() && self.health.host.is_none() && self.health.status.is_none() {
            inherit!(health.tcp);
        }
        if self.health.tcp.as_ref().is_none_or(|tcp| !*tcp.get_ref()) {
            inherit!(health.path, health.host, health.status);
        }
        inherit!(health.interval_ms, health.timeout_ms, health.deadline_seconds);
        inherit!(nodes, port, strip_path, command, entrypoint, volumes, memory, cpus, user, working_dir, restart);
        inherit!(cache, idempotent, drain_timeout, stop_timeout);
        inherit!(update.mode, update.batch, update.pause, update.watch);
        inherit!(update.canary.share, update.canary.time, update.canary.errors, update.canary.latency);
        for (name, value) in &below.environment {
            self.environment.entry(name.clone()).or_insert_with(|| value.clone());
        }
        for (name, value) in &below.labels {
            self.labels.entry(name.clone()).or_insert_with(|| value.clone());
        }
        self
    }
}

/// An application as it is written, before it is checked against itself and the others.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    name: AppName,
    /// Where its name is.
    pub(super) span: Span,
    settings: Settings,
}

/// Where a plan names what only the world knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Places {
    /// Each mention of a node.
    pub(super) nodes: Vec<(NodeName, Span)>,
    /// Each application's image.
    pub(super) images: Vec<(ImageRef, Span)>,
    /// Applications with a fixed host port on any node.
    pub(super) spread: Vec<(AppName, u32, Span)>,
}

impl Draft {
    pub(super) fn new(name: AppName, span: Span, settings: Settings) -> Self {
        Self { name, span, settings }
    }
    fn routes(&self, found: &mut Notes) -> Vec<(Route, Span)> {
        let hosts: Vec<(Option<HostName>, Span)> = match &self.settings.hosts {
            Some(hosts) => hosts.get_ref().iter().map(|h| (Some(h.get_ref().clone()), h.span())).collect(),
            None => vec![(None, self.span.clone())],
        };
        let paths: Vec<(PathPrefix, Span)> = match &self.settings.paths {
            Some(Paths::Unrouted) => {
                if let Some(hosts) = &self.settings.hosts {
                    found
                        .error(hosts.span(), "host is given, but path = false says that it is not routed")
                        .hint("leave one of the two out");
                }
                return Vec::new();
            }
            Some(Paths::At(paths)) => paths.iter().map(|p| (p.get_ref().clone(), p.span())).collect(),
            None if self.settings.hosts.is_some() => {
                vec![(PathPrefix::root(), hosts.first().map_or(self.span.clone(), |h| h.1.clone()))]
            }
            None => vec![(default_path(&self.name), self.span.clone())],
        };
        let mut routes: Vec<(Route, Span)> = Vec::new();
        for (host, host_span) in &hosts {
            for (path, path_span) in &paths {
                let route = Route { host: host.clone(), path: path.clone() };
                let explicit_path = *path_span != self.span;
                routes.push((route, if explicit_path { path_span.clone() } else { host_span.clone() }));
            }
        }
        routes.sort_by(|a, b| (&a.0, a.1.start).cmp(&(&b.0, b.1.start)));
        routes.dedup_by(|b, a| {
            let same = a.0 == b.0;
            if same && a.1 != b.1 {
                found.warning(b.1.clone(), format!("{} is there twice", a.0));
            }
            same
        });
        routes
    }
    fn placement(&self, found: &mut Notes) -> Placement {
        let publish = self.settings.publish.as_ref().map(|p| *p.get_ref());
        let nodes = self.settings.nodes.as_ref().map(|nodes| nodes.get_ref().as_slice()).unwrap_or_default();
        let Some(replicas) = self.settings.replicas.as_ref().filter(|_| !nodes.is_empty()) else {
            return match nodes {
                [] => Placement::Replicas {
                    count: self.settings.replicas.as_ref().map_or(1, |r| *r.get_ref()),
                    nodes: Vec::new(),
                    publish,
                },
                nodes => Placement::Pinned(
                    nodes
                        .iter()
                        .map(|pin| Pin { node: pin.get_ref().0.clone(), publish: pin.get_ref().1.or(publish) })
                        .collect(),
                ),
            };
        };
        for pin in nodes.iter().filter(|pin| pin.get_ref().1.is_some()) {
            found
                .error(
                    pin.span(),
                    format!("the port of {} is fixed, but replicas may leave this node empty", pin.get_ref().0),
                )
                .hint("leave replicas out for one instance on each node, or use publish for one port on all");
        }
        for (index, pin) in nodes.iter().enumerate() {
            if nodes[..index].iter().any(|other| other.get_ref().0 == pin.get_ref().0) {
                found.error(pin.span(), format!("{} is there twice", pin.get_ref().0));
            }
        }
        let count = *replicas.get_ref();
        if publish.is_some() && count as usize > nodes.len() {
            found
                .error(
                    replicas.span(),
                    format!(
                        "{count} replicas cannot share {} with a fixed port: one a node at most",
                        plural(nodes.len(), "node")
                    ),
                )
                .hint("leave publish out and the manager allots ports, or list more nodes");
        }
        Placement::Replicas { count, nodes: nodes.iter().map(|pin| pin.get_ref().0.clone()).collect(), publish }
    }
    fn health(&self, routes: &[Route], strip_path: bool, found: &mut Notes) -> Health {
        let written = &self.settings.health;
        let check = if written.tcp.as_ref().is_some_and(|tcp| *tcp.get_ref()) {
            let others = [
                ("path", written.path.as_ref().map(Spanned::span)),
                ("host", written.host.as_ref().map(Spanned::span)),
                ("status", written.status.as_ref().map(Spanned::span)),
            ];
            for (key, span) in others {
                if let Some(span) = span {
                    found
                        .error(span, format!("health.{key} has no meaning beside tcp = true"))
                        .hint("leave one of the two out");
                }
            }
            Check::Tcp
        } else {
            Check::Http {
                path: written
                    .path
                    .as_ref()
                    .map_or_else(|| default_health_path(routes, strip_path), |p| p.get_ref().clone()),
                host: written.host.as_ref().map(|h| h.get_ref().clone()),
                status: written.status.as_ref().map(|s| *s.get_ref()),
            }
        };
        Health {
            check,
            interval_ms: written.interval_ms.unwrap_or(defaults::INTERVAL_MS),
            timeout_ms: written.timeout_ms.unwrap_or(defaults::TIMEOUT_MS),
            deadline_seconds: written.deadline_seconds.unwrap_or(defaults::DEADLINE_SECONDS),
        }
    }
    fn update(&self, routes: &[Route], found: &mut Notes) -> Update {
        let (it, or) = (&self.settings.update, Update::default());
        let mode = it.mode.unwrap_or(or.mode);
        if let Some(key) = it.canary.first.as_ref().filter(|_| mode != Mode::Canary) {
            found
                .warning(key.span(), format!("update.{} has no meaning for mode {}", key.get_ref(), mode.word()))
                .hint("leave it out, or write mode = \"canary\"");
        }
        if mode == Mode::Canary && routes.is_empty() {
            found
                .warning(self.span.clone(), format!("{} has no route, and so no requests to share out", self.name))
                .hint("its release goes out as staged; write mode = \"staged\", or leave path = false out");
        }
        Update {
            mode,
            batch: it.batch.unwrap_or(or.batch),
            pause_seconds: it.pause.unwrap_or(or.pause_seconds),
            watch_seconds: it.watch.unwrap_or(or.watch_seconds),
            canary: it.canary.over_defaults(),
        }
    }
    fn app(&self, routes: Vec<Route>, found: &mut Notes) -> App {
        let it = &self.settings;
        let strip_path = it.strip_path.unwrap_or(false);
        App {
            image: it
                .image
                .as_ref()
                .map_or_else(|| default_image(&self.name, &self.span, found), |i| i.get_ref().clone()),
            placement: self.placement(found),
            port: it.port.unwrap_or_else(default_port),
            health: self.health(&routes, strip_path, found),
            update: self.update(&routes, found),
            routes,
            strip_path,
            environment: it.environment.clone(),
            command: it.command.clone(),
            entrypoint: it.entrypoint.clone(),
            volumes: it.volumes.clone().unwrap_or_default(),
            memory: it.memory,
            cpus: it.cpus,
            user: it.user.clone(),
            working_dir: it.working_dir.clone(),
            labels: it.labels.clone(),
            restart: it.restart.unwrap_or(Restart::Always),
            cache_seconds: match it.cache {
                Some(Cache::Seconds(seconds)) => Some(seconds),
                Some(Cache::Never) | None => None,
            },
            idempotent: it.idempotent.unwrap_or(false),
            drain_timeout_seconds: it.drain_timeout.unwrap_or(defaults::DRAIN_SECONDS),
            stop_timeout_seconds: it.stop_timeout.unwrap_or(defaults::STOP_SECONDS),
        }
    }
}

/// The port inside the container where the plan names none.
pub(super) fn default_port() -> Port {
    Port::new(defaults::PORT).unwrap_or_else(|| unreachable!("not 0"))
}

/// `/NAME`
pub(super) fn default_path(name: &AppName) -> PathPrefix {
    format!("/{name}").parse().unwrap_or_else(|_| unreachable!("a name's characters are a path's"))
}

/// `GET` of the first route with a trailing slash; `/` where the application sees no such path.
pub(super) fn default_health_path(routes: &[Route], strip_path: bool) -> String {
    match routes.first() {
        Some(route) if !strip_path && !route.path.is_root() => format!("{}/", route.path),
        _ => "/".to_owned(),
    }
}

/// The application's own name; not every name is a repository's.
fn default_image(name: &AppName, span: &Span, found: &mut Notes) -> ImageRef {
    name.as_str().parse().unwrap_or_else(|_| {
        found
            .error(span.clone(), format!("the name {} cannot be an image's", quoted(name.as_str())))
            .hint("in an image's name a-z and 0-9 are joined by one . or _, by __ or by dashes; say which image: image = \"…\"");
        "unnamed".parse().unwrap_or_else(|_| unreachable!("a repository"))
    })
}

/// `1 node`, `2 nodes`
pub(super) fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// The plan of these drafts (in the file's order), as far as it goes, and where it names the world.
pub(super) fn plan(drafts: &[Draft], source: &Source, found: &mut Notes) -> (Plan, Places) {
    let mut plan = Plan::default();
    let mut places = Places::default();
    let mut ports: BTreeMap<(NodeName, Port), (&AppName, Span)> = BTreeMap::new();
    let mut taken: BTreeMap<Route, (&AppName, Span)> = BTreeMap::new();
    for draft in drafts {
        let routes = draft.routes(found);
        for (route, span) in &routes {
            match taken.entry(route.clone()) {
                Entry::Vacant(free) => _ = free.insert((&draft.name, span.clone())),
                Entry::Occupied(other) => {
                    let (name, line) = (other.get().0, source.line(other.get().1.start));
                    found
                        .error(span.clone(), format!("{route} is already served by {name} (line {line})"))
                        .hint("give one of them another path or host");
                }
            }
        }
        let app = draft.app(routes.into_iter().map(|(route, _)| route).collect(), found);
        claim_ports(draft, &app, &mut ports, source, found);
        note_places(draft, &app, &mut places);
        plan.apps.insert(draft.name.clone(), app);
    }
    (plan, places)
}

/// Says so where a host port that `app` surely takes is taken.
fn claim_ports<'a>(
    draft: &'a Draft,
    app: &App,
    ports: &mut BTreeMap<(NodeName, Port), (&'a AppName, Span)>,
    source: &Source,
    found: &mut Notes,
) {
    let pins: Vec<Pin> = match &app.placement {
        Placement::Pinned(pins) => pins.clone(),
        // With a node to spare the manager may go round the other; without one each is taken.
        Placement::Replicas { count, nodes, publish } if *count as usize >= nodes.len() => {
            nodes.iter().map(|node| Pin { node: node.clone(), publish: *publish }).collect()
        }
        Placement::Replicas { .. } => Vec::new(),
    };
    let spans = draft.settings.nodes.as_ref().map(|nodes| nodes.get_ref().as_slice()).unwrap_or_default();
    for (index, pin) in pins.into_iter().enumerate() {
        let span = spans.get(index).map_or_else(|| draft.span.clone(), Spanned::span);
        let Some(port) = pin.publish else {
            if let Some(first) = spans[..index.min(spans.len())].iter().find(|s| s.get_ref().0 == pin.node) {
                let line = source.line(first.span().start);
                found
                    .warning(
                        span,
                        format!("{} is there twice (line {line}): two instances of {} run there", pin.node, draft.name),
                    )
                    .hint("if one is meant, name it once");
            }
            continue;
        };
        match ports.entry((pin.node.clone(), port)) {
            Entry::Vacant(free) => _ = free.insert((&draft.name, span)),
            Entry::Occupied(other) => {
                let (name, line) = (other.get().0, source.line(other.get().1.start));
                if *name == draft.name {
                    found
                        .error(span, format!("{name} already has port {port} on {} (line {line})", pin.node))
                        .hint("remove one of the two, or give it another port");
                } else {
                    found
                        .error(span, format!("port {port} on {} is already used by {name} (line {line})", pin.node))
                        .hint(format!("choose another port for {}, or leave it out and matrix will", draft.name));
                }
            }
        }
    }
}

fn note_places(draft: &Draft, app: &App, places: &mut Places) {
    let settings = &draft.settings;
    if let Some(nodes) = &settings.nodes {
        places.nodes.extend(nodes.get_ref().iter().map(|pin| (pin.get_ref().0.clone(), pin.span())));
    }
    places.images.push((app.image.clone(), settings.image.as_ref().map_or_else(|| draft.span.clone(), Spanned::span)));
    if let Placement::Replicas { count, nodes, publish: Some(_) } = &app.placement
        && nodes.is_empty()
    {
        let span = settings.replicas.as_ref().map_or_else(|| draft.span.clone(), Spanned::span);
        places.spread.push((draft.name.clone(), *count, span));
    }
}
