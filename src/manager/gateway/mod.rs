//! The gateway: keeps a varnishd running what the last accepted routing table says.
//!
//! Only what changed is loaded, and a table is accepted when varnishd has compiled all of it: a refusal leaves the old
//! one running. A varnishd that comes back empty gets everything again. Never starts or stops varnishd itself, never
//! touches VCL of others, and never stands in a request's way: routes outlive the manager.

mod generation;
mod health;
mod load;
mod overrule;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use health::Sight;

use self::{
    generation::Generation,
    load::{end_shut, left},
    overrule::{Out, overrule},
};
use super::{config::Config, pace::Turn};
use crate::{
    model::{Port, Timestamp},
    remote::varnish::{Health, Varnish, VarnishError},
    routing::{
        RoutingTable,
        vcl::{self, VclError},
    },
};

/// How often varnishd's process number is looked at: one small file.
const GLANCE: Duration = Duration::from_millis(100);
/// How often what is loaded is compared with what should be.
const LOOK: Duration = Duration::from_secs(5);

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
    /// What is overruled since the table lacks it, while the VCL names it.
    out: Mutex<Out>,
    /// What probes say.
    probes: health::Probes,
    /// Where nothing is served from any more, and since when; until varnishd has forgotten them.
    left: Mutex<BTreeMap<(IpAddr, Port), Instant>>,
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
                out: Mutex::default(),
                probes: health::Probes::default(),
                left: Mutex::default(),
                counts: tokio::sync::Mutex::default(),
            }),
        };
        if gateway.inner.varnish.is_some() {
            let inner = Arc::clone(&gateway.inner);
            tokio::spawn(async move {
                let all = async { tokio::join!(inner.supervise(), inner.follow_probes(), inner.end_left()) };
                stop.run_until_cancelled(all).await
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
        self.inner.prepare(table, None).await;
    }

    /// The same, each application's when it is its turn.
    pub(super) async fn prepare_in_turn(&self, table: &RoutingTable, turn: Option<&Turn>) {
        self.inner.prepare(table, turn).await;
    }

    /// What the gateway is like, now and whenever it changes.
    pub fn state(&self) -> watch::Receiver<GatewayState> {
        self.inner.state.subscribe()
    }

    /// The VCL that runs: [`vcl::ROOT`], and each application's by its name.
    pub async fn vcl(&self) -> BTreeMap<String, String> {
        let wanted = self.inner.wanted.lock().await;
        wanted.as_deref().map(Generation::texts).unwrap_or_default()
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
        if !sick && self.inner.is_out(container) {
            return Ok(());
        }
        Ok(overrule(varnish, container, if sick { Health::Sick } else { Health::Auto }).await?)
    }
}

impl Inner {
    async fn apply(&self, table: &RoutingTable) -> Result<Applied, GatewayError> {
        let mut wanted = self.wanted.lock().await;
        let Some(varnish) = &self.varnish else {
            let generation = Arc::new(Generation::of(table, &BTreeSet::new())?);
            self.became(true, Some(&generation), None);
            *wanted = Some(generation);
            return Ok(Applied::default());
        };
        let next = self.next(varnish, wanted.as_deref(), table).await?;
        self.take(varnish, &mut wanted, next).await
    }

    /// Lets varnishd run this instead.
    async fn take(
        &self,
        varnish: &Varnish,
        wanted: &mut Option<Arc<Generation>>,
        next: Generation,
    ) -> Result<Applied, GatewayError> {
        let (turned, told) = self.turn_out(varnish, &next).await;
        let next = if told { next } else { Generation::of(&next.table, &next.second)? };
        let generation = Arc::new(next);
        let left = wanted.as_deref().map(|before| left(&before.made_from, &generation.made_from)).unwrap_or_default();
        self.leave(&left, &generation.made_from);
        let ending = (!left.is_empty()).then(|| tokio::spawn(end_shut(left)));
        let result = self.install(varnish, &generation).await;
        if let (Err(_), Some(ending)) = (&result, ending) {
            ending.abort();
        }
        match &result {
            Ok(_) => {
                if wanted.is_none() {
                    self.forget_overruled(varnish, &generation).await;
                }
                self.turned(varnish, &turned, &generation).await;
                // What runs is prepared no more: once it is out of use it goes, and its probes with it.
                let names = generation.names();
                self.prepared.lock().unwrap_or_else(PoisonError::into_inner).retain(|name| !names.contains(name));
                self.became(true, Some(&generation), None);
                *wanted = Some(generation);
            }
            Err(error @ GatewayError::Varnish(VarnishError::Down { .. })) => {
                self.are_out(generation.out());
                self.became(false, Some(&generation), Some(error));
                *wanted = Some(generation);
            }
            Err(error) => {
                self.turn_back(varnish, turned).await;
                let up = self.state.borrow().up;
                self.became(up, None, Some(error));
            }
        }
        result
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

    async fn look(&self, varnish: &Varnish) {
        let mut wanted = self.wanted.lock().await;
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
            if self.lingers()
                && let Ok(clean) = Generation::of(&generation.table, &generation.second)
            {
                _ = self.take(varnish, &mut wanted, clean).await;
            }
            return;
        }
        // All of it is compiled anew, so without those that are out.
        let clean = match Generation::of(&generation.table, &generation.second) {
            Ok(clean) => Arc::new(clean),
            Err(error) => return self.became(false, None, Some(&error.into())),
        };
        match self.install(varnish, &clean).await {
            Ok(applied) => {
                tracing::info!(loaded = applied.loaded.len(), "varnishd came back without its VCL; loaded it again");
                self.are_out(BTreeMap::new());
                self.became(true, Some(&clean), None);
                *wanted = Some(clean);
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
