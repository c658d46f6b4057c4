//! The loop's part that tries a release out: its new instances get a share of the requests, and what the gateway sees of
//! them is counted until `reconcile::canary` has its verdict.
//!
//! Counts are kept in memory only: a manager that was killed begins the time anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};

use crate::{
    model::{AppName, InstanceId, Timestamp},
    plan::Canary,
    reconcile::{
        Stage,
        canary::{Counted, Tally, Verdict, judge, told},
    },
    release::{Phase, Release, Rollout, State},
    remote::varnish_log::{Exchange, Log},
    routing::{RoutingTable, vcl},
    schedule::Assignments,
};

use super::{decide::Decided, events::Kind, execute::chain, run::Loop};

/// How long a new instance may be away: an engine that starts it anew is not a failing release.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often followers are told how far it is.
const TELL: Duration = Duration::from_secs(10);
/// Between two attempts to read the gateway's log.
const PAUSE: Duration = Duration::from_secs(1);

/// A canary that is watched. Dropped, it is watched no more.
#[derive(Debug)]
pub(super) struct Watching {
    began: Instant,
    told: Instant,
    /// Since when one of the new instances is away.
    away: Option<Instant>,
    /// Backends by what varnishd calls them: whose they are, and whether they are new.
    sides: BTreeMap<String, (AppName, bool)>,
    shared: Arc<Mutex<Shared>>,
    reader: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    counts: BTreeMap<String, Tally>,
    /// Why the log is not read.
    trouble: Option<String>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Watching {
    fn start(workdir: PathBuf, release: &Release, apps: &BTreeSet<AppName>) -> Self {
        let limit = |app: &AppName| settings(release, app).latency_ms.map(|ms| Duration::from_millis(ms.into()));
        let limits = apps.iter().map(|app| (vcl::app_versions(app), limit(app))).collect();
        let shared = Arc::<Mutex<Shared>>::default();
        let reader = tokio::spawn(read(workdir, limits, Arc::clone(&shared)));
        let now = Instant::now();
        Self { began: now, told: now, away: None, sides: BTreeMap::new(), shared, reader }
    }

    /// Learns which backends are whose. One that is gone keeps what it was counted with.
    fn learn(&mut self, table: &RoutingTable, apps: &BTreeSet<AppName>) {
        for (app, routing) in table.apps.iter().filter(|(app, _)| apps.contains(*app)) {
            for name in routing.backends.keys() {
                let new = routing.canary.as_ref().is_some_and(|canary| canary.backends.contains(name));
                self.sides.insert(vcl::backend_id(name), (app.clone(), new));
            }
        }
    }

    fn counted(&self, app: &AppName) -> Counted {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counted = Counted::default();
        for (backend, tally) in &shared.counts {
            match self.sides.get(backend) {
                Some((of, true)) if of == app => counted.new += *tally,
                Some((of, false)) if of == app => counted.old += *tally,
                _ => {}
            }
        }
        counted
    }

    fn trouble(&self) -> Option<String> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).trouble.clone()
    }

    /// How far it is, for people.
    pub(super) fn step(&self, release: &Release, apps: &BTreeSet<AppName>) -> String {
        let elapsed = self.began.elapsed();
        let one = |app| told(app, &settings(release, app), release.number, &self.counted(app), elapsed);
        format!("canary: {}", apps.iter().map(one).collect::<Vec<_>>().join("; "))
    }
}

fn settings(release: &Release, app: &AppName) -> Canary {
    release.plan.apps.get(app).map(|app| app.update.canary).unwrap_or_default()
}

/// Counts what the gateway sends, until it is aborted.
async fn read(workdir: PathBuf, limits: BTreeMap<String, Option<Duration>>, shared: Arc<Mutex<Shared>>) {
    let set = |trouble| shared.lock().unwrap_or_else(PoisonError::into_inner).trouble = trouble;
    loop {
        match Log::open(&workdir, limits.keys().map(String::as_str)) {
            Err(error) => set(Some(chain(&error))),
            Ok(mut log) => {
                // A tool that ends at once reads nothing.
                let reads = async {
                    sleep(PAUSE).await;
                    set(None);
                    std::future::pending::<()>().await;
                };
                let lines = async {
                    while let Some(exchange) = log.next().await {
                        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                        shared.trouble = None;
                        count(&mut shared.counts, &limits, exchange);
                    }
                };
                tokio::select! { () = reads => {}, () = lines => {} }
                set(Some("varnishncsa has ended".to_owned()));
            }
        }
        sleep(PAUSE).await;
    }
}

fn count(counts: &mut BTreeMap<String, Tally>, limits: &BTreeMap<String, Option<Duration>>, exchange: Exchange) {
    let Some(limit) = limits.get(&exchange.vcl) else { return };
    let slow = limit.is_some_and(|limit| exchange.took > limit);
    let (failed, slow) = (u64::from(exchange.status >= 500), u64::from(slow));
    *counts.entry(exchange.backend).or_default() += Tally { asked: 1, failed, slow };
}

impl Loop {
    /// Where the instances are that get a share of the requests now.
    pub(super) fn tried_places(&self, decided: &Decided) -> Option<Assignments> {
        let Phase::Canary { apps } = &self.known.rollout.as_ref()?.phase else { return None };
        let (_, stage) = decided.stage.as_ref()?;
        let tried = stage.beside.iter().filter(|(id, _)| apps.contains(&id.app));
        Some(tried.map(|(id, place)| (id.clone(), place.clone())).collect())
    }

    /// Gives these applications' new instances their share; answers whether it is written down.
    pub(super) fn try_out(&mut self, rollout: Rollout, apps: BTreeSet<AppName>) -> bool {
        let release = &rollout.release;
        for app in &apps {
            let Canary { share, time_seconds, .. } = settings(release, app);
            let text = format!("{share}% of {app}'s requests go to release {} for {time_seconds} s", release.number);
            self.parts.events.tell(Kind::Note, "release", None, format!("canary: {text}"));
        }
        self.watch_anew(release, &apps);
        self.turn_to(Rollout { phase: Phase::Canary { apps }, since: Timestamp::now(), ..rollout })
    }

    fn watch_anew(&mut self, release: &Release, apps: &BTreeSet<AppName>) {
        let workdir = self.parts.config.varnish.as_ref().map(|varnish| varnish.workdir.clone());
        self.canary = workdir.map(|workdir| Watching::start(workdir, release, apps));
    }

    /// Ends the canary where there is a verdict; answers whether the phase is over.
    pub(super) fn look_at_canary(
        &mut self,
        rollout: Rollout,
        apps: &BTreeSet<AppName>,
        (places, stage): (&Assignments, &Stage),
        pending: &BTreeSet<InstanceId>,
    ) -> bool {
        if rollout.straight || self.parts.config.varnish.is_none() {
            return pending.is_empty() && self.go_on(rollout, stage, places);
        }
        if self.canary.is_none() {
            self.parts.events.tell(Kind::Note, "release", None, "the canary's time begins anew");
            self.watch_anew(&rollout.release, apps);
        }
        let (verdicts, broken) = self.verdicts(&rollout.release, apps, pending);
        if !broken.is_empty() {
            self.give_up(State::Failed, broken);
            return self.known.rollout.is_none();
        }
        let Some(verdicts) = verdicts.filter(|_| pending.is_empty()) else { return false };
        for text in verdicts {
            self.parts.events.tell(Kind::Note, "release", None, format!("canary: {text}"));
        }
        self.go_on(rollout, stage, places)
    }

    /// Why it may go on, once all of it may; and why it may not.
    fn verdicts(
        &mut self,
        release: &Release,
        apps: &BTreeSet<AppName>,
        pending: &BTreeSet<InstanceId>,
    ) -> (Option<Vec<String>>, Vec<String>) {
        let up = self.parts.gateway.as_ref().is_some_and(|gateway| gateway.state().borrow().up);
        let shared_out = |table: &RoutingTable| {
            apps.iter().all(|app| table.apps.get(app).is_some_and(|routing| routing.canary.is_some()))
        };
        let routed = up && self.applied.as_ref().is_some_and(shared_out);
        let Some(watching) = &mut self.canary else { return (None, Vec::new()) };
        watching.learn(&self.known.table, apps);
        let refused = self.gateway_error.iter().filter(|(it, table)| it.refused && *table == self.known.table);
        let mut broken: Vec<String> = refused.map(|(it, _)| format!("the gateway refused it: {}", it.why)).collect();
        let gone: Vec<_> = pending.iter().filter(|id| apps.contains(&id.app)).map(ToString::to_string).collect();
        watching.away = if gone.is_empty() { None } else { watching.away.or_else(|| Some(Instant::now())) };
        if watching.away.is_some_and(|since| since.elapsed() >= PATIENCE) {
            broken.push(format!("{} of release {} answered and does not any more", gone.join(", "), release.number));
        }
        let elapsed = watching.began.elapsed();
        let (mut on, mut waits) = (Vec::new(), !routed);
        for app in apps {
            match judge(&settings(release, app), &watching.counted(app), elapsed) {
                Verdict::Wait => waits = true,
                Verdict::On(why) => on.push(format!("{app}: {why}")),
                Verdict::Back(why) => broken.push(format!("{app}: {why}")),
            }
        }
        if let Some(trouble) = watching.trouble().filter(|_| !waits) {
            broken.push(format!("what became of the requests is not known: {trouble}"));
        }
        if waits && broken.is_empty() && watching.told.elapsed() >= TELL {
            watching.told = Instant::now();
            let step = watching.step(release, apps);
            self.parts.events.tell(Kind::Note, "release", None, step);
        }
        ((!waits).then_some(on), broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted() {
        let limits =
            BTreeMap::from([("shop_".to_owned(), Some(Duration::from_millis(500))), ("blog_".to_owned(), None)]);
        let mut counts = BTreeMap::new();
        for (vcl, backend, status, ms) in [
            ("shop_", "a", 200, 10),
            ("shop_", "a", 404, 501),
            ("shop_", "a", 500, 500),
            ("shop_", "b", 503, 3000),
            ("blog_", "c", 200, 60_000),
            ("else_", "d", 500, 1),
        ] {
            let took = Duration::from_millis(ms);
            count(&mut counts, &limits, Exchange { vcl: vcl.to_owned(), backend: backend.to_owned(), status, took });
        }
        let seen: Vec<_> = counts.into_iter().map(|(id, t)| (id, t.asked, t.failed, t.slow)).collect();
        assert_eq!(seen, [("a".to_owned(), 3, 1, 1), ("b".to_owned(), 1, 1, 1), ("c".to_owned(), 1, 0, 0)]);
    }
}
