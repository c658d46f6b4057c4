//! One replica at a time from the fullest node to the emptiest, once everything is at rest.
//!
//! Never undoes what it did: each move makes the spread strictly better, first of the application, then of the load. So
//! it ends.

use std::collections::BTreeSet;

use crate::{
    inventory::{Intake, Node},
    model::{AppName, InstanceId, NodeName},
    plan::{App, Placement},
};

use super::{
    Assignment, Input,
    board::{Board, Score},
};

/// How much less loaded, in thousandths of a node, the new node must be with the instance than the old one is now.
const CLEARLY: u64 = 100;

/// A replica's way to another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// The replica.
    pub instance: InstanceId,
    /// Where from.
    pub from: NodeName,
    /// Where to.
    pub to: Assignment,
}

/// The move that makes the spread better most; none: it is good as it is. Nothing is moved to a node that is to be
/// avoided.
pub fn better(input: Input<'_>, avoid: &BTreeSet<(AppName, NodeName)>) -> Option<Move> {
    let board = Board::filled(input);
    let apps = &input.release.plan.apps;
    let (_, name, app, from, to) =
        apps.iter().filter_map(|(name, app)| of_app(&board, input, name, app, avoid)).max_by(|a, b| {
            // Ties: the first name wins.
            a.0.cmp(&b.0).then_with(|| b.1.cmp(a.1))
        })?;
    let here = board.placed.assignments.iter().filter(|(id, a)| id.app == *name && a.node == from.name);
    let instance = here.map(|(id, _)| id.clone()).next_back()?;
    let to = board.place_on(name, app, to)?;
    Some(Move { instance, from: from.name.clone(), to })
}

/// How much better: of the application's spread, then how full the node is that it leaves.
type Gain = (u32, u64, u32);

fn of_app<'a>(
    board: &Board<'a>,
    input: Input<'a>,
    name: &'a AppName,
    app: &'a App,
    avoid: &BTreeSet<(AppName, NodeName)>,
) -> Option<(Gain, &'a AppName, &'a App, &'a Node, &'a Node)> {
    let Placement::Replicas { nodes, publish, .. } = &app.placement else { return None };
    let all = || input.snapshot.nodes.values().filter(|node| node.is_ready());
    // What runs on a cordoned node stays; what a drain moves is not moved twice.
    let leave = all().filter(|node| node.intake == Intake::Open).map(|node| (board.now(name, node), node));
    let (from_score, from) =
        leave.filter(|(score, _)| score.same > 0).max_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.name.cmp(&a.1.name)))?;
    let takes = all().filter(|node| {
        node.name != from.name
            && (nodes.is_empty() || nodes.contains(&node.name))
            && !avoid.contains(&(name.clone(), node.name.clone()))
    });
    let (to_score, to) = takes
        .filter_map(|node| Some((board.score(name, app, node, *publish).ok()?, node)))
        .min_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.name.cmp(&b.1.name)))?;
    is_better(&from_score, &to_score)
        .then(|| ((from_score.same - to_score.same, from_score.share, from_score.all), name, app, from, to))
}

/// `from` with the instance there, `to` before it comes, but for its share: that is with it.
fn is_better(from: &Score, to: &Score) -> bool {
    let spreads = from.same >= to.same + 2;
    let keeps_spread = from.same > to.same;
    let lightens = to.share + CLEARLY <= from.share || to.share <= from.share && from.all >= to.all + 2;
    spreads || keeps_spread && lightens
}
