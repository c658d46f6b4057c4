//! What the loop wants now and can do about it: the pure rooms are asked, with what is known.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    inventory::{ContainerSpec, Snapshot},
    model::{InstanceId, Timestamp},
    reconcile::{self, Action, Decision, Stage, Staged, World},
    release::Release,
    schedule::{self, Assignments, Unplaced},
};

use super::{events::Kind, heal, journal::Answered, progress::Progress, run::Loop};

/// What is wanted, and what can be done about it.
pub(super) struct Decided {
    /// What the cloud should run in this phase.
    pub release: Release,
    /// Where the release on its way belongs, and what of it starts beside what runs.
    pub stage: Option<(Assignments, Stage)>,
    pub unplaced: BTreeMap<InstanceId, Unplaced>,
    /// What of the release on its way finds no room, for people.
    pub no_room: Vec<String>,
    pub decision: Decision,
    /// How many nodes answer.
    pub ready: usize,
}

pub(super) fn statuses(answered: &BTreeMap<String, Answered>) -> BTreeMap<String, Option<u16>> {
    answered.iter().map(|(name, answered)| (name.clone(), answered.status)).collect()
}

/// Each instance's container by name.
pub(super) fn names(places: &Assignments) -> impl Iterator<Item = (String, &InstanceId)> {
    places.iter().map(|(id, a)| (ContainerSpec::name_of(id, &a.spec, &a.node, a.host_port), id))
}

impl Loop {
    /// What is wanted now, and what can be done about it.
    pub(super) fn decide(&mut self, snapshot: &Snapshot, now: Timestamp, frozen: bool) -> Decided {
        let active = self.known.release.clone().unwrap_or_else(Release::none);
        let release = self.known.rollout.as_ref().map_or_else(|| active.clone(), |r| r.effective(&active));
        let ports = self.parts.config.ports;
        let (previous, beside) = (&self.known.assignments, &schedule::Beside::ports_of(&self.known.staged));
        let move_after = self.parts.config.healing.move_after;
        let doubts = &heal::doubts(&self.parts.away.borrow(), snapshot, move_after, self.held_ports(), now);
        let input = schedule::Input { release: &release, snapshot, previous, ports, frozen, beside, doubts };
        let placed = schedule::place(input);
        self.known.assignments = placed.assignments;
        let (mut unplaced, mut no_room) = (placed.unplaced, Vec::new());
        let stage = self.known.rollout.as_ref().map(|rollout| {
            let staged = reconcile::rollout::place(reconcile::rollout::Input {
                rollout,
                release: &release,
                places: &self.known.assignments,
                staged: &self.known.staged,
                snapshot,
                ports,
                frozen,
                doubts,
            });
            no_room = staged.no_room;
            unplaced.extend(staged.unplaced);
            (staged.places, staged.stage)
        });
        if let Some((places, _)) = &stage {
            self.known.staged.clone_from(places);
        }
        let passed: BTreeSet<String> = self.passed.keys().cloned().collect();
        let verified = statuses(&self.known.verified);
        let mut decision = reconcile::diff(World {
            cloud: &self.parts.config.cloud,
            release: &release,
            // While applications are replaced step by step, what they were before is active still.
            previous: if stage.is_some() { self.known.release.as_ref() } else { self.known.previous.as_ref() },
            assignments: &self.known.assignments,
            snapshot,
            verified: &verified,
            routed: self.applied.as_ref(),
            holds: &self.holds,
            staged: stage.as_ref().zip(self.known.rollout.as_ref()).map(|((_, stage), rollout)| Staged {
                release: &rollout.release,
                stage,
                passed: &passed,
            }),
            resting: &self.resting(&release),
            now,
        });
        if release.number == 0 {
            // Nothing is wanted yet. What runs all the same may be all that a lost state file knew of.
            let of_failed = |name: &str| {
                let ours = snapshot.containers().find(|(_, c)| c.name == name).and_then(|(_, c)| c.ours.as_ref());
                ours.is_some_and(|ours| self.known.endings.contains_key(&ours.release))
            };
            decision.actions.retain(|a| !matches!(a, Action::Stop { name, .. } if !of_failed(name)));
        }
        let ready = snapshot.nodes.values().filter(|node| node.is_ready()).count();
        Decided { release, stage, unplaced, no_room, decision, ready }
    }

    /// Gives a replica another node, where all is calm and the load is spread better by it.
    pub(super) fn spread(&mut self, release: &Release, snapshot: &Snapshot, progress: &Progress) -> bool {
        let config = Arc::clone(&self.parts.config);
        let (move_after, held) = (config.healing.move_after, self.held_ports());
        let doubts = heal::doubts(&self.parts.away.borrow(), snapshot, move_after, held, Timestamp::now());
        let input = schedule::Input {
            release,
            snapshot,
            previous: &self.known.assignments,
            ports: config.ports,
            frozen: false,
            beside: &schedule::Beside::NOTHING,
            doubts: &doubts,
        };
        // Where it failed it is not sent again for balance's sake.
        let better = |avoid: &BTreeSet<_>| schedule::better(input, &avoid.union(&doubts.places()).cloned().collect());
        let found = self.balance.turn(&config, progress, snapshot, better);
        let Some(found) = found else { return false };
        let text = format!("moves from {}: the load is spread again", found.from);
        self.parts.events.tell(Kind::Note, &found.instance, Some(&found.to.node), text);
        self.known.assignments.insert(found.instance, found.to);
        true
    }
}
