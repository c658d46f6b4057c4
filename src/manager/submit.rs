//! A plan comes in: it is checked, its images are pinned, and it becomes a release; or all that is wrong with it is said.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
};

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

use crate::{
    inventory::{Admission, Node},
    model::{AppName, ImageRef, Timestamp},
    plan::{self, Checked, Diagnostic, Plan},
    reconcile::{self, Change, World},
    release::{self, Naming, Release, Rollout},
    remote::registry::{Registry, RegistryError},
    schedule::{self, Placed},
    store::StoreError,
};

use super::{Manager, events::Kind, execute::chain, progress::Overview, room::Disks, run::Message};

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

/// Why it was not taken. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The plan is wrong: all its errors.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Plan(Vec<Diagnostic>),
    /// Images are not in their registry.
    #[error("{}", .0.join("\n"))]
    Images(Vec<String>),
    /// Nodes' disks cannot hold the images.
    #[error("{}", .0.join("\n"))]
    Disks(Vec<String>),
    /// There is no such release.
    #[error("there is no release {0}")]
    NoRelease(u64),
    /// There was one, and it was cleaned away.
    #[error("release {0} is not kept any more")]
    NotKept(u64),
    /// The registry does not answer.
    #[error("cannot look up images")]
    Registry(#[source] RegistryError),
    /// No release is on its way.
    #[error("no release is on its way")]
    NoRollout,
    /// Another release is going out.
    #[error("release {release} by {by}, made {age} s ago, is still going out ({step})")]
    Busy {
        /// Its number.
        release: u64,
        /// Who made it.
        by: String,
        /// How long ago, in seconds.
        age: i64,
        /// What it is at.
        step: String,
    },
    /// The state cannot be written.
    #[error("cannot keep the release")]
    State(#[from] StoreError),
}

/// Why an old release is not there.
pub const NOT_KEPT: &str =
    "`matrix releases` lists those that are; `[gc] keep_releases` says how many of each application";

impl SubmitError {
    /// What to do.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Plan(_) | Self::State(_) => None,
            Self::Images(_) => Some("`matrix images` lists what is there; `matrix install-image NAME` puts one there"),
            Self::Disks(_) => Some("`matrix gc` frees what no release needs; or place the application elsewhere"),
            Self::NoRelease(_) => Some("`matrix releases` lists them"),
            Self::NotKept(_) => Some(NOT_KEPT),
            Self::Registry(_) => Some("is the registry running, and does the configuration name its address?"),
            Self::NoRollout => Some("`matrix status` shows what runs, `matrix releases` how each release ended"),
            Self::Busy { .. } => {
                Some("`matrix follow` shows it, `matrix abort` ends it; a staged one waits for `matrix activate`")
            }
        }
    }
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

    /// That every image of a release can still be pulled.
    async fn still_there(&self, release: &Release) -> Result<(), SubmitError> {
        let mut gone = Vec::new();
        for (name, image) in &release.images {
            let Some(digest) = &image.digest else { continue };
            let registry = image.registry.clone().unwrap_or_default();
            match self
                .registry_of(&registry)
                .map_err(SubmitError::Registry)?
                .find(&image.repository, digest.as_str())
                .await
            {
                Ok(Some(_)) => {}
                Ok(None) => gone.push(format!("image {image} of {name} is not in the registry any more")),
                Err(error) => return Err(SubmitError::Registry(error)),
            }
        }
        if gone.is_empty() { Ok(()) } else { Err(SubmitError::Images(gone)) }
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

    /// Every application's image with its digest.
    async fn pin(&self, plan: &Plan) -> Result<BTreeMap<AppName, ImageRef>, SubmitError> {
        let config = self.config();
        let naming = Naming { registry: &config.registry.name, namespace: &config.registry.namespace };
        let wanted: BTreeSet<&ImageRef> = plan.apps.values().map(|app| &app.image).collect();
        let looked_up = join_all(wanted.into_iter().map(async |image| {
            let full = naming.full(image).map_err(|e| SubmitError::Images(vec![e.to_string()]))?;
            Ok::<_, SubmitError>((image, self.look_up(full).await))
        }))
        .await;
        let mut pinned = BTreeMap::new();
        let mut missing = Vec::new();
        for found in looked_up {
            match found? {
                (image, Ok(full)) => _ = pinned.insert(image, full),
                (image, Err(error)) if error.is_not_found() => {
                    let apps: Vec<_> =
                        plan.apps.iter().filter(|(_, app)| app.image == *image).map(|(n, _)| n.as_str()).collect();
                    missing.push(format!(
                        "image {image} of {} is not in the registry ({})",
                        apps.join(", "),
                        chain(&error)
                    ));
                }
                (_, Err(error)) => return Err(SubmitError::Registry(error)),
            }
        }
        if !missing.is_empty() {
            return Err(SubmitError::Images(missing));
        }
        Ok(plan.apps.iter().filter_map(|(name, app)| Some((name.clone(), pinned.get(&app.image)?.clone()))).collect())
    }

    async fn look_up(&self, full: ImageRef) -> Result<ImageRef, RegistryError> {
        let registry_name = full.registry.clone().unwrap_or_default();
        if let Some(digest) = full.digest.clone() {
            return Ok(full.pinned(&registry_name, digest));
        }
        let registry = self.registry_of(&registry_name)?;
        let digest = registry.resolve(&full.repository, full.tag_or_latest()).await?;
        Ok(full.pinned(&registry_name, digest))
    }

    /// The registry of this name: the private one, where it is that.
    pub(super) fn registry_of(&self, name: &str) -> Result<Registry, RegistryError> {
        if name == self.config().registry.name { Ok(self.0.registry.clone()) } else { Registry::new(name) }
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
