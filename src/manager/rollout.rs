//! A release on its way, phase by phase: the loop's part that keeps it whole. Either all of it becomes active, or nothing.
//!
//! Each step is written down before it counts, so that a manager that is killed goes on from there.

use crate::{
    inventory::Snapshot,
    model::{AppName, Timestamp},
    reconcile::{self, Action, Stage, rollout::Next, waited_for},
    release::{Ending, Phase, Release, Rollout, State},
    schedule::Assignments,
};

use super::{
    decide::{Decided, names},
    events::Kind,
    progress::Progress,
    run::Loop,
    undo::{Seen, Watch},
};

impl Loop {
    /// Ends the rollout's phase where it is over; answers whether it did.
    pub(super) fn advance(&mut self, decided: &Decided, snapshot: &Snapshot, frozen: bool) -> bool {
        let (Some(rollout), Some((places, stage))) = (self.known.rollout.clone(), &decided.stage) else { return false };
        let mut failing = std::mem::take(&mut self.failing);
        failing.extend(decided.no_room.iter().cloned());
        if !failing.is_empty() {
            self.give_up(State::Failed, failing);
            return self.known.rollout.is_none();
        }
        let answered = |name: &str| self.known.verified.contains_key(name);
        let pending = stage.pending(snapshot, answered, |name| self.passed.contains_key(name));
        self.staged = pending.is_empty();
        if frozen {
            return false;
        }
        if let Phase::Canary { apps } = &rollout.phase {
            let apps = apps.clone();
            return self.look_at_canary(rollout, &apps, (places, stage), &pending);
        }
        let active = self.known.release.clone().unwrap_or_else(Release::none);
        let next = reconcile::rollout::next(reconcile::rollout::Look {
            rollout: &rollout,
            active: &active,
            stage,
            pending: !pending.is_empty(),
            rolling: &waited_for(&self.known.assignments, snapshot, answered).map(|id| id.app).collect(),
            shares: self.parts.config.varnish.is_some(),
        });
        match next {
            Next::Wait => false,
            Next::Try(apps) => self.try_out(rollout, apps),
            Next::Roll(_) | Next::Switch => self.go_on(rollout, stage, places),
        }
    }

    /// What has no room beside itself comes next, and then the switch.
    pub(super) fn go_on(&mut self, rollout: Rollout, stage: &Stage, places: &Assignments) -> bool {
        self.canary = None;
        let Next::Roll(apps) = reconcile::rollout::after_trial(&rollout, stage) else {
            return self.activate(rollout, places);
        };
        for (app, cramped) in &stage.cramped {
            self.parts.events.tell(Kind::Note, app, None, cramped.to_string());
        }
        self.turn_to(Rollout { phase: Phase::Rolling { apps }, since: Timestamp::now(), ..rollout })
    }

    pub(super) fn turn_to(&mut self, rollout: Rollout) -> bool {
        match self.parts.journal.rollout(&rollout) {
            Ok(()) => {
                self.known.rollout = Some(rollout);
                true
            }
            Err(error) => self.cannot_write(&error),
        }
    }

    fn activate(&mut self, rollout: Rollout, places: &Assignments) -> bool {
        let number = rollout.release.number;
        let ending = Ending { state: State::Good, why: Vec::new(), at: Timestamp::now() };
        let active = self.known.release.clone().unwrap_or_else(Release::none);
        let watch = Watch::over(&active, &rollout.release, ending.at);
        if let Err(error) = self.parts.journal.end(number, &ending, places, watch.as_ref()) {
            return self.cannot_write(&error);
        }
        self.parts.events.tell(Kind::Note, "release", None, format!("release {number} answers: switching"));
        // A release that was taken back is nothing to go back to.
        let was_good = |r: &Release| self.known.endings.get(&r.number).is_none_or(|e| e.state == State::Good);
        let before = self.known.release.replace(rollout.release).filter(was_good);
        self.known.previous = before.or(self.known.previous.take());
        self.known.watch = watch;
        self.known.assignments.clone_from(places);
        self.known.verified.append(&mut self.passed);
        self.seen = Seen::of(names(places).map(|(name, _)| name));
        self.over(number, ending);
        true
    }

    /// Ends the release on its way without its becoming active. What was active is wanted again, whole.
    pub(super) fn give_up(&mut self, state: State, why: Vec<String>) {
        let Some(rollout) = &self.known.rollout else { return };
        let number = rollout.release.number;
        let ending = Ending { state, why, at: Timestamp::now() };
        if let Err(error) = self.parts.journal.end(number, &ending, &self.known.assignments, None) {
            self.failing = ending.why;
            self.cannot_write(&error);
            return;
        }
        let text = format!("release {number} {}; what was active before stays", state.word());
        self.parts.events.tell(Kind::Failed, "release", None, text);
        if state == State::Failed {
            self.failed = Some(number);
        }
        self.passed.clear();
        let verified = &self.known.verified;
        self.seen.given_up(|name| verified.contains_key(name));
        // What failed is not tried again: it can go at once.
        self.holds.clear();
        self.over(number, ending);
    }

    fn over(&mut self, number: u64, ending: Ending) {
        self.known.rollout = None;
        self.known.staged.clear();
        self.known.endings.insert(number, ending);
        self.failing.clear();
        self.staged = false;
        self.canary = None;
    }

    fn cannot_write(&self, error: &crate::store::StoreError) -> bool {
        self.parts.events.tell(Kind::Failed, "manager", None, format!("cannot keep the state: {error}"));
        false
    }

    /// The switch (or the canary before it) need not wait any longer.
    pub(super) fn release_hold(&mut self) {
        let Some(rollout) = self.known.rollout.clone() else { return };
        let tried = matches!(rollout.phase, Phase::Canary { .. });
        if rollout.hold || tried {
            self.turn_to(Rollout { hold: false, straight: rollout.straight || tried, ..rollout });
        }
    }

    /// What this action is for has failed: a release on its way fails with it.
    pub(super) fn fails(&mut self, action: &Action, why: &str) {
        let Some(rollout) = &self.known.rollout else { return };
        let name = action.container();
        let rolling = matches!(&rollout.phase, Phase::Rolling { apps } if apps.contains(&action.instance().app));
        let staged = names(&self.known.staged).any(|(staged, _)| staged == name);
        let active = names(&self.known.assignments).any(|(active, _)| active == name);
        let asked_again = matches!(action, Action::Verify { reason: reconcile::Reason::CheckChanged, .. });
        if staged && (!active || rolling || asked_again) && !matches!(action, Action::Stop { .. }) {
            self.failing.push(format!("{} on {}: {why}", action.instance(), action.node()));
        }
    }

    /// What progress is about.
    pub(super) fn about(&self) -> Progress {
        let active = self.known.release.as_ref().map_or(0, |release| release.number);
        let Some(rollout) = &self.known.rollout else {
            return Progress { release: active, failed: self.failed, ..Progress::default() };
        };
        let waiting = names(&self.known.staged).filter(|(name, _)| !self.known.verified.contains_key(name)).count();
        let step = match &rollout.phase {
            Phase::Staging if self.staged && rollout.hold => "staged".to_owned(),
            Phase::Staging => format!("{waiting} instances have not answered yet"),
            Phase::Canary { apps } => match &self.canary {
                Some(watching) => watching.step(&rollout.release, apps),
                None => "canary".to_owned(),
            },
            Phase::Rolling { apps } => {
                format!("replacing {}", apps.iter().map(AppName::as_str).collect::<Vec<_>>().join(", "))
            }
        };
        let staged = rollout.hold && self.staged;
        Progress { release: rollout.release.number, rollout: Some(step), staged, ..Progress::default() }
    }
}
