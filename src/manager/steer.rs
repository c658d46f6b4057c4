//! More or fewer instances of an application, or all of them made anew: the release that runs, with that changed.
//!
//! Reads no plan and asks no registry: images stay as they are.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    model::{AppName, InstanceId},
    plan::{MAX_REPLICAS, Placement, diagnostic::nearest},
    release::Release,
    schedule::{self, Beside, Doubts, Unplaced},
};

use super::{Manager, Overview, SubmitError, Submitted, submit::Meant};

/// Other numbers of instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    /// How many of each.
    pub counts: BTreeMap<AppName, u32>,
    /// Who wants it.
    pub by: String,
    /// What they say of it.
    #[serde(default)]
    pub message: Option<String>,
    /// Whether only to say what would change.
    #[serde(default)]
    pub dry_run: bool,
}

/// Applications whose containers are to be made anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Again {
    /// Which.
    pub applications: BTreeSet<AppName>,
    /// Who wants it.
    pub by: String,
    /// What they say of it.
    #[serde(default)]
    pub message: Option<String>,
    /// Whether only to say what would change.
    #[serde(default)]
    pub dry_run: bool,
}

/// Why it was not taken. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    /// It cannot be: every reason.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// The release was not taken.
    #[error(transparent)]
    Submit(#[from] SubmitError),
}

impl Manager {
    /// Makes the release that runs, with other numbers of instances, the one the cloud should run.
    ///
    /// # Errors
    /// When it is not taken; nothing was changed then.
    pub async fn scale(&self, scale: Scale) -> Result<Submitted, SteerError> {
        let overview = self.0.overview.borrow().clone();
        let mut release = current(&overview)?;
        let mut wrong = Vec::new();
        let mut grown = BTreeSet::new();
        for (name, count) in &scale.counts {
            match resize(&mut release, name, *count) {
                Ok(true) => _ = grown.insert(name),
                Ok(false) => {}
                Err(why) => wrong.push(why),
            }
        }
        if wrong.is_empty() {
            wrong = self.too_many(&release, &grown, &overview);
        }
        if !wrong.is_empty() {
            return Err(SteerError::Refused(wrong));
        }
        let said: Vec<_> = scale.counts.iter().map(|(name, count)| format!("{name}={count}")).collect();
        let message = scale.message.or_else(|| Some(format!("scale {}", said.join(" "))));
        let meant = Meant { by: scale.by, message, dry_run: scale.dry_run, straight: true, ..Meant::default() };
        Ok(self.propose(release.plan, release.images, meant, Vec::new()).await?)
    }

    /// Makes a release of which these applications' containers are made anew.
    ///
    /// # Errors
    /// When it is not taken; nothing was changed then.
    pub async fn restart(&self, again: Again) -> Result<Submitted, SteerError> {
        let overview = self.0.overview.borrow().clone();
        let release = current(&overview)?;
        let wrong = again.applications.iter().filter_map(|name| match release.plan.apps.get(name) {
            None => Some(unknown(&release, name)),
            Some(app) if app.count() == 0 => Some(format!("{name} has no instance to restart")),
            Some(_) => None,
        });
        let wrong: Vec<_> = wrong.collect();
        if !wrong.is_empty() {
            return Err(SteerError::Refused(wrong));
        }
        let said: Vec<_> = again.applications.iter().map(AppName::as_str).collect();
        let message = again.message.or_else(|| Some(format!("restart {}", said.join(" "))));
        let mut meant = Meant { by: again.by, message, dry_run: again.dry_run, straight: true, ..Meant::default() };
        meant.restart = again.applications;
        Ok(self.propose(release.plan, release.images, meant, Vec::new()).await?)
    }

    /// What of the applications that grow would find no place.
    fn too_many(&self, release: &Release, grown: &BTreeSet<&AppName>, overview: &Overview) -> Vec<String> {
        let placed = schedule::place(schedule::Input {
            release,
            snapshot: &self.0.nodes.snapshot(),
            previous: &overview.remembered.assignments,
            ports: self.config().ports,
            frozen: overview.progress.frozen.is_some(),
            beside: &Beside::NOTHING,
            doubts: &Doubts::NONE,
        });
        let mut homeless: BTreeMap<&AppName, Vec<(&InstanceId, &Unplaced)>> = BTreeMap::new();
        for (id, why) in placed.unplaced.iter().filter(|(id, _)| grown.contains(&id.app)) {
            homeless.entry(&id.app).or_default().push((id, why));
        }
        let told = |(name, all): (&AppName, &Vec<(&InstanceId, &Unplaced)>)| {
            let wanted = release.plan.apps.get(name).map_or(0, crate::plan::App::count);
            let why = all.first().map(|(_, why)| why.to_string()).unwrap_or_default();
            format!("{} of {wanted} instances of {name} have no place: {why}", all.len())
        };
        homeless.iter().map(|(name, all)| told((name, all))).collect()
    }
}

fn current(overview: &Overview) -> Result<Release, SteerError> {
    let release = overview.remembered.release.clone();
    release.ok_or_else(|| SteerError::Refused(vec!["there is no release yet: deploy a plan first".to_owned()]))
}

/// Sets the number of instances; whether there are more than before.
fn resize(release: &mut Release, name: &AppName, wanted: u32) -> Result<bool, String> {
    if wanted > MAX_REPLICAS {
        return Err(format!("{name}={wanted}: an application has from 0 to {MAX_REPLICAS} instances"));
    }
    let Some(app) = release.plan.apps.get_mut(name) else { return Err(unknown(release, name)) };
    match &mut app.placement {
        Placement::Pinned(_) => Err(format!("{name} is pinned to its nodes: the plan says which they are")),
        Placement::Replicas { count, .. } => {
            let before = std::mem::replace(count, wanted);
            Ok(wanted > before)
        }
    }
}

fn unknown(release: &Release, name: &AppName) -> String {
    let near = nearest(name.as_str(), release.plan.apps.keys().map(AppName::as_str));
    let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
    format!("there is no application {name} in release {}{near}", release.number)
}
