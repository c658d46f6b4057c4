//! What the gateway's probes say of the containers it sends requests to, published as it changes.
//!
//! Asks varnishd and overrules nobody; what follows from it is for others to decide.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::{Gateway, Generation, Inner};
use crate::{
    model::{Port, Timestamp},
    remote::varnish::{BackendHealth, Varnish},
    routing::vcl,
};

/// How often varnishd is asked.
const ASK: Duration = Duration::from_secs(1);
/// How often while a backend is sick or has missed a probe.
const ASK_SOON: Duration = Duration::from_millis(400);
/// So much longer for each backend: of twenty thousand, the answer is megabytes. Not by how long the last answer took:
/// who compiles or forgets says nothing meanwhile, and must be asked again right after.
const ASK_FOR_EACH: Duration = Duration::from_micros(100);

/// A backend as the gateway sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// The container.
    pub container: String,
    /// Its host port.
    pub port: Port,
    /// Whether its probe calls it healthy; none: it has no probe, or varnishd does not say.
    pub probe: Option<bool>,
}

/// What is known of probes.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// The table whose backends are asked about.
    running: Mutex<Option<Arc<Generation>>>,
    /// Whether varnishd answered when it was asked last.
    known: std::sync::atomic::AtomicBool,
    unhealthy: watch::Sender<BTreeMap<String, Timestamp>>,
}

impl Probes {
    pub(super) fn runs(&self, generation: &Arc<Generation>) {
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(generation));
    }

    fn running(&self) -> Option<Arc<Generation>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Gateway {
    /// Containers that requests are routed to and whose probes call them sick, each since when.
    pub fn unhealthy(&self) -> watch::Receiver<BTreeMap<String, Timestamp>> {
        self.inner.probes.unhealthy.subscribe()
    }

    /// Whether varnishd answered when it was asked last: else what is known of probes is old.
    pub fn hears(&self) -> bool {
        self.inner.varnish.is_none() || self.inner.probes.known.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The backends at an address.
    pub fn sees(&self, address: IpAddr) -> Vec<Sight> {
        let probes = &self.inner.probes;
        let Some(running) = probes.running() else { return Vec::new() };
        let sick = probes.unhealthy.borrow();
        let known = probes.known.load(std::sync::atomic::Ordering::Relaxed);
        let there = running.table.apps.values().flat_map(|app| &app.backends);
        let there = there.filter(|(_, backend)| backend.serving && backend.address == address);
        let sight = |(container, backend): (&String, &crate::routing::Backend)| Sight {
            container: container.clone(),
            port: backend.port,
            probe: (known && backend.probe.is_some()).then(|| !sick.contains_key(container)),
        };
        there.map(sight).collect()
    }
}

impl Inner {
    /// Asks again and again.
    pub(super) async fn follow_probes(&self) {
        let Some(varnish) = &self.varnish else { return };
        loop {
            let (mut uneasy, mut backends) = (false, 0);
            if let Some(generation) = self.probes.running() {
                uneasy = self.ask_probes(varnish, &generation).await;
                backends = generation.table.apps.values().map(|app| app.backends.len()).sum();
            }
            let pause = if uneasy { ASK_SOON } else { ASK };
            let longer = ASK_FOR_EACH.saturating_mul(u32::try_from(backends).unwrap_or(u32::MAX));
            tokio::time::sleep(pause.max(longer)).await;
        }
    }

    /// Whether somebody is not well.
    async fn ask_probes(&self, varnish: &Varnish, generation: &Generation) -> bool {
        let known = &self.probes.known;
        let Ok(backends) = varnish.backends().await else {
            known.store(false, std::sync::atomic::Ordering::Relaxed);
            return true;
        };
        let (sick, uneasy) = read(generation, &backends);
        // Before whoever waits for the answer is woken by it.
        known.store(true, std::sync::atomic::Ordering::Relaxed);
        self.probes.unhealthy.send_if_modified(|before| {
            let now = Timestamp::now();
            let next: BTreeMap<_, _> = sick
                .into_iter()
                .map(|name| (before.get(&name).copied().unwrap_or(now), name))
                .map(|(at, n)| (n, at))
                .collect();
            let changed = next != *before;
            *before = next;
            // Together: whoever hears of it asks at once.
            known.store(true, std::sync::atomic::Ordering::Relaxed);
            changed
        });
        uneasy
    }
}

/// The containers of a table whose probes call them sick; and whether any of them missed a probe lately.
fn read(generation: &Generation, backends: &BTreeMap<String, BackendHealth>) -> (BTreeSet<String>, bool) {
    let (mut sick, mut uneasy) = (BTreeSet::new(), false);
    for (app, routing) in &generation.table.apps {
        let Some((version, _)) = generation.apps.get(app) else { continue };
        for container in routing.backends.iter().filter(|(_, b)| b.serving).map(|(container, _)| container) {
            let Some(seen) = backends.get(&format!("{version}.{}", vcl::backend_id(container))) else { continue };
            uneasy |= seen.missed || seen.probe == Some(false);
            if seen.probe == Some(false) {
                sick.insert(container.clone());
            }
        }
    }
    (sick, uneasy)
}
