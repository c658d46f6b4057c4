//! A release on its way: where it belongs beside what runs, and what its phase leads to.

use std::collections::{BTreeMap, BTreeSet};

use super::{Stage, StageInput, canary, stage};
use crate::{
    inventory::Snapshot,
    model::{AppName, InstanceId},
    release::{Phase, Release, Rollout},
    schedule::{self, Assignments, Beside, Doubts, Unplaced},
};

/// A release on its way, and the cloud it comes to.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// What is on its way.
    pub rollout: &'a Rollout,
    /// What runs in this phase ([`Rollout::effective`]).
    pub release: &'a Release,
    /// Where that runs.
    pub places: &'a Assignments,
    /// The places that were given to what is on its way.
    pub staged: &'a Assignments,
    /// The nodes.
    pub snapshot: &'a Snapshot,
    /// Host ports to give, the first and the last.
    pub ports: [u16; 2],
    /// Whether lost nodes' instances stay where they are.
    pub frozen: bool,
    /// Where instances should not run.
    pub doubts: &'a Doubts,
}

/// Where a release on its way belongs.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Its instances' places.
    pub places: Assignments,
    /// What of it starts beside what runs.
    pub stage: Stage,
    /// What waits for nodes that nobody knows yet.
    pub unplaced: BTreeMap<InstanceId, Unplaced>,
    /// What finds no room, for people.
    pub no_room: Vec<String>,
}

/// Places it beside what runs in this phase.
pub fn place(input: Input<'_>) -> Placed {
    let Input { rollout, release, places, staged, snapshot, ports, frozen, doubts } = input;
    let next = &rollout.release;
    // What is replaced step by step is where it runs.
    let rolled = |app: &AppName| matches!(&rollout.phase, Phase::Rolling { apps } if apps.contains(app));
    // A place that was given stays, wherever what runs has moved meanwhile: a place of its own each time would start
    // another container each time.
    let same = |app: &AppName| release.spec(app).is_some() && release.spec(app) == next.spec(app);
    let given = || staged.iter().filter(|(id, _)| !rolled(&id.app));
    let mut previous: Assignments = given().map(|(id, place)| (id.clone(), place.clone())).collect();
    for (id, place) in places {
        if same(&id.app) || !given().any(|(staged, _)| staged.app == id.app) {
            previous.entry(id.clone()).or_insert_with(|| place.clone());
        }
    }
    let beside = Beside::of(release, places, next);
    let put = |beside: &Beside| {
        schedule::place(schedule::Input { release: next, snapshot, previous: &previous, ports, frozen, beside, doubts })
    };
    let placed = put(&beside);
    let lacks_room = |all: &BTreeMap<InstanceId, Unplaced>| -> BTreeSet<AppName> {
        let room = all.iter().filter(|(_, why)| matches!(why, Unplaced::NoRoom { .. }));
        room.map(|(id, _)| id.app.clone()).collect()
    };
    let tight = lacks_room(&placed.unplaced);
    let (mut never, mut no_room) = (BTreeSet::new(), Vec::new());
    if !tight.is_empty() {
        let alone = put(&Beside::NOTHING);
        never = lacks_room(&alone.unplaced);
        let left = alone.unplaced.iter().filter(|(id, _)| never.contains(&id.app));
        no_room = left.map(|(id, why)| format!("{id} has no place: {why}")).collect();
    }
    let stage = stage(StageInput {
        active: release,
        places,
        next,
        beside: &placed.assignments,
        no_room: &tight.difference(&never).cloned().collect(),
    });
    let unknown = placed.unplaced.into_iter().filter(|(_, why)| !matches!(why, Unplaced::NoRoom { .. }));
    Placed { places: placed.assignments, stage, unplaced: unknown.collect(), no_room }
}

/// What is seen of a release on its way.
#[derive(Debug, Clone, Copy)]
pub struct Look<'a> {
    /// What is on its way.
    pub rollout: &'a Rollout,
    /// What is active.
    pub active: &'a Release,
    /// What of it starts beside that.
    pub stage: &'a Stage,
    /// Whether some of that has not answered yet.
    pub pending: bool,
    /// Applications of which something that runs in this phase has not answered yet.
    pub rolling: &'a BTreeSet<AppName>,
    /// Whether there is a gateway that can share out requests.
    pub shares: bool,
}

/// What its phase leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing yet; or it gets a share of the requests, and what is counted of them decides.
    Wait,
    /// The new instances of these applications get a share of their requests.
    Try(BTreeSet<AppName>),
    /// These applications have no room beside themselves: they are replaced step by step.
    Roll(BTreeSet<AppName>),
    /// All of it becomes active.
    Switch,
}

/// Whether its phase is over, and what comes then.
pub fn next(look: Look<'_>) -> Next {
    let Look { rollout, active, stage, pending, rolling, shares } = look;
    match &rollout.phase {
        Phase::Canary { .. } => Next::Wait,
        _ if rollout.hold || pending => Next::Wait,
        Phase::Staging => {
            let tried = canary::tried(active, &rollout.release, stage);
            if rollout.straight || tried.is_empty() || !shares { after_trial(rollout, stage) } else { Next::Try(tried) }
        }
        Phase::Rolling { apps } if !apps.is_disjoint(rolling) => Next::Wait,
        Phase::Rolling { .. } => Next::Switch,
    }
}

/// What comes once all that can be tried was: what has no room beside itself, and then the switch.
pub fn after_trial(rollout: &Rollout, stage: &Stage) -> Next {
    let rolled = matches!(rollout.phase, Phase::Rolling { .. });
    if rolled || stage.cramped.is_empty() { Next::Switch } else { Next::Roll(stage.cramped.keys().cloned().collect()) }
}
