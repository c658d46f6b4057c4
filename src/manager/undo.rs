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

/// The watched applications of which more than half of the instances that can be reached do not serve.
pub(super) fn failing(
    watch: &Watch,
    places: &Assignments,
    snapshot: &Snapshot,
    serves: impl Fn(&str) -> bool,
    now: Timestamp,
) -> BTreeSet<AppName> {
    let is_bad = |app: &AppName| {
        let reached = places
            .iter()
            .filter(|(id, place)| id.app == *app && snapshot.nodes.get(&place.node).is_some_and(Node::is_ready));
        let reached: Assignments = reached.map(|(id, place)| (id.clone(), place.clone())).collect();
        let bad = names(&reached).filter(|(name, _)| !serves(name)).count();
        bad * 2 > reached.len()
    };
    watch.apps.iter().filter(|(app, until)| **until > now && is_bad(app)).map(|(app, _)| app.clone()).collect()
}

impl Loop {
    /// Takes the active release back where it fails within its watch.
    pub(super) fn look_after(&mut self, snapshot: &Snapshot, now: Timestamp, frozen: bool) {
        let Some(watch) = self.known.watch.clone().filter(|_| self.known.rollout.is_none() && !frozen) else {
            self.bad_since.clear();
            self.served.clear();
            self.falls.clear();
            return;
        };
        let unhealthy = self.parts.gateway.as_ref().map(|gateway| gateway.unhealthy().borrow().clone());
        let serves = |name: &str| {
            self.known.verified.contains_key(name) && unhealthy.as_ref().is_none_or(|all| !all.contains_key(name))
        };
        // An engine starts what ends again and again anew, so that it is never away for long.
        let watched = || names(&self.known.assignments).filter(|(_, id)| watch.apps.contains_key(&id.app));
        let now_serving: BTreeSet<String> = watched().map(|(name, _)| name).filter(|name| serves(name)).collect();
        let mut falls = std::mem::take(&mut self.falls);
        for (_, id) in watched().filter(|(name, _)| self.served.contains(name) && !now_serving.contains(name)) {
            *falls.entry(id.app.clone()).or_default() += 1;
        }
        let often = |app: &AppName| {
            let count = watched().filter(|(_, id)| id.app == *app).count();
            falls.get(app).is_some_and(|falls| *falls > count)
        };
        let restless = watch.apps.keys().find(|app| often(app)).cloned();
        let bad = failing(&watch, &self.known.assignments, snapshot, serves, now);
        (self.served, self.falls) = (now_serving, falls);
        self.bad_since.retain(|app, _| bad.contains(app));
        for app in bad {
            self.bad_since.entry(app).or_insert_with(Instant::now);
        }
        let given_up = self.bad_since.iter().find(|(_, since)| since.elapsed() >= PATIENCE).map(|(app, _)| app.clone());
        if let Some(app) = given_up.or(restless) {
            self.take_back(watch.release, &app);
        } else if watch.apps.values().all(|until| *until <= now) && self.bad_since.is_empty() {
            self.known.watch = None;
        }
    }

    fn take_back(&mut self, number: u64, app: &AppName) {
        self.bad_since.clear();
        self.falls.clear();
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

    #[test]
    fn half_of_the_instances_may_be_away() {
        let app = AppName::try_from("shop").expect("a name");
        let watch = Watch {
            release: 2,
            apps: BTreeMap::from([(app.clone(), Timestamp::UNIX_EPOCH + Duration::from_secs(30))]),
        };
        let snapshot = super::super::caution::tests::ready(&["node1", "node2", "node3", "node4"]);
        let place = |n: u32| {
            let node = crate::model::NodeName::try_from(format!("node{n}")).expect("a name");
            let id = format!("shop.{n}").parse().expect("an instance");
            let port = Port::new(20000).expect("a port");
            (id, Assignment { node, host_port: port, pinned_port: false, spec: SpecHash("0123456789abcdef".into()) })
        };
        let places: Assignments = (1..=4).map(place).collect();
        let at = |seconds| Timestamp::UNIX_EPOCH + Duration::from_secs(seconds);
        let bad = |away: &[&str], seconds| {
            let serves = |name: &str| !away.iter().any(|id| name.starts_with(id));
            failing(&watch, &places, &snapshot, serves, at(seconds))
        };
        assert!(bad(&["shop.1", "shop.2"], 1).is_empty());
        assert_eq!(bad(&["shop.1", "shop.2", "shop.3"], 1), BTreeSet::from([app]));
        assert!(bad(&["shop.1", "shop.2", "shop.3"], 31).is_empty(), "its watch is over");
    }
}
