//! What a deploy would change, for people: before anything happens, with reasons.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    model::{InstanceId, NodeName},
    release::Release,
    schedule::Unplaced,
};

use super::{
    Reason,
    diff::{World, changed_keys, our_containers, wanted},
};

/// What kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// A new instance.
    Start,
    /// The same instance, made anew on its node.
    Replace,
    /// The same instance, on another node.
    Move,
    /// It goes.
    Stop,
    /// Requests go elsewhere.
    Route,
    /// It finds no place.
    Unplaced,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// What kind.
    pub sign: Sign,
    /// The instance, or the application for a route.
    pub subject: String,
    /// The node it happens on.
    pub node: Option<NodeName>,
    /// Why, for people.
    pub reason: String,
}
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.sign {
            Sign::Start => "+ start",
            Sign::Replace => "~ replace",
            Sign::Move => "> move",
            Sign::Stop => "- stop",
            Sign::Route => "~ route",
            Sign::Unplaced => "! no place for",
        };
        write!(f, "{sign} {}", self.subject)?;
        if let Some(node) = &self.node {
            write!(f, " {} {node}", if self.sign == Sign::Move { "to" } else { "on" })?;
        }
        write!(f, " ({})", self.reason)
    }
}

/// All that differs between the world and what is wanted; `world.release` is the new release, `previous` the one before.
pub fn changes(world: World<'_>, unplaced: &BTreeMap<InstanceId, Unplaced>) -> Vec<Change> {
    let mut all = Vec::new();
    let ours: Vec<_> = our_containers(world.snapshot, world.cloud).collect();
    for (id, assignment) in world.assignments {
        let Some(container) = wanted(world, id, assignment) else { continue };
        let existing: Vec<_> = ours.iter().filter(|(_, _, ours)| ours.instance == *id).collect();
        if existing.iter().any(|(_, c, _)| c.name == container.name) {
            continue;
        }
        let change = |sign, reason: Reason| Change {
            sign,
            subject: id.to_string(),
            node: Some(assignment.node.clone()),
            reason: reason.to_string(),
        };
        all.push(match existing.first() {
            None => change(Sign::Start, Reason::New),
            Some((node, _, _)) if node.name != assignment.node => {
                Change { reason: format!("from {}", node.name), ..change(Sign::Move, Reason::New) }
            }
            Some((_, _, old)) => change(Sign::Replace, Reason::Changed(changed_keys(world, old))),
        });
    }
    for (node, _, old) in &ours {
        if !world.assignments.contains_key(&old.instance) && !unplaced.contains_key(&old.instance) {
            all.push(Change {
                sign: Sign::Stop,
                subject: old.instance.to_string(),
                node: Some(node.name.clone()),
                reason: Reason::NotInPlan.to_string(),
            });
        }
    }
    for (id, why) in unplaced {
        all.push(Change { sign: Sign::Unplaced, subject: id.to_string(), node: None, reason: why.to_string() });
    }
    all.extend(routes(world.previous, world.release));
    all.sort_by(|a, b| (a.sign, &a.subject, &a.node).cmp(&(b.sign, &b.subject, &b.node)));
    all
}

/// How requests go elsewhere.
fn routes(old: Option<&Release>, new: &Release) -> Vec<Change> {
    let none = BTreeMap::new();
    let before = old.map_or(&none, |release| &release.plan.apps);
    let mut all = Vec::new();
    for (name, app) in &new.plan.apps {
        let list = |routes: &[crate::model::Route]| match routes {
            [] => "none".to_owned(),
            routes => routes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        };
        let reason = match before.get(name) {
            Some(was) if was.routes != app.routes => format!("{} instead of {}", list(&app.routes), list(&was.routes)),
            Some(was)
                if (was.strip_path, was.cache_seconds, was.idempotent, &was.health)
                    != (app.strip_path, app.cache_seconds, app.idempotent, &app.health) =>
            {
                "how it is routed changed".to_owned()
            }
            Some(_) => continue,
            None if app.routes.is_empty() => continue,
            None => format!("{}, new", list(&app.routes)),
        };
        all.push(Change { sign: Sign::Route, subject: name.to_string(), node: None, reason });
    }
    for (name, _) in before.iter().filter(|(name, app)| !new.plan.apps.contains_key(*name) && !app.routes.is_empty()) {
        let reason = Reason::NotInPlan.to_string();
        all.push(Change { sign: Sign::Route, subject: name.to_string(), node: None, reason });
    }
    all
}
