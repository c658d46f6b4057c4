//! The gateway: keeps a varnishd running what the last accepted routing table says.
//!
//! Only what changed is loaded, and a table is accepted when varnishd has compiled all of it: a refusal leaves the old
//! one running. A varnishd that comes back empty gets everything again. Never starts or stops varnishd itself, never
//! touches VCL of others, and never stands in a request's way: routes outlive the manager.

mod health;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use health::Sight;

use super::config::Config;
use crate::{
    model::{AppName, Port, Timestamp},
    remote::connections,
    remote::varnish::{Health, Loaded, Varnish, VarnishError},
    routing::{
        RoutingTable,
        vcl::{self, VclError},
    },
};

/// How often varnishd's process number is looked at: one small file.
const GLANCE: Duration = Duration::from_millis(100);
/// How often what is loaded is compared with what should be.
const LOOK: Duration = Duration::from_secs(5);
/// How long what was compiled ahead waits for a table that wants it.
const PREPARED: Duration = Duration::from_secs(20);

/// The gateway's handle; cheap to clone.
#[derive(Debug, Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// None: the configuration has no Varnish; every table is accepted and nothing is routed.
    varnish: Option<Varnish>,
    /// Where VCL is written for varnishd's compiler, which runs as another user.
    folder: PathBuf,
    state: watch::Sender<GatewayState>,
    /// One change at a time; holds what should run.
    wanted: tokio::sync::Mutex<Option<Arc<Generation>>>,
    /// VCLs that were compiled for a table to come.
    prepared: Mutex<BTreeSet<String>>,
    /// When that was.
    preparing: Mutex<Option<Instant>>,
    /// Containers whose backends are overruled as sick; every version of theirs gets told.
    sick: Mutex<BTreeSet<String>>,
    /// What probes say.
    probes: health::Probes,
    /// The last count of requests in flight, and when it began.
    counts: tokio::sync::Mutex<Option<(Instant, BTreeMap<String, u64>)>>,
}

/// What the gateway is like.
#[derive(Debug, Clone)]
pub struct GatewayState {
    /// Whether varnishd runs the active table.
    pub up: bool,
    /// The table that runs, or would if varnishd were up.
    pub active: Option<Arc<RoutingTable>>,
    /// What went wrong last; none when all is well.
    pub error: Option<String>,
    /// Since when it is up, or not.
    pub since: Timestamp,
}

/// What an accepted table changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// The VCLs that were compiled.
    pub loaded: Vec<String>,
    /// How many labels came to stand for another VCL.
    pub labels: usize,
    /// Whether the root was changed.
    pub root: bool,
    /// The VCLs and labels that were forgotten.
    pub discarded: Vec<String>,
}

/// Why a table does not run.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// It cannot be written as VCL.
    #[error(transparent)]
    Render(#[from] VclError),
    /// varnishd's compiler refused it.
    #[error("varnishd refused the VCL of {what}; the routes before stay\n{message}")]
    Compile {
        /// `shop`, or `the routes`.
        what: String,
        /// The compiler's message.
        message: String,
    },
    /// varnishd did not do it.
    #[error(transparent)]
    Varnish(#[from] VarnishError),
    /// The VCL could not be written to its file.
    #[error("cannot write {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A table with its VCL: name and text of the root and of every application.
#[derive(Debug)]
struct Generation {
    table: Arc<RoutingTable>,
    root: (String, String),
    apps: BTreeMap<AppName, (String, String)>,
}

impl Generation {
    fn of(table: &RoutingTable) -> Result<Self, VclError> {
        let text = vcl::root(table)?;
        let app = |(name, routing)| {
            let text = vcl::app(name, routing)?;
            Ok((name.clone(), (vcl::app_version(name, &text), text)))
        };
        Ok(Self {
            table: Arc::new(table.clone()),
            root: (vcl::root_version(&text), text),
            apps: table.apps.iter().map(app).collect::<Result<_, VclError>>()?,
        })
    }

    /// Whether this and nothing else of ours is loaded, labelled and used.
    fn runs(&self, loaded: &[Loaded]) -> bool {
        loaded.iter().any(|l| l.active && l.name == self.root.0)
            && self.apps.iter().all(|(app, (name, _))| stands_for(loaded, &vcl::label(app)) == Some(name))
    }

    fn names(&self) -> BTreeSet<String> {
        let labels = self.apps.keys().map(vcl::label);
        let versions = self.apps.values().map(|(name, _)| name.clone());
        labels.chain(versions).chain([self.root.0.clone()]).collect()
    }
}

fn stands_for<'a>(loaded: &'a [Loaded], label: &str) -> Option<&'a str> {
    loaded.iter().find(|l| l.name == label)?.label_of.as_deref()
}

impl Gateway {
    /// A gateway that looks after the configured varnishd until `stop`. Routes nothing new until the first table.
    pub fn start(config: &Config, stop: CancellationToken) -> Self {
        let gateway = Self {
            inner: Arc::new(Inner {
                varnish: config.varnish.as_ref().map(|v| Varnish::new(&v.workdir)),
                folder: config.run.join("vcl"),
                state: watch::Sender::new(GatewayState {
                    up: false,
                    active: None,
                    error: None,
                    since: Timestamp::now(),
                }),
                wanted: tokio::sync::Mutex::default(),
                prepared: Mutex::default(),
                preparing: Mutex::default(),
                sick: Mutex::default(),
                probes: health::Probes::default(),
                counts: tokio::sync::Mutex::default(),
            }),
        };
        if gateway.inner.varnish.is_some() {
            let inner = Arc::clone(&gateway.inner);
            tokio::spawn(async move {
                let both = async { tokio::join!(inner.supervise(), inner.follow_probes()) };
                stop.run_until_cancelled(both).await
            });
        }
        gateway
    }

    /// Lets varnishd run this table; returns once it does.
    ///
    /// # Errors
    /// A table that cannot be written or compiled changes nothing. While varnishd is down, the table is kept and
    /// loaded when it comes back.
    pub async fn apply(&self, table: &RoutingTable) -> Result<Applied, GatewayError> {
        self.inner.apply(table).await
    }

    /// Compiles what this table will want, while nothing runs it yet. What cannot be compiled is told when it is applied.
    pub async fn prepare(&self, table: &RoutingTable) {
        self.inner.prepare(table).await;
    }

    /// What the gateway is like, now and whenever it changes.
    pub fn state(&self) -> watch::Receiver<GatewayState> {
        self.inner.state.subscribe()
    }

    /// The VCL that runs: [`vcl::ROOT`], and each application's by its name.
    pub async fn vcl(&self) -> BTreeMap<String, String> {
        let wanted = self.inner.wanted.lock().await;
        let Some(generation) = wanted.as_deref() else { return BTreeMap::new() };
        texts(generation)
    }

    /// How many requests are in flight to a container, also in VCLs that take no new ones. None: varnishd knows no
    /// backend of it (any more), so there can be none.
    ///
    /// # Errors
    /// varnishd does not say.
    pub async fn in_flight(&self, container: &str) -> Result<Option<u64>, GatewayError> {
        let Some(varnish) = &self.inner.varnish else { return Ok(None) };
        let id = vcl::backend_id(container);
        let of = |name: &str| name.starts_with(vcl::PREFIX) && name.rsplit_once('.').is_some_and(|(_, b)| b == id);
        let asked = Instant::now();
        let mut last = self.inner.counts.lock().await;
        // Who waited meanwhile shares a count that began after it was asked for.
        if last.as_ref().is_none_or(|(began, _)| *began < asked) {
            *last = Some((Instant::now(), varnish.in_flight().await?));
        }
        let counts = last.iter().flat_map(|(_, counts)| counts);
        let ours: Vec<u64> = counts.filter(|(name, _)| of(name)).map(|(_, count)| *count).collect();
        Ok((!ours.is_empty()).then(|| ours.iter().sum()))
    }

    /// Takes a container's backend out of the turn at once (`sick`), or leaves it to its probe again. Needs no load.
    ///
    /// # Errors
    /// varnishd did not do it; it is remembered and told with the next table.
    pub async fn set_health(&self, container: &str, sick: bool) -> Result<(), GatewayError> {
        {
            let mut all = self.inner.sick.lock().unwrap_or_else(PoisonError::into_inner);
            if sick {
                all.insert(container.to_owned())
            } else {
                all.remove(container)
            };
        }
        let Some(varnish) = &self.inner.varnish else { return Ok(()) };
        let health = if sick { Health::Sick } else { Health::Auto };
        match varnish.set_health(&format!("{}*.{}", vcl::PREFIX, vcl::backend_id(container)), health).await {
            // It has no backend: nothing to take out.
            Err(VarnishError::Refused { message, .. }) if message.contains("No Backends matches") => Ok(()),
            result => Ok(result?),
        }
    }
}

fn texts(generation: &Generation) -> BTreeMap<String, String> {
    let apps = generation.apps.iter().map(|(app, (_, text))| (app.to_string(), text.clone()));
    apps.chain([(vcl::ROOT.to_owned(), generation.root.1.clone())]).collect()
}

impl Inner {
    async fn apply(&self, table: &RoutingTable) -> Result<Applied, GatewayError> {
        let generation = Arc::new(Generation::of(table)?);
        let mut wanted = self.wanted.lock().await;
        let Some(varnish) = &self.varnish else {
            self.became(true, Some(&generation), None);
            *wanted = Some(generation);
            return Ok(Applied::default());
        };
        if wanted.is_none() {
            // What an earlier manager overruled, nobody would give back.
            _ = varnish.set_health(&format!("{}*.*", vcl::PREFIX), Health::Auto).await;
        }
        let left = wanted.as_deref().map(|before| left(&before.table, table)).unwrap_or_default();
        let ending = (!left.is_empty()).then(|| tokio::spawn(end_shut(left)));
        let result = self.install(varnish, &generation).await;
        if let (Err(_), Some(ending)) = (&result, ending) {
            ending.abort();
        }
        match &result {
            Ok(_) => {
                // What runs is prepared no more: once it is out of use it goes, and its probes with it.
                let names = generation.names();
                self.prepared.lock().unwrap_or_else(PoisonError::into_inner).retain(|name| !names.contains(name));
                self.became(true, Some(&generation), None);
                *wanted = Some(generation);
            }
            Err(error @ GatewayError::Varnish(VarnishError::Down { .. })) => {
                self.became(false, Some(&generation), Some(error));
                *wanted = Some(generation);
            }
            Err(error) => {
                let up = self.state.borrow().up;
                self.became(up, None, Some(error));
            }
        }
        result
    }

    async fn prepare(&self, table: &RoutingTable) {
        let (Some(varnish), Ok(generation)) = (&self.varnish, Generation::of(table)) else { return };
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = generation.names();
        *self.preparing.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        for (name, text) in generation.apps.values() {
            // One at a time: what has to run now goes first.
            let _one = self.wanted.lock().await;
            let Ok(loaded) = varnish.list().await else { return };
            let path = self.folder.join(format!("{name}.vcl"));
            if !loaded.iter().any(|l| l.name == *name) && write(&path, text).is_ok() {
                _ = varnish.load_cold(name, &path).await;
            }
        }
        _ = self.prepare_root(varnish, &generation).await;
    }

    /// The root names labels, which have to be there: new ones stand for nothing until the table is applied.
    async fn prepare_root(&self, varnish: &Varnish, generation: &Generation) -> Result<(), GatewayError> {
        let _one = self.wanted.lock().await;
        let loaded = varnish.list().await?;
        let (root, text) = &generation.root;
        let there = |name: &str| loaded.iter().any(|l| l.name == name);
        if there(root) {
            return Ok(());
        }
        if !there(vcl::NOTHING) {
            self.load_nothing(varnish).await?;
        }
        for label in generation.apps.keys().map(vcl::label).filter(|label| !there(label)) {
            varnish.label(&label, vcl::NOTHING).await?;
        }
        self.load(varnish, "the routes", root, text, &mut Applied::default()).await
    }

    async fn load_nothing(&self, varnish: &Varnish) -> Result<(), GatewayError> {
        let text = include_str!("../../../templates/empty.vcl");
        self.load(varnish, "no routes", vcl::NOTHING, text, &mut Applied::default()).await
    }

    /// Loads what is missing, moves labels, uses the root, forgets the rest. At any moment what runs is whole.
    async fn install(&self, varnish: &Varnish, generation: &Generation) -> Result<Applied, GatewayError> {
        let mut applied = Applied::default();
        let loaded = varnish.list().await?;
        let names: BTreeSet<&str> = loaded.iter().map(|l| l.name.as_str()).collect();
        for (app, (name, text)) in &generation.apps {
            if !names.contains(name.as_str()) {
                self.load(varnish, app.as_str(), name, text, &mut applied).await?;
            }
        }
        let mut fresh = applied.loaded.clone();
        for cold in loaded.iter().filter(|l| l.cold && generation.apps.values().any(|(name, _)| *name == l.name)) {
            varnish.warm(&cold.name).await?;
            fresh.push(cold.name.clone());
        }
        self.tell_sick(varnish, generation, &fresh).await;
        let moved: Vec<_> = generation
            .apps
            .iter()
            .filter(|(app, (name, _))| stands_for(&loaded, &vcl::label(app)) != Some(name))
            .collect();
        // A label that is new must be there before the root that names it; one that moves must wait until the root is
        // known to compile.
        let (root, text) = &generation.root;
        for (app, (name, _)) in moved.iter().filter(|(app, _)| !names.contains(vcl::label(app).as_str())) {
            varnish.label(&vcl::label(app), name).await?;
        }
        if !names.contains(root.as_str()) {
            self.load(varnish, "the routes", root, text, &mut applied).await?;
        }
        for (app, (name, _)) in moved.iter().filter(|(app, _)| names.contains(vcl::label(app).as_str())) {
            varnish.label(&vcl::label(app), name).await?;
        }
        applied.labels = moved.len();
        if !loaded.iter().any(|l| l.active && l.name == *root) {
            varnish.use_vcl(root).await?;
            applied.root = true;
        }
        if !varnish.running().await? {
            varnish.start().await?;
        }
        applied.discarded = self.tidy(varnish, &generation.names()).await?;
        Ok(applied)
    }

    async fn load(
        &self,
        varnish: &Varnish,
        what: &str,
        name: &str,
        text: &str,
        applied: &mut Applied,
    ) -> Result<(), GatewayError> {
        let path = self.folder.join(format!("{name}.vcl"));
        write(&path, text).map_err(|source| GatewayError::File { path: path.clone(), source })?;
        match varnish.load(name, &path).await {
            Ok(()) => {
                applied.loaded.push(name.to_owned());
                Ok(())
            }
            Err(error) => {
                // What this table has brought must not stay behind: it would be probing for nobody.
                _ = varnish.discard(&applied.loaded).await;
                match error {
                    VarnishError::Refused { message, .. } => {
                        Err(GatewayError::Compile { what: what.to_owned(), message })
                    }
                    error => Err(error.into()),
                }
            }
        }
    }

    /// Overrules are lost with the VCL they were said of.
    async fn tell_sick(&self, varnish: &Varnish, generation: &Generation, loaded: &[String]) {
        let sick = self.sick.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (app, (name, _)) in generation.apps.iter().filter(|(_, (name, _))| loaded.contains(name)) {
            let serving = generation.table.apps[app].backends.iter().filter(|(_, b)| b.serving);
            for (container, _) in serving.filter(|(container, _)| sick.contains(*container)) {
                _ = varnish.set_health(&format!("{name}.{}", vcl::backend_id(container)), Health::Sick).await;
            }
        }
    }

    /// Forgets what is ours and not kept, loaded or on disk. What is busy ends by itself.
    async fn tidy(&self, varnish: &Varnish, keep: &BTreeSet<String>) -> Result<Vec<String>, GatewayError> {
        let loaded = varnish.list().await?;
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut keep: BTreeSet<String> = keep.union(&prepared).cloned().collect();
        keep.insert(vcl::NOTHING.to_owned());
        let mut old: Vec<_> = loaded
            .into_iter()
            .filter(|l| l.name.starts_with(vcl::PREFIX) && !keep.contains(&l.name) && !l.active)
            .map(|l| l.name)
            .collect();
        // A root before the labels it names, a label before what it stands for.
        let rank = |name: &String| match name.strip_prefix(vcl::PREFIX) {
            Some(rest) if rest.starts_with("root_") => 0,
            Some(rest) if rest.starts_with("vcl_") => 2,
            _ => 1,
        };
        old.sort_by_key(|name| (rank(name), name.clone()));
        for name in &old {
            varnish.discard(std::slice::from_ref(name)).await?;
        }
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let file = entry.file_name();
            let name = file.to_str().and_then(|f| f.strip_suffix(".vcl"));
            if name.is_some_and(|n| n.starts_with(vcl::PREFIX) && !keep.contains(n)) {
                _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(old)
    }

    /// Glances at varnishd's process number often, and compares what is loaded now and then: no request waits longer
    /// than that for its route when varnishd comes back empty.
    async fn supervise(&self) {
        let Some(varnish) = &self.varnish else { return };
        let (mut seen, mut looked) = (None, None::<Instant>);
        loop {
            tokio::time::sleep(GLANCE).await;
            let process = varnish.process();
            let due = looked.is_none_or(|at| at.elapsed() >= LOOK);
            let up = self.state.borrow().up;
            if process.is_none() {
                if up {
                    let workdir = varnish.workdir().to_owned();
                    self.became(false, None, Some(&VarnishError::Down { workdir }.into()));
                }
            } else if process != seen || !up || due {
                looked = Some(Instant::now());
                self.look(varnish).await;
                self.stand_by(varnish).await;
            }
            seen = process;
        }
    }

    /// Has what labels stand for at first compiled before anybody waits for it.
    async fn stand_by(&self, varnish: &Varnish) {
        let _one = self.wanted.lock().await;
        if varnish.list().await.is_ok_and(|loaded| !loaded.iter().any(|l| l.name == vcl::NOTHING)) {
            _ = self.load_nothing(varnish).await;
        }
    }

    /// A table that was expected and never came leaves nothing behind.
    async fn forget_prepared(&self, varnish: &Varnish, generation: &Generation) {
        {
            let mut since = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
            if since.is_none_or(|since| since.elapsed() < PREPARED) {
                return;
            }
            *since = None;
        }
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).clear();
        _ = self.tidy(varnish, &generation.names()).await;
    }

    async fn look(&self, varnish: &Varnish) {
        let wanted = self.wanted.lock().await;
        let Some(generation) = wanted.as_deref() else { return };
        let as_wanted = match (varnish.list().await, varnish.running().await) {
            (Ok(loaded), Ok(true)) => generation.runs(&loaded),
            (Ok(_), Ok(false)) => false,
            (Err(error), _) | (_, Err(error)) => return self.became(false, None, Some(&error.into())),
        };
        if as_wanted {
            self.forget_prepared(varnish, generation).await;
            // While it is up, what went wrong last is a table that was refused: another table ends that.
            if !self.state.borrow().up {
                self.became(true, None, None);
            }
            return;
        }
        match self.install(varnish, generation).await {
            Ok(applied) => {
                tracing::info!(loaded = applied.loaded.len(), "varnishd came back without its VCL; loaded it again");
                self.became(true, None, None);
            }
            Err(error) => self.became(false, None, Some(&error)),
        }
    }

    fn became(&self, up: bool, active: Option<&Arc<Generation>>, error: Option<&GatewayError>) {
        let error = error.map(|e| {
            let chain = std::iter::successors(Some(e as &dyn std::error::Error), |e| e.source());
            chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
        });
        self.state.send_if_modified(|state| {
            let same = state.up == up && state.error == error && active.is_none();
            if state.up != up {
                state.since = Timestamp::now();
            }
            state.up = up;
            state.error = error;
            if let Some(generation) = active {
                self.probes.runs(generation);
                state.active = Some(Arc::clone(&generation.table));
            }
            !same
        });
    }
}

/// Where nothing is served from any more.
fn left(before: &RoutingTable, now: &RoutingTable) -> BTreeSet<(IpAddr, Port)> {
    let all = |table: &RoutingTable| -> BTreeSet<_> {
        table.apps.values().flat_map(|app| app.backends.values()).map(|b| (b.address, b.port)).collect()
    };
    all(before).difference(&all(now)).copied().collect()
}

/// While varnishd forgets these backends: it closes a connection in its pool and waits for the other side to do so too.
async fn end_shut(left: BTreeSet<(IpAddr, Port)>) {
    for pause in [300, 700, 2000, 7000, 20_000] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        for (address, port) in &left {
            if let Err(error) = connections::end_shut(*address, port.get()).await {
                tracing::debug!(%address, %port, %error, "connections that were shut stay until the other side ends them");
            }
        }
    }
}

/// Writes a file whole, readable for varnishd's compiler. Nothing in it is secret: addresses and paths.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    let part = path.with_extension("part");
    std::fs::write(&part, text)?;
    std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o644))?;
    std::fs::rename(part, path)
}
