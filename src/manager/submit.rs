//! A plan comes in: it is checked, its images are pinned, and it becomes a release; or all that is wrong with it is said.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
};

use serde::{Deserialize, Serialize};

use crate::{
    inventory::{Admission, Node},
    model::{AppName, ImageRef, Timestamp},
    plan::{self, Checked, Diagnostic, Plan},
    reconcile::{self, Change, World},
    release::{self, Release, Rollout},
    remote::registry::RegistryError,
    schedule::{self, Placed},
};

use super::{Manager, events::Kind, progress::Overview, refused::SubmitError, room::Disks, run::Message};

/// A plan as it comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submission {
    /// The file's name, for messages.
    pub file: String,
    /// The plan's text.
    pub text: String,
    /// Who sends it.
    pub by: String,
    /// What they say of it.
    #[serde(default)]
    pub message: Option<String>,
    /// Whether only to say what would change.
    #[serde(default)]
    pub dry_run: bool,
    /// Whether to stop before the switch, until somebody asks for it.
    #[serde(default)]
    pub stage: bool,
}

/// A way back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollback {
    /// The release whose plan and images are wanted again; none: the one before the current.
    pub to: Option<u64>,
    /// Who wants it.
    pub by: String,
    /// What they say of it.
    #[serde(default)]
    pub message: Option<String>,
    /// Whether only to say what would change.
    #[serde(default)]
    pub dry_run: bool,
}

/// Who wants it, what they say, and whether they mean it.
#[derive(Debug, Default)]
pub(super) struct Meant {
    pub by: String,
    pub message: Option<String>,
    pub dry_run: bool,
    pub stage: bool,
    /// Whether it comes without a canary, whatever its plan says: all of it ran before.
    pub straight: bool,
    /// Applications whose containers are to be made anew.
    pub restart: BTreeSet<AppName>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submitted {
    /// The release that is wanted now (under `dry_run`: that would be).
    pub release: u64,
    /// Whether that is a new one.
    pub new: bool,
    /// The submission's number: it is taken into account once the progress has it.
    #[serde(default)]
    pub turn: u64,
    /// What changes.
    pub changes: Vec<Change>,
    /// What cannot run beside its old instances, and what that means; for people.
    #[serde(default)]
    pub cramped: Vec<String>,
    /// What begins with a share of the requests; for people.
    #[serde(default)]
    pub canaries: Vec<String>,
    /// What is not wrong, but worth a look.
    pub warnings: Vec<Diagnostic>,
}

impl Manager {
    /// Checks a plan, pins its images, and makes it the release the cloud should run.
    ///
    /// # Errors
    /// When it is not taken; nothing was changed then.
    pub async fn submit(&self, submission: Submission) -> Result<Submitted, SubmitError> {
        let checked = plan::read(&submission.file, &submission.text).map_err(SubmitError::Plan)?;
        let images = self.pin(&checked.plan).await?;
        let warnings = [checked.warnings.clone(), self.world_warnings(&checked, None)].concat();
        let Submission { by, message, dry_run, stage, .. } = submission;
        let meant = Meant { by, message, dry_run, stage, ..Meant::default() };
        self.propose(checked.plan, images, meant, warnings).await
    }

    /// Makes what an earlier release wanted a new release; its images must still be there.
    ///
    /// # Errors
    /// When it is not taken; nothing was changed then.
    pub async fn rollback(&self, rollback: Rollback) -> Result<Submitted, SubmitError> {
        let releases = self.0.journal.releases()?;
        let before = self.0.overview.borrow().remembered.previous.as_ref().map_or(0, |release| release.number);
        let wanted = rollback.to.unwrap_or(before);
        let was = release::was(&releases, wanted);
        let Some(release) = releases.into_iter().find(|release| release.number == wanted) else {
            return Err(if was { SubmitError::NotKept(wanted) } else { SubmitError::NoRelease(wanted) });
        };
        self.still_there(&release).await?;
        let message = rollback.message.or_else(|| Some(format!("rollback to release {wanted}")));
        let Rollback { by, dry_run, .. } = rollback;
        let meant = Meant { by, message, dry_run, straight: true, ..Meant::default() };
        self.propose(release.plan, release.images, meant, Vec::new()).await
    }

    /// Makes a plan with its images the release the cloud should run, where it is not that already.
    pub(super) async fn propose(
        &self,
        plan: Plan,
        images: BTreeMap<AppName, ImageRef>,
        meant: Meant,
        warnings: Vec<Diagnostic>,
    ) -> Result<Submitted, SubmitError> {
        let _one_at_a_time = self.0.submitting.lock().await;
        let overview = self.0.overview.borrow().clone();
        let current = overview.remembered.release.clone();
        let same = current.as_ref().is_some_and(|release| release.same_content(&plan, &images));
        let unchanged = same && meant.restart.is_empty();
        let restarts = Release::restarts_after(current.as_ref(), &plan, &meant.restart);
        let number = match &current {
            Some(release) if unchanged => release.number,
            _ => self.0.journal.releases()?.last().map_or(0, |release| release.number) + 1,
        };
        let release = match current {
            Some(current) if unchanged => current,
            _ => Release {
                number,
                plan,
                images,
                created: Timestamp::now(),
                by: meant.by,
                message: meant.message,
                restarts,
            },
        };
        let (changes, stage) = self.preview(&release, &overview);
        let mut cramped: Vec<_> = stage.cramped.iter().map(|(app, why)| format!("{app}: {why}")).collect();
        let canaries = if meant.straight { Vec::new() } else { self.canaries(&release, &overview, &stage) };
        // The same again, while it is on its way: whoever asks sees how it ends.
        let asked_before = |rollout: &&Rollout| {
            rollout.release.same_content(&release.plan, &release.images) && rollout.release.restarts == release.restarts
        };
        if let Some(rollout) = overview.remembered.rollout.as_ref().filter(asked_before) {
            let release = rollout.release.number;
            return Ok(Submitted { release, new: true, turn: 0, changes, cramped, canaries, warnings });
        }
        let disks = if unchanged { Disks::default() } else { self.disks(&release, &overview).await };
        if !disks.full.is_empty() {
            return Err(SubmitError::Disks(disks.full));
        }
        cramped.extend(disks.tight);
        let turn = if meant.dry_run { 0 } else { self.0.turns.fetch_add(1, Ordering::Relaxed) + 1 };
        let submitted = Submitted { release: number, new: !unchanged, turn, changes, cramped, canaries, warnings };
        if meant.dry_run {
            return Ok(submitted);
        }
        busy(&overview)?;
        // A loop that ended means the manager is ending: the release is written down and is brought about next time.
        if unchanged {
            _ = self.0.inbox.send(Message::Again { turn });
            return Ok(submitted);
        }
        let rollout = Rollout { straight: meant.straight, ..Rollout::new(release, Timestamp::now(), meant.stage) };
        self.0.journal.begin(&rollout)?;
        self.0.events.tell(Kind::Begin, "release", None, format!("release {number} by {}", rollout.release.by));
        _ = self.0.inbox.send(Message::Release { rollout: Box::new(rollout), turn });
        Ok(submitted)
    }

    /// Lets the staged release become active.
    ///
    /// # Errors
    /// When there is none.
    pub fn activate(&self) -> Result<Submitted, SubmitError> {
        let turn = self.0.turns.fetch_add(1, Ordering::Relaxed) + 1;
        let submitted = Submitted { turn, ..self.on_its_way()? };
        _ = self.0.inbox.send(Message::Activate { turn });
        Ok(submitted)
    }

    /// Throws the release away that is on its way.
    ///
    /// # Errors
    /// When there is none.
    pub fn abort(&self, by: &str) -> Result<u64, SubmitError> {
        let number = self.on_its_way()?.release;
        _ = self.0.inbox.send(Message::Abort { why: format!("aborted by {by}") });
        Ok(number)
    }

    /// The release on its way, as it was submitted before.
    ///
    /// # Errors
    /// When there is none.
    pub fn on_its_way(&self) -> Result<Submitted, SubmitError> {
        let overview = self.0.overview.borrow();
        let rollout = overview.remembered.rollout.as_ref().ok_or(SubmitError::NoRollout)?;
        Ok(Submitted {
            release: rollout.release.number,
            new: true,
            turn: 0,
            changes: Vec::new(),
            cramped: Vec::new(),
            canaries: Vec::new(),
            warnings: Vec::new(),
        })
    }

    /// What would change if this were the release, and what of it can be beside what runs.
    fn preview(&self, release: &Release, overview: &Overview) -> (Vec<Change>, reconcile::Stage) {
        let snapshot = self.0.nodes.snapshot();
        let known = &overview.remembered;
        let Placed { assignments, unplaced, .. } = schedule::place(schedule::Input {
            release,
            snapshot: &snapshot,
            previous: &known.assignments,
            ports: self.config().ports,
            frozen: overview.progress.frozen.is_some(),
            beside: &schedule::Beside::NOTHING,
            doubts: &schedule::Doubts::NONE,
        });
        let verified = known.verified.iter().map(|(n, a)| (n.clone(), a.status)).collect();
        let world = World {
            cloud: &self.config().cloud,
            release,
            previous: known.release.as_ref(),
            assignments: &assignments,
            snapshot: &snapshot,
            verified: &verified,
            routed: None,
            holds: &BTreeMap::new(),
            staged: None,
            resting: &BTreeSet::new(),
            now: Timestamp::now(),
        };
        let active = known.release.clone().unwrap_or_else(Release::none);
        let stage = reconcile::stage(reconcile::StageInput {
            active: &active,
            places: &known.assignments,
            next: release,
            beside: &assignments,
            no_room: &BTreeSet::new(),
        });
        (reconcile::changes(world, &unplaced), stage)
    }

    /// What would begin with a share of the requests.
    fn canaries(&self, release: &Release, overview: &Overview, stage: &reconcile::Stage) -> Vec<String> {
        let active = overview.remembered.release.clone().unwrap_or_else(Release::none);
        let tried = reconcile::canary::tried(&active, release, stage);
        let tried = tried.iter().filter(|_| self.config().varnish.is_some()).filter_map(|app| {
            let canary = release.plan.apps.get(app)?.update.canary;
            Some(format!("{app} begins with {}% of its requests, for {} s", canary.share, canary.time_seconds))
        });
        tried.collect()
    }

    /// What this plan names and neither the cloud nor the registry knows; images are left out where that does not answer.
    pub async fn check(&self, checked: &Checked) -> Vec<Diagnostic> {
        let mut images = BTreeMap::new();
        let known = async {
            for repository in self.0.registry.repositories().await? {
                let tags = self.0.registry.tags(&repository).await?;
                images.insert(repository.to_string(), tags.into_iter().collect());
            }
            Ok::<_, RegistryError>(())
        };
        let answered = known.await.is_ok();
        self.world_warnings(checked, answered.then_some(images))
    }

    /// What this plan names and the cloud does not know.
    fn world_warnings(&self, checked: &Checked, images: Option<BTreeMap<String, BTreeSet<String>>>) -> Vec<Diagnostic> {
        let admitted = |node: &&Node| matches!(node.admission, Admission::Admitted { .. });
        let snapshot = self.0.nodes.snapshot();
        let world = plan::World {
            nodes: Some(snapshot.nodes.values().filter(admitted).map(|node| node.name.clone()).collect()),
            images,
            registry: self.config().registry.name.clone(),
            namespace: self.config().registry.namespace.clone(),
        };
        plan::world_warnings(checked, &world)
    }
}

/// Refuses while a release is on its way. Old instances of the last one that still end are in nobody's way.
fn busy(overview: &Overview) -> Result<(), SubmitError> {
    let Some(Rollout { release, .. }) = &overview.remembered.rollout else { return Ok(()) };
    Err(SubmitError::Busy {
        release: release.number,
        by: release.by.clone(),
        age: Timestamp::now().as_second() - release.created.as_second(),
        step: overview.progress.rollout.clone().unwrap_or_else(|| "starting".to_owned()),
    })
}
