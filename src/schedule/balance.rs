//! One replica at a time from the fullest node to the emptiest, once everything is at rest.
//!
//! Never undoes what it did: each move makes the spread strictly better, first of the application, then of the load. So
//! it ends.

use std::collections::{BTreeMap, BTreeSet};

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
    let mut emptiest: Vec<_> = input.snapshot.nodes.values().filter(|node| node.takes_instances()).collect();
    emptiest.sort_by_cached_key(|node| (board.fill_of(node), &node.name));
    let field = Field { board, input, avoid, emptiest };
    let found = input.release.plan.apps.iter().filter_map(|(name, app)| field.of_app(name, app));
    // Ties: the first application wins.
    let found = found.max_by(|a, b| a.gain.cmp(&b.gain).then_with(|| b.instance.cmp(&a.instance)))?;
    let to = field.board.place_on(&found.instance.app, found.app, found.to)?;
    Some(Move { instance: found.instance, from: found.from.name.clone(), to })
}

struct Field<'a> {
    board: Board<'a>,
    input: Input<'a>,
    avoid: &'a BTreeSet<(AppName, NodeName)>,
    /// Nodes that take instances, the emptiest first.
    emptiest: Vec<&'a Node>,
}

struct Found<'a> {
    /// How much better: of the application's spread, then how full the node is that it leaves.
    gain: (u32, u64, u32),
    instance: InstanceId,
    app: &'a App,
    from: &'a Node,
    to: &'a Node,
}

impl<'a> Field<'a> {
    fn of_app(&self, name: &AppName, app: &'a App) -> Option<Found<'a>> {
        let Placement::Replicas { nodes, publish, .. } = &app.placement else { return None };
        let mut here: BTreeMap<&NodeName, Vec<&InstanceId>> = BTreeMap::new();
        for (id, place) in self.board.places_of(name) {
            here.entry(&place.node).or_default().push(id);
        }
        // What runs on a cordoned node stays; what a drain moves is not moved twice.
        let known = here.iter().filter_map(|(node, ids)| Some((self.input.snapshot.nodes.get(*node)?, ids)));
        let leave = known.filter(|(node, _)| node.is_ready() && node.intake == Intake::Open).map(|(node, ids)| {
            let (share, all) = self.board.fill_of(node);
            (Score { same: u32::try_from(ids.len()).unwrap_or(u32::MAX), share, all }, node, ids)
        });
        let (from_score, from, ids) = leave.max_by(|a, b| a.0.cmp(&b.0).then_with(|| b.1.name.cmp(&a.1.name)))?;
        let score = |node: &&'a Node| {
            let may = node.name != from.name
                && (nodes.is_empty() || nodes.contains(&node.name))
                && !self.avoid.contains(&(name.clone(), node.name.clone()));
            may.then(|| Some((self.board.score(name, app, node, *publish).ok()?, *node)))?
        };
        // A node without any of it, the emptiest, beats all that have one; of these there are few.
        let without = self.emptiest.iter().filter(|node| !here.contains_key(&node.name)).find_map(score);
        let with = || self.emptiest.iter().filter(|node| here.contains_key(&node.name)).filter_map(score);
        let (to_score, to) =
            without.or_else(|| with().min_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.name.cmp(&b.1.name))))?;
        is_better(&from_score, &to_score).then(|| Found {
            gain: (from_score.same - to_score.same, from_score.share, from_score.all),
            instance: (*ids[ids.len() - 1]).clone(),
            app,
            from,
            to,
        })
    }
}

/// `from` with the instance there, `to` before it comes, but for its share: that is with it.
fn is_better(from: &Score, to: &Score) -> bool {
    let spreads = from.same >= to.same + 2;
    let keeps_spread = from.same > to.same;
    let lightens = to.share + CLEARLY <= from.share || to.share <= from.share && from.all >= to.all + 2;
    spreads || keeps_spread && lightens
}
