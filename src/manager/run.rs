//! The loop: after every change of the world it asks what can be done now, and sets it going.
//!
//! Level-triggered: nothing is remembered of what was under way, only what is wanted and what is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    inventory::{NodeState, Snapshot},
    model::{AppName, InstanceId, NodeName, Timestamp},
    plan::App,
    reconcile::{self, Action, Hold, World},
    release::Release,
    remote::connections,
    routing::{AppRouting, RoutingTable, routes},
    schedule::{self, Unplaced},
};

use super::{
    caution,
    config::Config,
    events::{Events, Kind},
    execute::{self, Outcome},
    gateway::Gateway,
    journal::{Journal, Remembered},
    nodes::Nodes,
};

/// How far the cloud is from what is wanted.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// The release it is about; 0: none yet.
    pub release: u64,
    /// The last submission that is taken into account, counted since the manager started.
    pub turn: u64,
    /// Whether there is nothing to do and nothing under way.
    pub settled: bool,
    /// What failed last, by instance, and is tried again later.
    pub failures: BTreeMap<InstanceId, String>,
    /// What cannot go on yet, and on what it waits.
    pub waiting: BTreeMap<InstanceId, String>,
    /// What finds no place.
    pub unplaced: BTreeMap<InstanceId, String>,
    /// What the gateway refused.
    pub gateway: Option<String>,
    /// Whether lost nodes' instances stay where they are, since the manager is unsure.
    pub frozen: Option<String>,
}

/// What the manager knows, for views.
#[derive(Debug, Clone, Default)]
pub struct Overview {
    /// What is remembered: release, places, what answered, the table.
    pub remembered: Arc<Remembered>,
    /// How far it is.
    pub progress: Progress,
}

pub(super) enum Message {
    /// A release was made and written down, by this submission.
    Release { release: Box<Release>, turn: u64 },
    /// The release was submitted again: what failed is tried at once.
    Again { turn: u64 },
    /// An action ended.
    Ended { action: Box<Action>, outcome: Outcome },
    /// The gateway took a table, or not.
    Applied { table: Box<RoutingTable>, result: Result<(), String> },
}

/// What the loop works with.
pub(super) struct Parts {
    pub config: Arc<Config>,
    pub journal: Journal,
    pub nodes: Nodes,
    pub gateway: Option<Gateway>,
    pub events: Events,
    pub overview: watch::Sender<Overview>,
    pub stop: CancellationToken,
}

/// The longest a loop waits when nothing happens.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// How long a backend that answers waits for others, so that they are routed together.
const TOGETHER: Duration = Duration::from_millis(400);

struct Loop {
    parts: Parts,
    sender: mpsc::UnboundedSender<Message>,
    known: Remembered,
    /// What of it is written down.
    written: Remembered,
    /// The table the gateway has; none: not known.
    applied: Option<RoutingTable>,
    applying: bool,
    /// Since when there are backends the gateway does not have yet, while more are on their way.
    growing: Option<Instant>,
    gateway_error: Option<(String, RoutingTable)>,
    holds: BTreeMap<String, Hold>,
    running: BTreeMap<String, (Action, CancellationToken)>,
    lost: BTreeSet<NodeName>,
    started: Instant,
    turn: u64,
    /// Nodes' states as they were told last.
    told: BTreeMap<NodeName, &'static str>,
}

/// Runs until the token is cancelled. What is under way on nodes is left to end by itself.
pub(super) async fn run(
    parts: Parts,
    known: Remembered,
    sender: mpsc::UnboundedSender<Message>,
    mut inbox: mpsc::UnboundedReceiver<Message>,
) {
    let mut snapshots = parts.nodes.subscribe();
    let mut gateway_state = parts.gateway.as_ref().map(Gateway::state);
    let stop = parts.stop.clone();
    let mut this = Loop {
        parts,
        sender,
        written: known.clone(),
        known,
        applied: None,
        applying: false,
        growing: None,
        gateway_error: None,
        holds: BTreeMap::new(),
        running: BTreeMap::new(),
        lost: BTreeSet::new(),
        started: Instant::now(),
        turn: 0,
        told: BTreeMap::new(),
    };
    loop {
        let wake = this.evaluate();
        tokio::select! {
            () = stop.cancelled() => break,
            message = inbox.recv() => {
                let Some(message) = message else { break };
                this.take(message);
                while let Ok(message) = inbox.try_recv() {
                    this.take(message);
                }
            }
            changed = snapshots.changed() => if changed.is_err() { break },
            () = moved(gateway_state.as_mut()) => {}
            () = sleep_until(wake) => {}
        }
    }
}

/// When the gateway's state changes; never, where there is no gateway.
async fn moved<T>(state: Option<&mut watch::Receiver<T>>) {
    if let Some(state) = state
        && state.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

impl Loop {
    fn take(&mut self, message: Message) {
        match message {
            Message::Release { release, turn } => {
                self.ask_again(&release);
                self.known.previous = self.known.release.replace(*release);
                self.try_at_once(turn);
            }
            Message::Again { turn } => self.try_at_once(turn),
            Message::Ended { action, outcome } => {
                self.running.remove(action.container());
                self.ended(&action, outcome);
            }
            Message::Applied { table, result } => {
                self.applying = false;
                match result {
                    Ok(()) => {
                        self.applied = Some(*table);
                        self.gateway_error = None;
                    }
                    Err(why) => {
                        if self.gateway_error.as_ref().is_none_or(|(last, _)| *last != why) {
                            self.parts.events.tell(Kind::Failed, "gateway", None, why.clone());
                        }
                        self.gateway_error = Some((why, *table));
                    }
                }
            }
        }
    }

    fn try_at_once(&mut self, turn: u64) {
        self.turn = turn;
        self.holds.clear();
        self.gateway_error = None;
    }

    fn ended(&mut self, action: &Action, outcome: Outcome) {
        let name = action.container().to_owned();
        match outcome {
            Outcome::Answers(answered) => {
                self.holds.remove(&name);
                self.known.verified.insert(name, answered);
            }
            Outcome::Gone => {
                self.holds.remove(&name);
                self.known.verified.remove(&name);
            }
            Outcome::Cancelled => {}
            Outcome::Failed(why) => {
                let failures = self.holds.get(&name).map_or(0, |hold| hold.failures) + 1;
                let pause = Duration::from_secs(5 << failures.min(6).saturating_sub(1));
                // The same failure again and again would push everything else out of sight.
                if self.holds.get(&name).is_none_or(|hold| hold.why != why) {
                    self.parts.events.tell(Kind::Failed, action.instance(), Some(action.node()), why.clone());
                }
                let until = Timestamp::now() + pause;
                self.holds.insert(name, Hold { until, failures, why });
            }
        }
    }

    /// Decides and sets going; answers when to look again at the latest.
    fn evaluate(&mut self) -> Instant {
        let snapshot = self.parts.nodes.snapshot();
        let now = Timestamp::now();
        self.tell_nodes(&snapshot);
        self.cut_lost(&snapshot);
        let Some(release) = self.known.release.clone() else {
            // Also a cloud without a release says that nothing is there.
            self.route();
            self.publish(Progress { settled: true, turn: self.turn, ..Progress::default() });
            return Instant::now() + HEARTBEAT;
        };
        if let Some(coming) = caution::looks_around(&snapshot, &self.parts.config.admission, self.started.elapsed()) {
            self.route();
            self.publish(Progress {
                release: release.number,
                turn: self.turn,
                frozen: Some(coming),
                ..Progress::default()
            });
            return Instant::now() + Duration::from_millis(100);
        }
        // Not before all have been looked at: what is not seen yet is not gone.
        caution::forget_gone(&mut self.known.verified, &snapshot);
        let frozen = caution::unsure(&snapshot, self.started.elapsed(), self.parts.config.healing.freeze_share);
        let placed = schedule::place(schedule::Input {
            release: &release,
            snapshot: &snapshot,
            previous: &self.known.assignments,
            ports: self.parts.config.ports,
            frozen: frozen.is_some(),
            beside: &schedule::Beside::NOTHING,
        });
        self.known.assignments = placed.assignments;
        let verified: BTreeMap<_, _> = self.known.verified.iter().map(|(n, a)| (n.clone(), a.status)).collect();
        let decision = reconcile::diff(World {
            cloud: &self.parts.config.cloud,
            release: &release,
            previous: self.known.previous.as_ref(),
            assignments: &self.known.assignments,
            snapshot: &snapshot,
            verified: &verified,
            routed: self.applied.as_ref(),
            holds: &self.holds,
            now,
        });
        self.known.table = routes::table(routes::Input {
            cloud: &self.parts.config.cloud,
            release: &release,
            assignments: &self.known.assignments,
            snapshot: &snapshot,
            verified: &verified,
            leaving: &decision.leaving,
            last: &self.known.table,
        });
        self.remember();
        let wanted: BTreeSet<String> = self
            .known
            .assignments
            .iter()
            .map(|(id, a)| crate::inventory::ContainerSpec::name_of(id, &a.spec, &a.node, a.host_port))
            .collect();
        self.cancel_unwanted(&wanted);
        if decision.actions.iter().any(|action| matches!(action, Action::Start { .. }))
            && let Some(gateway) = self.parts.gateway.clone()
        {
            let planned = routes::planned(routes::Input {
                cloud: &self.parts.config.cloud,
                release: &release,
                assignments: &self.known.assignments,
                snapshot: &snapshot,
                verified: &verified,
                leaving: &decision.leaving,
                last: &self.known.table,
            });
            tokio::spawn(async move { gateway.prepare(&planned).await });
        }
        for action in decision.actions {
            self.set_going(action);
        }
        // After the actions: what is on its way is worth waiting for.
        self.route();
        let routed = self.applied.as_ref() == Some(&self.known.table);
        let failures = self.failures(&wanted);
        let gateway = self.gateway_error.as_ref().map(|(why, _)| why.clone());
        self.publish(Progress {
            release: release.number,
            turn: self.turn,
            settled: self.running.is_empty() && (routed || gateway.is_some()) && !self.applying,
            waiting: decision.waiting.into_iter().filter(|(id, _)| !failures.contains_key(id)).collect(),
            failures,
            unplaced: placed.unplaced.iter().map(|(id, why): (_, &Unplaced)| (id.clone(), why.to_string())).collect(),
            gateway,
            frozen,
        });
        self.next_look(now)
    }

    /// Tells which nodes are in another state than they were.
    fn tell_nodes(&mut self, snapshot: &Snapshot) {
        for (node, state) in caution::moved(&mut self.told, snapshot) {
            let kind = if matches!(state, "lost" | "refused") { Kind::Failed } else { Kind::Note };
            let text = node.trouble.as_ref().map_or_else(|| state.to_owned(), |trouble| format!("{state}: {trouble}"));
            self.parts.events.tell(kind, &node.name, Some(&node.name), text);
        }
    }

    /// Instances that stay, of applications whose health check changed, have to answer the new one before the gateway
    /// asks it: a wrong one must not take what serves out of the turn.
    fn ask_again(&mut self, next: &Release) {
        let Some(now) = &self.known.release else { return };
        let changed = |(name, app): (&AppName, &App)| {
            let before = now.plan.apps.get(name)?;
            (before.health.check != app.health.check && now.spec(name) == next.spec(name)).then(|| format!("{name}."))
        };
        let changed: Vec<_> = next.plan.apps.iter().filter_map(changed).collect();
        self.known.verified.retain(|name, _| !changed.iter().any(|app| name.starts_with(app)));
    }

    /// Requests the gateway has sent to a node that is lost are tried elsewhere now, not after their timeout.
    fn cut_lost(&mut self, snapshot: &Snapshot) {
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

    /// Writes down what is new, also what messages have brought: a manager that is killed goes on from there.
    fn remember(&mut self) {
        let (known, last) = (&self.known, &self.written);
        let written = self.parts.journal.world(
            (known.assignments != last.assignments).then_some(&known.assignments),
            (known.verified != last.verified).then_some(&known.verified),
            (known.table != last.table).then_some(&known.table),
        );
        if *known != *last {
            self.written = known.clone();
        }
        if let Err(error) = written {
            self.parts.events.tell(Kind::Failed, "manager", None, format!("cannot keep the state: {error}"));
        }
    }

    fn route(&mut self) {
        let table = &self.known.table;
        let Some(gateway) = &self.parts.gateway else {
            // Nobody to tell: it holds at once, and what waits for it goes on now, not at the next heartbeat.
            if self.applied.as_ref() != Some(table) {
                _ = self.sender.send(Message::Applied { table: Box::new(table.clone()), result: Ok(()) });
            }
            return;
        };
        let refused =
            self.gateway_error.as_ref().is_some_and(|(_, refused)| refused == table) && gateway.state().borrow().up;
        if self.applying || self.applied.as_ref() == Some(table) || refused {
            self.growing = None;
            return;
        }
        if self.may_grow() && (!self.gains() || self.growing.get_or_insert_with(Instant::now).elapsed() < TOGETHER) {
            return;
        }
        self.growing = None;
        self.applying = true;
        let (gateway, table, sender) = (gateway.clone(), table.clone(), self.sender.clone());
        tokio::spawn(async move {
            let result = gateway.apply(&table).await.map(drop).map_err(|e| execute::chain(&e));
            _ = sender.send(Message::Applied { table: Box::new(table), result });
        });
    }

    /// Whether all that is new is more backends and applications, and more may come at once: each load costs a
    /// compilation.
    fn may_grow(&self) -> bool {
        let coming = self.running.values().any(|(action, _)| !matches!(action, Action::Stop { .. }));
        let Some(applied) = self.applied.as_ref().filter(|_| coming) else { return false };
        applied.apps.iter().all(|(name, before)| {
            let Some(now) = self.known.table.apps.get(name) else { return false };
            let mut grown = before.clone();
            grown.backends.clone_from(&now.backends);
            grown == *now && before.backends.iter().all(|(name, backend)| now.backends.get(name) == Some(backend))
        })
    }

    /// Whether the table has a backend that the gateway lacks.
    fn gains(&self) -> bool {
        let has = |app: &AppName| self.applied.as_ref().and_then(|applied| applied.apps.get(app));
        let lacks = |(app, new): (&AppName, &AppRouting)| {
            new.backends.keys().any(|name| has(app).is_none_or(|old| !old.backends.contains_key(name)))
        };
        self.known.table.apps.iter().any(lacks)
    }

    fn cancel_unwanted(&self, wanted: &BTreeSet<String>) {
        for (name, (action, cancel)) in &self.running {
            if matches!(action, Action::Start { .. } | Action::Verify { .. }) && !wanted.contains(name) {
                cancel.cancel();
            }
        }
    }

    fn set_going(&mut self, action: Action) {
        let name = action.container().to_owned();
        if self.running.contains_key(&name) {
            return;
        }
        let cancel = self.parts.stop.child_token();
        self.running.insert(name, (action.clone(), cancel.clone()));
        let hands = execute::Hands {
            config: Arc::clone(&self.parts.config),
            nodes: self.parts.nodes.clone(),
            gateway: self.parts.gateway.clone(),
            events: self.parts.events.clone(),
            health: self.health(action.instance()),
        };
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = execute::execute(&hands, &action) => outcome,
                () = cancel.cancelled() => Outcome::Cancelled,
            };
            _ = sender.send(Message::Ended { action: Box::new(action), outcome });
        });
    }

    fn health(&self, id: &InstanceId) -> Option<crate::plan::Health> {
        self.known.release.as_ref()?.plan.apps.get(&id.app).map(|app| app.health.clone())
    }

    fn failures(&self, wanted: &BTreeSet<String>) -> BTreeMap<InstanceId, String> {
        let names: BTreeMap<String, &InstanceId> = self
            .known
            .assignments
            .iter()
            .map(|(id, a)| (crate::inventory::ContainerSpec::name_of(id, &a.spec, &a.node, a.host_port), id))
            .collect();
        self.holds
            .iter()
            .filter(|(name, _)| wanted.contains(*name))
            .filter_map(|(name, hold)| Some(((*names.get(name)?).clone(), hold.why.clone())))
            .collect()
    }

    fn publish(&self, progress: Progress) {
        self.parts.overview.send_if_modified(|overview| {
            let changed = overview.progress != progress || *overview.remembered != self.known;
            if changed {
                *overview = Overview { remembered: Arc::new(self.known.clone()), progress };
            }
            changed
        });
    }

    fn next_look(&self, now: Timestamp) -> Instant {
        let soonest = self
            .holds
            .values()
            .filter_map(|hold| Duration::try_from(hold.until.duration_since(now)).ok())
            .filter(|pause| !pause.is_zero())
            .min()
            .unwrap_or(HEARTBEAT);
        let grown = self.growing.map_or(HEARTBEAT, |since| TOGETHER.saturating_sub(since.elapsed()));
        Instant::now() + soonest.min(HEARTBEAT).min(grown)
    }
}
