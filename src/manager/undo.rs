//! A release that is active and begins to fail: for how long it is watched, and when it goes back.
//!
//! Decides purely; the loop's part below does what was decided.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    inventory::{Node, Snapshot},
    model::{AppName, Timestamp},
    release::{Ending, Release, Rollout, State},
    schedule::Assignments,
};

use super::{decide::names, events::Kind, run::Loop};

/// How long most of an application's instances may be away: an engine that starts one anew is not a failing release.
const PATIENCE: Duration = Duration::from_secs(3);

/// A release that was made active a while ago.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Its number.
    pub release: u64,
    /// The applications it changed, and until when each is watched.
    pub apps: BTreeMap<AppName, Timestamp>,
}

impl Watch {
    /// Over what `next` changed; none where nothing is to be watched.
    pub(super) fn over(active: &Release, next: &Release, now: Timestamp) -> Option<Self> {
        let changed =
            next.plan.apps.iter().filter(|(app, it)| {
                it.update.watch_seconds > 0 && it.count() > 0 && active.spec(app) != next.spec(app)
            });
        let apps: BTreeMap<_, _> =
            changed.map(|(app, it)| (app.clone(), now + Duration::from_secs(it.update.watch_seconds.into()))).collect();
        (!apps.is_empty()).then_some(Self { release: next.number, apps })
    }
}

/// What was seen of the watched applications so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Containers that answered when the release became active, or have served since: where they do not serve, it is the
    /// release that fails. Who is only being brought, elsewhere or back after a later release, has shown nothing yet.
    shown: BTreeSet<String>,
    /// What served at the last look, and how often instances of each application fell.
    served: BTreeSet<String>,
    falls: BTreeMap<AppName, usize>,
    /// Since when most of an application's instances are away.
    bad_since: BTreeMap<AppName, Instant>,
}

impl Seen {
    /// Of these it is known that they answered.
    pub(super) fn of(answered: impl Iterator<Item = String>) -> Self {
        Self { shown: answered.collect(), ..Self::default() }
    }

    /// A later release was not made active: what it replaced meanwhile is brought back.
    pub(super) fn given_up(&mut self, stays: impl Fn(&str) -> bool) {
        self.shown.retain(|name| stays(name));
    }

    /// Nothing can be said for a while.
    fn interrupted(&mut self) {
        *self = Self { shown: std::mem::take(&mut self.shown), ..Self::default() };
    }

    /// The application that fails, if one does.
    fn look(
        &mut self,
        watch: &Watch,
        places: &Assignments,
        snapshot: &Snapshot,
        serves: impl Fn(&str) -> bool,
        (now, instant): (Timestamp, Instant),
    ) -> Option<AppName> {
        // An engine starts what ends again and again anew, so that it is never away for long.
        let watched = || names(places).filter(|(_, id)| watch.apps.contains_key(&id.app));
        let serving: BTreeSet<String> = watched().map(|(name, _)| name).filter(|name| serves(name)).collect();
        for (_, id) in watched().filter(|(name, _)| self.served.contains(name) && !serving.contains(name)) {
            *self.falls.entry(id.app.clone()).or_default() += 1;
        }
        self.shown.extend(serving.iter().cloned());
        self.served = serving;
        let often = |app: &AppName| {
            let count = watched().filter(|(_, id)| id.app == *app).count();
            self.falls.get(app).is_some_and(|falls| *falls > count)
        };
        let restless = watch.apps.keys().find(|app| often(app)).cloned();
        let bad = self.failing(watch, places, snapshot, now);
        self.bad_since.retain(|app, _| bad.contains(app));
        for app in bad {
            self.bad_since.entry(app).or_insert(instant);
        }
        let long = |since: &Instant| instant.duration_since(*since) >= PATIENCE;
        let given_up = self.bad_since.iter().find(|(_, since)| long(since)).map(|(app, _)| app.clone());
        given_up.or(restless)
    }

    /// The watched applications of which more than half of the instances that can be reached do not serve any more.
    fn failing(&self, watch: &Watch, places: &Assignments, snapshot: &Snapshot, now: Timestamp) -> BTreeSet<AppName> {
        let is_bad = |app: &AppName| {
            let reached = places
                .iter()
                .filter(|(id, place)| id.app == *app && snapshot.nodes.get(&place.node).is_some_and(Node::is_ready));
            let reached: Assignments = reached.map(|(id, place)| (id.clone(), place.clone())).collect();
            let shown: Vec<_> =
                names(&reached).map(|(name, _)| name).filter(|name| self.shown.contains(name)).collect();
            let bad = shown.iter().filter(|name| !self.served.contains(*name)).count();
            bad * 2 > shown.len()
        };
        watch.apps.iter().filter(|(app, until)| **until > now && is_bad(app)).map(|(app, _)| app.clone()).collect()
    }
}

impl Loop {
    /// Takes the active release back where it fails within its watch.
    pub(super) fn look_after(&mut self, snapshot: &Snapshot, now: Timestamp, frozen: bool) {
        let Some(watch) = self.known.watch.clone().filter(|_| self.known.rollout.is_none() && !frozen) else {
            self.seen.interrupted();
            return;
        };
        let unhealthy = self.parts.gateway.as_ref().map(|gateway| gateway.unhealthy().borrow().clone());
        let serves = |name: &str| {
            self.known.verified.contains_key(name) && unhealthy.as_ref().is_none_or(|all| !all.contains_key(name))
        };
        let failing = self.seen.look(&watch, &self.known.assignments, snapshot, serves, (now, Instant::now()));
        if let Some(app) = failing {
            self.take_back(watch.release, &app);
        } else if watch.apps.values().all(|until| *until <= now) && self.seen.bad_since.is_empty() {
            self.known.watch = None;
        }
    }

    fn take_back(&mut self, number: u64, app: &AppName) {
        self.seen.interrupted();
        self.known.watch = None;
        let last = self.holds.iter().find(|(name, _)| name.starts_with(&format!("{app}.")));
        let detail = last.map(|(_, hold)| format!(": {}", hold.why)).unwrap_or_default();
        let why = format!("{app} began to fail after the switch{detail}");
        let Some(before) = self.known.previous.clone() else {
            self.parts.events.tell(Kind::Failed, "release", None, format!("{why}; there is no release to go back to"));
            return;
        };
        let ending = Ending { state: State::Undone, why: vec![why.clone()], at: Timestamp::now() };
        let number_next = self.parts.journal.releases().ok().and_then(|all| Some(all.last()?.number + 1));
        let release = Release {
            number: number_next.unwrap_or(number + 1),
            created: Timestamp::now(),
            by: "matrix".to_owned(),
            message: Some(format!("back to release {}: {why}", before.number)),
            ..before
        };
        let rollout = Rollout::new(release, Timestamp::now(), false).straight();
        match self.parts.journal.undo(number, &ending, &rollout) {
            Ok(()) => {
                let text = format!("release {number} is taken back by release {}: {why}", rollout.release.number);
                self.parts.events.tell(Kind::Failed, "release", None, text);
                self.known.endings.insert(number, ending);
                self.failed = Some(number);
                self.holds.clear();
                self.known.rollout = Some(rollout);
            }
            Err(error) => {
                self.parts.events.tell(Kind::Failed, "manager", None, format!("cannot keep the state: {error}"));
            }
        }
    }

    /// Applications that are replaced step by step and pause after the last step.
    pub(super) fn resting(&self, release: &Release) -> BTreeSet<AppName> {
        let rests = |(app, came): (&AppName, &Instant)| {
            let pause = release.plan.apps.get(app)?.update.pause_seconds;
            (came.elapsed() < Duration::from_secs(pause.into())).then(|| app.clone())
        };
        self.came.iter().filter_map(rests).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{inventory::SpecHash, model::Port, schedule::Assignment};

    /// Four instances on four nodes, watched for 30 s from the epoch on.
    struct Shop {
        watch: Watch,
        snapshot: Snapshot,
        places: Assignments,
        seen: Seen,
        began: Instant,
    }

    impl Shop {
        fn new() -> Self {
            let app = AppName::try_from("shop").expect("a name");
            let place = |n: u32| {
                let node = crate::model::NodeName::try_from(format!("node{n}")).expect("a name");
                let id = format!("shop.{n}").parse().expect("an instance");
                let port = Port::new(20000).expect("a port");
                let spec = SpecHash("0123456789abcdef".into());
                (id, Assignment { node, host_port: port, pinned_port: false, spec })
            };
            let places: Assignments = (1..=4).map(place).collect();
            Self {
                watch: Watch {
                    release: 2,
                    apps: BTreeMap::from([(app, Timestamp::UNIX_EPOCH + Duration::from_secs(30))]),
                },
                snapshot: super::super::caution::tests::ready(&["node1", "node2", "node3", "node4"]),
                seen: Seen::of(names(&places).map(|(name, _)| name)),
                places,
                began: Instant::now(),
            }
        }

        /// Whether it fails, so many seconds after the switch, while these are away.
        fn fails(&mut self, away: &[u32], seconds: u64) -> bool {
            let serves = |name: &str| !away.iter().any(|n| name.starts_with(&format!("shop.{n}-")));
            let since = Duration::from_secs(seconds);
            let times = (Timestamp::UNIX_EPOCH + since, self.began + since);
            self.seen.look(&self.watch, &self.places, &self.snapshot, serves, times).is_some()
        }
    }

    #[test]
    fn half_of_the_instances_may_be_away_and_most_for_a_moment() {
        let mut shop = Shop::new();
        assert!(!shop.fails(&[1, 2], 1) && !shop.fails(&[1, 2], 9), "half of them");
        assert!(!shop.fails(&[1, 2, 3], 10) && !shop.fails(&[1, 2, 3], 12));
        assert!(!shop.fails(&[], 13) && !shop.fails(&[1, 2, 3], 14), "they were back: the time begins again");
        assert!(shop.fails(&[1, 2, 3], 17));
        let mut shop = Shop::new();
        assert!(!shop.fails(&[1, 2, 3], 31) && !shop.fails(&[1, 2, 3], 40), "its watch is over");
    }

    #[test]
    fn what_never_served_after_the_switch_fails() {
        let mut shop = Shop::new();
        assert!(!shop.fails(&[1, 2, 3, 4], 0) && shop.fails(&[1, 2, 3, 4], 3));
    }

    #[test]
    fn what_a_later_release_replaced_and_gives_back_has_not_failed_before_it_served_again() {
        let mut shop = Shop::new();
        assert!(!shop.fails(&[], 1));
        // The next release had taken three places when it failed.
        shop.seen.interrupted();
        shop.seen.given_up(|name| name.starts_with("shop.4-"));
        assert!(!shop.fails(&[1, 2, 3], 5) && !shop.fails(&[1, 2, 3], 15), "they are on their way back");
        assert!(!shop.fails(&[1, 2, 3, 4], 16) && shop.fails(&[1, 2, 3, 4], 19), "the one that stayed falls");
        let mut shop = Shop::new();
        shop.seen.given_up(|_| false);
        assert!(
            !shop.fails(&[], 5) && !shop.fails(&[1, 2, 3], 6) && shop.fails(&[1, 2, 3], 9),
            "they are back, and fall"
        );
    }

    #[test]
    fn who_falls_again_and_again_fails_the_release_however_short_it_is_away() {
        let mut shop = Shop::new();
        let turns: Vec<bool> =
            (1..=10).map(|n| if n % 2 == 0 { shop.fails(&[1], n) } else { shop.fails(&[], n) }).collect();
        assert_eq!(turns.iter().position(|fails| *fails), Some(9), "the fifth fall of four instances: {turns:?}");
    }
}
