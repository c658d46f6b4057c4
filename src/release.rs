//! A release: a plan with every image pinned to a digest, numbered, immutable.
//!
//! Does not look at the world: digests are handed in by who looked them up.

mod rollout;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    inventory::Spec,
    model::{AppName, Digest, ImageRef, Repository, Timestamp},
    plan::{App, Plan},
};

pub use rollout::{Ending, Phase, Rollout, State};

/// An immutable release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Its number, from 1.
    pub number: u64,
    /// What was wanted.
    pub plan: Plan,
    /// Each application's image as nodes pull it: with its registry, pinned to a digest.
    pub images: BTreeMap<AppName, ImageRef>,
    /// When it was made.
    pub created: Timestamp,
    /// Who made it: a user's name, or `plan file`.
    pub by: String,
    /// What they said of it.
    pub message: Option<String>,
    /// How often each application was asked to be made anew; none: never.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub restarts: BTreeMap<AppName, u32>,
}

/// Where the private registry is, and what an image without registry and folder means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Naming<'a> {
    /// The registry as nodes know it.
    pub registry: &'a str,
    /// The folder for applications' images: `cloud`.
    pub namespace: &'a str,
}

impl Naming<'_> {
    /// The image a plan means: `shop` is `REGISTRY/cloud/shop`, `team/shop` is `REGISTRY/team/shop`.
    ///
    /// # Errors
    /// When the namespace makes no repository (a configuration's fault).
    pub fn full(&self, image: &ImageRef) -> Result<ImageRef, crate::model::Invalid> {
        let mut full = image.clone();
        if image.registry.is_none() {
            full.registry = Some(self.registry.to_owned());
            if !image.repository.as_str().contains('/') {
                full.repository = Repository::try_from(format!("{}/{}", self.namespace, image.repository))?;
            }
        }
        Ok(full)
    }
}

impl Release {
    /// All that this application's containers are made from; none where the release lacks it.
    pub fn spec(&self, name: &AppName) -> Option<Spec> {
        let app = self.plan.apps.get(name)?;
        Some(spec(app, self.images.get(name)?.clone(), self.restarts.get(name).copied().unwrap_or(0)))
    }
    /// How often each application of `plan` was asked to be made anew, after what `last` knows, with `again` once more.
    pub fn restarts_after(last: Option<&Self>, plan: &Plan, again: &BTreeSet<AppName>) -> BTreeMap<AppName, u32> {
        let before = |name| last.and_then(|last| last.restarts.get(name)).copied().unwrap_or(0);
        let after = plan.apps.keys().map(|name| (name.clone(), before(name) + u32::from(again.contains(name))));
        after.filter(|(_, times)| *times > 0).collect()
    }
    /// The digest of an application's image.
    pub fn digest(&self, name: &AppName) -> Option<&Digest> {
        self.images.get(name)?.digest.as_ref()
    }
    /// Whether the other wants the same of the same images.
    pub fn same_content(&self, plan: &Plan, images: &BTreeMap<AppName, ImageRef>) -> bool {
        self.plan == *plan && self.images == *images
    }
}

fn spec(app: &App, image: ImageRef, restarts: u32) -> Spec {
    Spec {
        image,
        port: app.port,
        environment: app.environment.clone(),
        command: app.command.clone(),
        entrypoint: app.entrypoint.clone(),
        volumes: app.volumes.clone(),
        memory: app.memory,
        cpus: app.cpus,
        user: app.user.clone(),
        working_dir: app.working_dir.clone(),
        labels: app.labels.clone(),
        restart: app.restart,
        stop_timeout_seconds: app.stop_timeout_seconds,
        restarts,
    }
}

/// Whether there was a release of this number, kept or not: they are counted from 1, and the newest is always kept.
pub fn was(releases: &[Release], number: u64) -> bool {
    releases.last().is_some_and(|newest| (1..=newest.number).contains(&number))
}

/// A difference that no key of the plan made.
const RESTART: &str = "restart requested";

/// Differences for people: `image, environment changed`, `restart requested`.
pub fn told<'a>(keys: impl IntoIterator<Item = &'a str>) -> String {
    let (asked, keys): (Vec<_>, Vec<_>) = keys.into_iter().partition(|key| *key == RESTART);
    let changed = (!keys.is_empty()).then(|| format!("{} changed", keys.join(", ")));
    changed.into_iter().chain(asked.first().map(|key| (*key).to_owned())).collect::<Vec<_>>().join(", ")
}

/// What differs between two specs, in the plan's words: `image`, `environment`.
pub fn differences(old: &Spec, new: &Spec) -> BTreeSet<&'static str> {
    let Spec {
        image,
        port,
        environment,
        command,
        entrypoint,
        volumes,
        memory,
        cpus,
        user,
        working_dir,
        labels,
        restart,
        stop_timeout_seconds,
        restarts,
    } = old;
    [
        ("image", *image != new.image),
        ("port", *port != new.port),
        ("environment", *environment != new.environment),
        ("command", *command != new.command),
        ("entrypoint", *entrypoint != new.entrypoint),
        ("volumes", *volumes != new.volumes),
        ("memory", *memory != new.memory),
        ("cpus", *cpus != new.cpus),
        ("user", *user != new.user),
        ("working_dir", *working_dir != new.working_dir),
        ("labels", *labels != new.labels),
        ("restart", *restart != new.restart),
        ("stop_timeout", *stop_timeout_seconds != new.stop_timeout_seconds),
        (RESTART, *restarts != new.restarts),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
    .collect()
}

/// What differs between two releases, application by application, for people: `~ shop (image, environment changed)`.
pub fn compare(old: &Release, new: &Release) -> Vec<String> {
    let names: BTreeSet<&AppName> = old.plan.apps.keys().chain(new.plan.apps.keys()).collect();
    names
        .into_iter()
        .filter_map(|name| match (old.plan.apps.get(name), new.plan.apps.get(name)) {
            (None, _) => Some(format!("+ {name}")),
            (_, None) => Some(format!("- {name}")),
            (Some(before), Some(after)) => {
                let mut keys = match (old.spec(name), new.spec(name)) {
                    (Some(old), Some(new)) => differences(&old, &new),
                    _ => BTreeSet::new(),
                };
                keys.extend(app_differences(before, after));
                (!keys.is_empty()).then(|| format!("~ {name} ({})", told(keys)))
            }
        })
        .collect()
}

/// What differs of all that no container is made from, in the plan's words.
fn app_differences(old: &App, new: &App) -> impl Iterator<Item = &'static str> + use<> {
    [
        ("nodes or replicas", old.placement != new.placement),
        ("routes", old.routes != new.routes),
        ("strip_path", old.strip_path != new.strip_path),
        ("health", old.health != new.health),
        ("cache", old.cache_seconds != new.cache_seconds),
        ("idempotent", old.idempotent != new.idempotent),
        ("drain_timeout", old.drain_timeout_seconds != new.drain_timeout_seconds),
        ("update", old.update != new.update),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_mean_the_private_registry() {
        let naming = Naming { registry: "matrix-manager.matrix:5000", namespace: "cloud" };
        for (written, meant) in [
            ("shop", "matrix-manager.matrix:5000/cloud/shop"),
            ("shop:v2", "matrix-manager.matrix:5000/cloud/shop:v2"),
            ("team/shop", "matrix-manager.matrix:5000/team/shop"),
            ("other.example:5000/shop", "other.example:5000/shop"),
        ] {
            let image: ImageRef = written.parse().expect(written);
            assert_eq!(naming.full(&image).map(String::from).as_deref(), Ok(meant));
        }
    }
}
