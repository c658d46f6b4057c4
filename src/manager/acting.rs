//! The loop's hands: what was decided is set going, one action a container, and what came of it is taken in.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    inventory::{Container, ContainerState, NodeState, Snapshot},
    model::{NodeName, Port, Timestamp},
    reconcile::{self, Action, Hold},
    release::Release,
    remote::connections,
    routing::RoutingTable,
};

use super::{
    decide::Decided,
    events::Kind,
    execute::{self, Outcome, Point},
    run::{Loop, Message},
};

/// So long a host port is not allotted that an engine refused to publish: whoever holds it may have gone then.
const HELD: Duration = Duration::from_secs(600);

/// An action under way.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) action: Action,
    cancel: CancellationToken,
    point: Point,
}

impl Running {
    fn is_stop(&self) -> bool {
        matches!(self.action, Action::Stop { .. })
    }
}

impl Loop {
    pub(super) fn cancel_unwanted(&self, wanted: &BTreeSet<String>) {
        for (name, running) in &self.running {
            if !running.is_stop() && !wanted.contains(name) {
                running.cancel.cancel();
            }
        }
    }

    /// What gets its signal answers no longer: nothing may count on it, also where it is wanted again meanwhile.
    pub(super) fn forget_signalled(&mut self) {
        for (name, _) in self.running.iter().filter(|(_, running)| running.is_stop() && running.point.passed()) {
            self.known.verified.remove(name);
        }
    }

    /// What drains and need not leave any more stays, and serves: its release has failed, or others that would have served
    /// instead have fallen. Answers whether something was too late for that, so that all has to be decided anew.
    pub(super) fn keep_needed(&mut self, snapshot: &Snapshot, leaving: &BTreeSet<String>) -> bool {
        let mut late = false;
        for (name, running) in self.running.iter().filter(|(name, r)| r.is_stop() && !leaving.contains(*name)) {
            let node = snapshot.nodes.get(running.action.node()).filter(|node| node.is_ready());
            let runs = |c: &Container| c.name == *name && c.state == ContainerState::Running;
            if !running.point.open() || !node.is_some_and(|node| node.containers.iter().any(runs)) {
                continue;
            }
            if running.point.take_back() {
                running.cancel.cancel();
                let (instance, node) = (running.action.instance(), running.action.node());
                self.parts.events.tell(Kind::Note, instance, Some(node), "is needed: it stays, and drains no longer");
            } else {
                late = true;
            }
        }
        late
    }

    pub(super) fn set_going(&mut self, action: Action, decided: &Decided) {
        let name = action.container().to_owned();
        let of = |release: &Release| release.plan.apps.get(&action.instance().app).map(|app| app.health.clone());
        let again = matches!(action, Action::Verify { reason: reconcile::Reason::CheckChanged, .. });
        let next = again || decided.stage.as_ref().is_some_and(|(_, stage)| stage.names().contains(&name));
        let next = self.known.rollout.as_ref().filter(|_| next);
        let health = next.map_or_else(|| of(&decided.release), |rollout| of(&rollout.release));
        if self.running.contains_key(&name) {
            return;
        }
        let (cancel, point) = (self.parts.stop.child_token(), Point::default());
        self.running.insert(name, Running { action: action.clone(), cancel: cancel.clone(), point: point.clone() });
        let hands = execute::Hands {
            config: Arc::clone(&self.parts.config),
            nodes: self.parts.nodes.clone(),
            gateway: self.parts.gateway.clone(),
            events: self.parts.events.clone(),
            turn: self.may_wait(&action, decided).then(|| self.pace.turn(action.node(), decided.ready)),
            health,
            point,
        };
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = execute::execute(&hands, &action) => outcome,
                () = cancel.cancelled() => Outcome::Cancelled,
            };
            _ = sender.send(Message::Ended { action: Box::new(action), again, outcome });
        });
    }

    /// While others serve, a release takes its time, and so does whatever only has to go. Healing does not.
    fn may_wait(&self, action: &Action, decided: &Decided) -> bool {
        let urgent = !matches!(action, Action::Stop { .. }) && decided.stage.is_none();
        !urgent && self.serves()
    }

    /// Whether requests are routed to anybody.
    pub(super) fn serves(&self) -> bool {
        let serves = |table: &RoutingTable| table.apps.values().any(|app| !app.backends.is_empty());
        self.applied.as_ref().is_some_and(serves)
    }

    pub(super) fn ended(&mut self, action: &Action, again: bool, outcome: Outcome) {
        let name = action.container().to_owned();
        match outcome {
            Outcome::Answers(answered) => {
                self.holds.remove(&name);
                self.came.insert(action.instance().app.clone(), Instant::now());
                if again { &mut self.passed } else { &mut self.known.verified }.insert(name, answered);
            }
            Outcome::Gone => {
                self.holds.remove(&name);
                self.known.verified.remove(&name);
            }
            Outcome::Cancelled => {}
            Outcome::Failed { why, tries, held } => {
                if let Some(port) = held {
                    self.held.insert((action.node().clone(), port), Instant::now());
                }
                if !matches!(action, Action::Stop { .. }) {
                    self.balance.failed(&action.instance().app, action.node());
                }
                let failures = self.holds.get(&name).map_or(0, |hold| hold.failures) + 1;
                let pause = Duration::from_secs(5 << failures.min(6).saturating_sub(1));
                // The same failure again and again would push everything else out of sight.
                if self.holds.get(&name).is_none_or(|hold| hold.why != why) {
                    self.parts.events.tell(Kind::Failed, action.instance(), Some(action.node()), why.clone());
                }
                if tries.is_some_and(|tries| failures > tries) {
                    self.fails(action, &why);
                }
                let until = Timestamp::now() + pause;
                self.holds.insert(name, Hold { until, failures, why });
            }
        }
    }

    /// Host ports that are not allotted for a while, by node.
    pub(super) fn held_ports(&self) -> BTreeMap<NodeName, BTreeSet<Port>> {
        let mut ports: BTreeMap<NodeName, BTreeSet<Port>> = BTreeMap::new();
        for ((node, port), _) in self.held.iter().filter(|(_, since)| since.elapsed() < HELD) {
            ports.entry(node.clone()).or_default().insert(*port);
        }
        ports
    }

    /// Requests the gateway has sent to a node that is lost are tried elsewhere now, not after their timeout.
    pub(super) fn cut_lost(&mut self, snapshot: &Snapshot) {
        let lost = snapshot.nodes.values().filter(|node| matches!(node.state, NodeState::Lost { .. }));
        let lost: BTreeMap<_, _> = lost.map(|node| (node.name.clone(), node.address)).collect();
        for (node, address) in &lost {
            if self.parts.gateway.is_none() || self.lost.contains(node) {
                continue;
            }
            let (node, address, ssh) = (node.clone(), *address, self.parts.config.ssh.port);
            tokio::spawn(async move {
                if let Err(error) = connections::cut(address, ssh).await {
                    tracing::warn!(%node, %error, "connections to a lost node stay until they time out");
                }
            });
        }
        self.lost = lost.into_keys().collect();
    }
}
