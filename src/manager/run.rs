//! The loop: after every change of the world it asks what can be done now, and sets it going.
//!
//! Level-triggered: nothing is remembered of what was under way, only what is wanted and what is there.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    inventory::Snapshot,
    model::{AppName, NodeName, Port, Timestamp},
    reconcile::{Action, Hold},
    release::{Rollout, State},
    routing::{RoutingTable, routes},
    schedule::Unplaced,
};

use super::{
    acting::Running,
    balance::Balance,
    canary::Watching,
    caution,
    config::Config,
    decide::{names, statuses},
    events::{Events, Kind},
    execute::Outcome,
    gateway::Gateway,
    healer,
    journal::{Answered, Journal, Remembered},
    nodes::Nodes,
    pace::Pace,
    progress::{Overview, Progress},
    route::TOGETHER,
    undo::Seen,
};

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
    pub(super) written: Remembered,
    /// The table the gateway has; none: not known.
    pub(super) applied: Option<RoutingTable>,
    pub(super) applying: bool,
    /// Since when there are backends the gateway does not have yet, while more are on their way.
    pub(super) growing: Option<Instant>,
    /// The table the gateway has not taken, and why.
    pub(super) gateway_error: Option<(Untaken, RoutingTable)>,
    pub(super) holds: BTreeMap<String, Hold>,
    pub(super) running: BTreeMap<String, Running>,
    /// Host ports an engine refused to publish, and when.
    pub(super) held: BTreeMap<(NodeName, Port), Instant>,
    /// Containers that stay and passed the health check of the release on its way.
    pub(super) passed: BTreeMap<String, Answered>,
    /// Why the release on its way has failed.
    pub(super) failing: Vec<String>,
    /// The last release that failed, until another one is asked for.
    pub(super) failed: Option<u64>,
    /// Whether all of the release on its way answers.
    pub(super) staged: bool,
    /// What was seen of the active release since it became active.
    pub(super) seen: Seen,
    pub(super) pace: Pace,
    /// When an instance of an application last began to answer.
    pub(super) came: BTreeMap<AppName, Instant>,
    pub(super) lost: BTreeSet<NodeName>,
    pub(super) started: Instant,
    pub(super) unsure: caution::Unsure,
    pub(super) turn: u64,
    /// Nodes' states as they were told last.
    pub(super) told: BTreeMap<NodeName, &'static str>,
    pub(super) balance: Balance,
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
    let seen = Seen::of(known.verified.keys().cloned());
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
        held: BTreeMap::new(),
        passed: BTreeMap::new(),
        failing: Vec::new(),
        failed: None,
        staged: false,
        seen,
        pace: Pace::default(),
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
                self.pace.routes_change(false);
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
        self.forget_signalled();
        let mut decided = self.decide(&snapshot, now, frozen.is_some());
        // What is wanted changes with the phase of a rollout, and with what is too late to stay: it is decided anew.
        while self.advance(&decided, &snapshot, frozen.is_some())
            || self.keep_needed(&snapshot, &decided.decision.leaving)
        {
            self.forget_signalled();
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
            let turn = self.serves().then(|| self.pace.turn_of_none(decided.ready));
            tokio::spawn(async move { gateway.prepare_in_turn(&planned, turn.as_ref()).await });
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

    /// Tells which nodes are in another state than they were.
    fn tell_nodes(&mut self, snapshot: &Snapshot) {
        for (node, state) in caution::moved(&mut self.told, snapshot) {
            let kind = if matches!(state, "lost" | "refused") { Kind::Failed } else { Kind::Note };
            let text = node.trouble.as_ref().map_or_else(|| state.to_owned(), |trouble| format!("{state}: {trouble}"));
            self.parts.events.tell(kind, &node.name, Some(&node.name), text);
        }
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
