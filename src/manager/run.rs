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
    inventory::{ContainerSpec, NodeState, Snapshot},
    model::{AppName, InstanceId, NodeName, Timestamp},
    reconcile::{self, Action, Decision, Hold, Stage, Staged, World},
    release::{Release, Rollout, State},
    remote::connections,
    routing::{RoutingTable, routes},
    schedule::{self, Assignments, Unplaced},
};

use super::{
    balance::Balance,
    canary::Watching,
    caution,
    config::Config,
    events::{Events, Kind},
    execute::{self, Outcome},
    gateway::Gateway,
    heal, healer,
    journal::{Answered, Journal, Remembered},
    nodes::Nodes,
    pace::Pace,
    rollout,
    route::TOGETHER,
};

/// How far the cloud is from what is wanted.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// The release it is about: the one on its way, or else the active one; 0: none yet.
    pub release: u64,
    /// How far that is, for people; none: it is active.
    #[serde(default)]
    pub rollout: Option<String>,
    /// Whether all of it answers and the switch waits for somebody to ask for it.
    #[serde(default)]
    pub staged: bool,
    /// The last release that failed, until another one is asked for.
    #[serde(default)]
    pub failed: Option<u64>,
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
    Release { rollout: Box<Rollout>, turn: u64 },
    /// The switch may be made.
    Activate { turn: u64 },
    /// The release on its way is not wanted any more, for this reason.
    Abort { why: String },
    /// The release was submitted again: what failed is tried at once.
    Again { turn: u64 },
    /// Old releases are not kept any more.
    Forgotten(BTreeSet<u64>),
    /// An action ended.
    Ended { action: Box<Action>, again: bool, outcome: Outcome },
    /// The gateway took a table, or not.
    Applied { table: Box<RoutingTable>, result: Result<(), Untaken> },
}

/// Why the gateway has not taken a table.
#[derive(Debug)]
pub(super) struct Untaken {
    pub why: String,
    /// Whether it would not take it another time either; else it was not there, and has it when it is back.
    pub refused: bool,
}

/// What the loop works with.
pub(super) struct Parts {
    pub config: Arc<Config>,
    pub journal: Journal,
    pub nodes: Nodes,
    pub gateway: Option<Gateway>,
    pub events: Events,
    pub overview: watch::Sender<Overview>,
    /// Where instances should not run.
    pub away: watch::Receiver<healer::Away>,
    pub stop: CancellationToken,
}

/// The longest a loop waits when nothing happens.
const HEARTBEAT: Duration = Duration::from_secs(5);

pub(super) struct Loop {
    pub(super) parts: Parts,
    pub(super) sender: mpsc::UnboundedSender<Message>,
    pub(super) known: Remembered,
    /// What of it is written down.
    written: Remembered,
    /// The table the gateway has; none: not known.
    pub(super) applied: Option<RoutingTable>,
    pub(super) applying: bool,
    /// Since when there are backends the gateway does not have yet, while more are on their way.
    pub(super) growing: Option<Instant>,
    /// The table the gateway has not taken, and why.
    pub(super) gateway_error: Option<(Untaken, RoutingTable)>,
    pub(super) holds: BTreeMap<String, Hold>,
    pub(super) running: BTreeMap<String, (Action, CancellationToken)>,
    /// Containers that stay and passed the health check of the release on its way.
    pub(super) passed: BTreeMap<String, Answered>,
    /// Why the release on its way has failed.
    pub(super) failing: Vec<String>,
    /// The last release that failed, until another one is asked for.
    pub(super) failed: Option<u64>,
    /// Whether all of the release on its way answers.
    pub(super) staged: bool,
    /// Since when most of a watched application's instances are away.
    pub(super) bad_since: BTreeMap<AppName, Instant>,
    pace: Pace,
    /// What of a watched release served at the last look, and how often instances of each application fell.
    pub(super) served: BTreeSet<String>,
    pub(super) falls: BTreeMap<AppName, usize>,
    /// When an instance of an application last began to answer.
    pub(super) came: BTreeMap<AppName, Instant>,
    lost: BTreeSet<NodeName>,
    started: Instant,
    unsure: caution::Unsure,
    turn: u64,
    /// Nodes' states as they were told last.
    told: BTreeMap<NodeName, &'static str>,
    balance: Balance,
    /// What is watched while the release on its way gets a share of the requests.
    pub(super) canary: Option<Watching>,
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
        passed: BTreeMap::new(),
        failing: Vec::new(),
        failed: None,
        staged: false,
        bad_since: BTreeMap::new(),
        pace: Pace::default(),
        served: BTreeSet::new(),
        falls: BTreeMap::new(),
        came: BTreeMap::new(),
        lost: BTreeSet::new(),
        started: Instant::now(),
        unsure: caution::Unsure::default(),
        turn: 0,
        told: BTreeMap::new(),
        balance: Balance::default(),
        canary: None,
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
            Message::Release { rollout, turn } => {
                self.known.rollout = Some(*rollout);
                self.known.staged.clear();
                self.passed.clear();
                self.failing.clear();
                self.canary = None;
                self.try_at_once(turn);
            }
            Message::Activate { turn } => {
                self.release_hold();
                self.try_at_once(turn);
            }
            Message::Abort { why } => self.give_up(State::Aborted, vec![why]),
            Message::Again { turn } => self.try_at_once(turn),
            Message::Forgotten(numbers) => self.known.endings.retain(|number, _| !numbers.contains(number)),
            Message::Ended { action, again, outcome } => {
                self.running.remove(action.container());
                self.ended(&action, again, outcome);
            }
            Message::Applied { table, result } => {
                self.applying = false;
                match result {
                    Ok(()) => {
                        self.applied = Some(*table);
                        self.gateway_error = None;
                    }
                    Err(untaken) => {
                        if self.gateway_error.as_ref().is_none_or(|(last, _)| last.why != untaken.why) {
                            self.parts.events.tell(Kind::Failed, "gateway", None, untaken.why.clone());
                        }
                        self.gateway_error = Some((untaken, *table));
                    }
                }
            }
        }
    }

    fn try_at_once(&mut self, turn: u64) {
        self.turn = turn;
        self.failed = None;
        self.holds.clear();
        self.balance.released();
        self.gateway_error = None;
    }

    fn ended(&mut self, action: &Action, again: bool, outcome: Outcome) {
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
            Outcome::Failed { why, tries } => {
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

    /// Decides and sets going; answers when to look again at the latest.
    fn evaluate(&mut self) -> Instant {
        let snapshot = self.parts.nodes.snapshot();
        let now = Timestamp::now();
        self.tell_nodes(&snapshot);
        self.cut_lost(&snapshot);
        if self.known.release.is_none() && self.known.rollout.is_none() && self.known.endings.is_empty() {
            // Also a cloud without a release says that nothing is there.
            self.route();
            self.publish(Progress { settled: true, turn: self.turn, ..Progress::default() });
            return Instant::now() + HEARTBEAT;
        }
        if let Some(coming) = caution::looks_around(&snapshot, &self.parts.config.admission, self.started.elapsed()) {
            self.route();
            self.publish(Progress { turn: self.turn, frozen: Some(coming), ..self.about() });
            return Instant::now() + Duration::from_millis(100);
        }
        // Not before all have been looked at: what is not seen yet is not gone.
        caution::forget_gone(&mut self.known.verified, &snapshot);
        caution::forget_gone(&mut self.passed, &snapshot);
        let freeze_share = self.parts.config.healing.freeze_share;
        let frozen = self.unsure.look(&snapshot, self.started.elapsed(), freeze_share);
        self.look_after(&snapshot, now, frozen.is_some());
        let mut decided = self.decide(&snapshot, now, frozen.is_some());
        // What is wanted changes with the phase of a rollout: it is decided anew.
        while self.advance(&decided, &snapshot, frozen.is_some()) {
            decided = self.decide(&snapshot, now, frozen.is_some());
        }
        let staged = decided.stage.as_ref().map(|(_, stage)| stage.names()).unwrap_or_default();
        // What is staged gets no request before the switch, or its share.
        let tried = self.tried_places(&decided);
        let trial = tried.as_ref().zip(self.known.rollout.as_ref());
        let trial = trial.map(|(places, rollout)| routes::Trial { release: &rollout.release, places });
        let shares = trial.map(|trial| trial.names()).unwrap_or_default();
        let away: BTreeSet<String> =
            decided.decision.leaving.union(&staged).filter(|name| !shares.contains(*name)).cloned().collect();
        let verified = statuses(&self.known.verified);
        let routes_of = |last| routes::Input {
            cloud: &self.parts.config.cloud,
            release: &decided.release,
            assignments: &self.known.assignments,
            snapshot: &snapshot,
            verified: &verified,
            leaving: &away,
            last,
            trial,
        };
        let table = routes::table(routes_of(&self.known.table));
        let starts = decided.decision.actions.iter().any(|action| matches!(action, Action::Start { .. }));
        if starts && let Some(gateway) = self.parts.gateway.clone() {
            let next = match (&decided.stage, &self.known.rollout) {
                (Some((places, _)), Some(rollout)) => {
                    routes::Input { release: &rollout.release, assignments: places, ..routes_of(&table) }
                }
                _ => routes_of(&table),
            };
            let planned = routes::planned(next);
            tokio::spawn(async move { gateway.prepare(&planned).await });
        }
        self.known.table = table;
        self.remember();
        let wanted: BTreeSet<String> = names(&self.known.assignments).map(|(name, _)| name).chain(staged).collect();
        self.cancel_unwanted(&wanted);
        for action in std::mem::take(&mut decided.decision.actions) {
            self.set_going(action, &decided);
        }
        // After the actions: what is on its way is worth waiting for.
        self.route();
        let routed = self.applied.as_ref() == Some(&self.known.table);
        let failures = self.failures(&wanted);
        let gateway = self.gateway_error.as_ref().map(|(untaken, _)| untaken.why.clone());
        let still = self.running.is_empty() && (routed || gateway.is_some()) && !self.applying;
        let about = self.about();
        let progress = Progress {
            turn: self.turn,
            settled: still && (about.rollout.is_none() || about.staged),
            waiting: decided.decision.waiting.into_iter().filter(|(id, _)| !failures.contains_key(id)).collect(),
            failures,
            unplaced: decided.unplaced.iter().map(|(id, why): (_, &Unplaced)| (id.clone(), why.to_string())).collect(),
            gateway,
            frozen,
            ..about
        };
        if self.spread(&decided.release, &snapshot, &progress) {
            return Instant::now();
        }
        self.publish(progress);
        self.next_look(now)
    }

    /// What is wanted now, and what can be done about it.
    fn decide(&mut self, snapshot: &Snapshot, now: Timestamp, frozen: bool) -> Decided {
        let active = self.known.release.clone().unwrap_or_else(Release::none);
        let release = self.known.rollout.as_ref().map_or_else(|| active.clone(), |r| r.effective(&active));
        let ports = self.parts.config.ports;
        let (previous, beside) = (&self.known.assignments, &schedule::Beside::NOTHING);
        let doubts = &heal::doubts(&self.parts.away.borrow(), snapshot, self.parts.config.healing.move_after, now);
        let input = schedule::Input { release: &release, snapshot, previous, ports, frozen, beside, doubts };
        let placed = schedule::place(input);
        self.known.assignments = placed.assignments;
        let (mut unplaced, mut no_room) = (placed.unplaced, Vec::new());
        let stage = self.known.rollout.as_ref().map(|rollout| {
            let staged = rollout::place(rollout, &release, &self.known, snapshot, ports, frozen, doubts);
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
    fn spread(&mut self, release: &Release, snapshot: &Snapshot, progress: &Progress) -> bool {
        let config = Arc::clone(&self.parts.config);
        let doubts = heal::doubts(&self.parts.away.borrow(), snapshot, config.healing.move_after, Timestamp::now());
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

    /// Tells which nodes are in another state than they were.
    fn tell_nodes(&mut self, snapshot: &Snapshot) {
        for (node, state) in caution::moved(&mut self.told, snapshot) {
            let kind = if matches!(state, "lost" | "refused") { Kind::Failed } else { Kind::Note };
            let text = node.trouble.as_ref().map_or_else(|| state.to_owned(), |trouble| format!("{state}: {trouble}"));
            self.parts.events.tell(kind, &node.name, Some(&node.name), text);
        }
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
            (known.staged != last.staged).then_some(&known.staged),
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

    fn cancel_unwanted(&self, wanted: &BTreeSet<String>) {
        for (name, (action, cancel)) in &self.running {
            if matches!(action, Action::Start { .. } | Action::Verify { .. }) && !wanted.contains(name) {
                cancel.cancel();
            }
        }
    }

    fn set_going(&mut self, action: Action, decided: &Decided) {
        let name = action.container().to_owned();
        let of = |release: &Release| release.plan.apps.get(&action.instance().app).map(|app| app.health.clone());
        let again = matches!(action, Action::Verify { reason: reconcile::Reason::CheckChanged, .. });
        let next = again || decided.stage.as_ref().is_some_and(|(_, stage)| stage.names().contains(&name));
        let next = self.known.rollout.as_ref().filter(|_| next);
        let health = next.map_or_else(|| of(&decided.release), |rollout| of(&rollout.release));
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
            turn: self.may_wait(&action, decided).then(|| self.pace.turn(action.node(), decided.ready)),
            health,
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
        let serves = |table: &RoutingTable| table.apps.values().any(|app| !app.backends.is_empty());
        let urgent = !matches!(action, Action::Stop { .. }) && decided.stage.is_none();
        !urgent && self.applied.as_ref().is_some_and(serves)
    }

    fn failures(&self, wanted: &BTreeSet<String>) -> BTreeMap<InstanceId, String> {
        let all = names(&self.known.assignments).chain(names(&self.known.staged));
        let ids: BTreeMap<String, &InstanceId> = all.collect();
        self.holds
            .iter()
            .filter(|(name, _)| wanted.contains(*name))
            .filter_map(|(name, hold)| Some(((*ids.get(name)?).clone(), hold.why.clone())))
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
        // A watch and a pause end without anything that happens.
        let timed = self.known.watch.is_some() || self.canary.is_some() || self.known.rollout.is_some() && !self.staged;
        let soon = if timed { Duration::from_secs(1) } else { HEARTBEAT };
        let soonest = self
            .holds
            .values()
            .filter_map(|hold| Duration::try_from(hold.until.duration_since(now)).ok())
            .filter(|pause| !pause.is_zero())
            .min()
            .unwrap_or(HEARTBEAT)
            .min(soon);
        let grown = self.growing.map_or(HEARTBEAT, |since| TOGETHER.saturating_sub(since.elapsed()));
        Instant::now() + soonest.min(HEARTBEAT).min(grown)
    }
}

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

fn statuses(answered: &BTreeMap<String, Answered>) -> BTreeMap<String, Option<u16>> {
    answered.iter().map(|(name, answered)| (name.clone(), answered.status)).collect()
}

/// Each instance's container by name.
pub(super) fn names(places: &Assignments) -> impl Iterator<Item = (String, &InstanceId)> {
    places.iter().map(|(id, a)| (ContainerSpec::name_of(id, &a.spec, &a.node, a.host_port), id))
}
