//! Stops that take their time: what drains is taken back where it is needed after all, until it gets its signal; as the
//! manager's loop does it.

use super::*;

#[derive(Debug)]
struct Stopping {
    action: Action,
    /// Whether it got its signal.
    signalled: bool,
    /// Turns until that, or until it has ended.
    left: u8,
}

/// The stops under way, by container.
#[derive(Debug, Default)]
pub(super) struct Stops {
    /// So many turns one that begins now drains, and so many it takes to end then.
    pub(super) turns: u8,
    under_way: BTreeMap<String, Stopping>,
}

impl Stops {
    pub(super) fn any(&self) -> bool {
        !self.under_way.is_empty()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.under_way.contains_key(name)
    }

    pub(super) fn begin(&mut self, action: &Action) {
        let stopping = Stopping { action: action.clone(), signalled: false, left: self.turns };
        self.under_way.insert(action.container().to_owned(), stopping);
    }

    pub(super) fn keep_needed(&mut self, snapshot: &Snapshot, leaving: &BTreeSet<String>) {
        self.under_way.retain(|name, stopping| {
            let node = &snapshot.nodes[stopping.action.node()];
            let runs = |c: &Container| c.name == *name && c.state == ContainerState::Running;
            let serves = node.is_ready() && node.containers.iter().any(runs);
            stopping.signalled || leaving.contains(name) || !serves
        });
    }

    /// Those whose node does not answer: the engine cannot be told.
    pub(super) fn fail(&mut self, snapshot: &Snapshot) -> Vec<Action> {
        self.take(|stopping| !snapshot.nodes[stopping.action.node()].is_ready())
    }

    /// Those that get their signal in this turn.
    pub(super) fn signals(&mut self) -> Vec<Action> {
        let mut now = Vec::new();
        for stopping in self.under_way.values_mut() {
            stopping.left = stopping.left.saturating_sub(1);
            if stopping.left == 0 && !stopping.signalled {
                (stopping.signalled, stopping.left) = (true, self.turns.max(1));
                now.push(stopping.action.clone());
            }
        }
        now
    }

    /// Those that have ended and are to be removed.
    pub(super) fn ends(&mut self) -> Vec<Action> {
        self.take(|stopping| stopping.signalled && stopping.left == 0)
    }

    /// The manager is killed: what drained serves on, what has its signal ends and stays there.
    pub(super) fn are_forgotten(&mut self, sim: &mut Sim) {
        for (name, stopping) in std::mem::take(&mut self.under_way).into_iter().filter(|(_, s)| s.signalled) {
            let node = sim.snapshot.nodes.get_mut(stopping.action.node()).unwrap();
            for container in node.containers.iter_mut().filter(|c| c.name == name) {
                container.state = ContainerState::Exited;
            }
        }
    }

    fn take(&mut self, which: impl Fn(&Stopping) -> bool) -> Vec<Action> {
        let (taken, rest) = std::mem::take(&mut self.under_way).into_iter().partition(|(_, stopping)| which(stopping));
        self.under_way = rest;
        let taken: BTreeMap<_, Stopping> = taken;
        taken.into_values().map(|stopping| stopping.action).collect()
    }
}
