//! What of a release can start beside the one that is active, and what has no room for both.
//!
//! Looks at two plans and their places only: whether anything answers is the caller's to know.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::{
    inventory::{ContainerSpec, Snapshot},
    model::{AppName, InstanceId},
    plan::Mode,
    release::Release,
    schedule::{Assignment, Assignments},
};

/// Two releases and where their instances belong.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// What runs.
    pub active: &'a Release,
    /// Where.
    pub places: &'a Assignments,
    /// What is to run.
    pub next: &'a Release,
    /// Where, with all of `active` beside it.
    pub beside: &'a Assignments,
    /// Applications of `next` that only find room once what is active makes some.
    pub no_room: &'a BTreeSet<AppName>,
}

/// A release beside another.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stage {
    /// What starts beside what runs.
    pub beside: Assignments,
    /// What runs already and has to pass another health check.
    pub again: Assignments,
    /// Applications that cannot be beside themselves.
    pub cramped: BTreeMap<AppName, Cramped>,
}

/// Why an application's old and new instances cannot run at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cramped {
    /// For people: `port 5050 on node25 is held by shop.1`.
    pub why: String,
    /// Whether nobody serves it for a moment.
    pub gap: bool,
}
impl fmt::Display for Cramped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.gap { "nobody serves it for a moment" } else { "it is replaced step by step" };
        write!(f, "{}: {how}", self.why)
    }
}

fn name(id: &InstanceId, place: &Assignment) -> String {
    ContainerSpec::name_of(id, &place.spec, &place.node, place.host_port)
}

/// What can be staged.
pub fn stage(input: Input<'_>) -> Stage {
    let Input { active, places, next, beside, no_room } = input;
    let mut cramped: BTreeMap<AppName, String> = BTreeMap::new();
    for app in no_room.iter().filter(|app| active.plan.apps.contains_key(*app)) {
        cramped.insert(app.clone(), "no node has room for its old and new instances at once".to_owned());
    }
    let holders: BTreeMap<_, _> =
        places.iter().map(|(id, place)| ((&place.node, place.host_port), (id, place))).collect();
    let is_new =
        |id: &InstanceId, place: &Assignment| places.get(id).is_none_or(|old| name(id, old) != name(id, place));
    for (id, place) in beside.iter().filter(|(id, place)| place.pinned_port && is_new(id, place)) {
        let Some((holder, held)) = holders.get(&(&place.node, place.host_port)) else { continue };
        if name(holder, held) != name(id, place) {
            let why = format!("port {} on {} is held by {holder}", place.host_port, place.node);
            cramped.entry(id.app.clone()).or_insert_with(|| why.clone());
            cramped.entry(holder.app.clone()).or_insert(why);
        }
    }
    let held: BTreeSet<AppName> = cramped.keys().cloned().collect();
    let replaced = |app: &AppName| beside.iter().any(|(id, place)| id.app == *app && is_new(id, place));
    for (app, settings) in next.plan.apps.iter().filter(|(app, _)| active.plan.apps.contains_key(*app)) {
        if matches!(settings.update.mode, Mode::Rolling | Mode::Recreate) && !cramped.contains_key(app) && replaced(app)
        {
            cramped.insert(app.clone(), format!("its plan says {}", settings.update.mode.word()));
        }
    }
    for (app, why) in &mut cramped {
        if next.plan.apps.get(app).is_some_and(|app| app.update.mode == Mode::Canary) {
            why.push_str(", so that it cannot begin with a share of the requests");
        }
    }
    let mut stage = Stage::default();
    for (id, place) in beside.iter().filter(|(id, _)| !cramped.contains_key(&id.app)) {
        if is_new(id, place) {
            stage.beside.insert(id.clone(), place.clone());
        } else if check(active, &id.app) != check(next, &id.app) {
            stage.again.insert(id.clone(), place.clone());
        }
    }
    let gap = |app: &AppName| {
        let count = |release: &Release| release.plan.apps.get(app).map(crate::plan::App::count);
        let mode = next.plan.apps.get(app).map(|app| app.update.mode);
        let side_by_side = mode == Some(Mode::Rolling) && !held.contains(app);
        let alone = count(active) == Some(1) && !side_by_side || mode == Some(Mode::Recreate);
        alone && count(next).is_some_and(|count| count > 0)
    };
    stage.cramped = cramped.into_iter().map(|(app, why)| (app.clone(), Cramped { why, gap: gap(&app) })).collect();
    stage
}

fn check<'a>(release: &'a Release, app: &AppName) -> Option<&'a crate::plan::Check> {
    release.plan.apps.get(app).map(|app| &app.health.check)
}

impl Stage {
    /// The names of containers that run beside and get no requests yet.
    pub fn names(&self) -> BTreeSet<String> {
        self.beside.iter().map(|(id, place)| name(id, place)).collect()
    }

    /// What has not answered yet. A node that does not answer holds nothing up: its instances come when it is back.
    pub fn pending(
        &self,
        snapshot: &Snapshot,
        answered: impl Fn(&str) -> bool,
        passed: impl Fn(&str) -> bool,
    ) -> BTreeSet<InstanceId> {
        let beside = waited_for(&self.beside, snapshot, answered);
        beside.chain(waited_for(&self.again, snapshot, passed)).collect()
    }
}

/// The instances on nodes that answer of which this is not true.
pub fn waited_for(
    places: &Assignments,
    snapshot: &Snapshot,
    is_so: impl Fn(&str) -> bool,
) -> impl Iterator<Item = InstanceId> {
    places
        .iter()
        .filter(move |(id, place)| {
            snapshot.nodes.get(&place.node).is_some_and(crate::inventory::Node::is_ready) && !is_so(&name(id, place))
        })
        .map(|(id, _)| id.clone())
}
