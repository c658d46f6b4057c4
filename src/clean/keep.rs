//! Which releases one can go back to, what they need, and which others are forgotten.
//!
//! A release is never kept in part: all its images are needed.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    model::{AppName, Digest, Repository},
    release::Release,
};

use super::{Item, Place, Thing};

/// What kept releases need.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needed {
    /// Images by digest, each with the releases that name it.
    pub digests: BTreeMap<Digest, BTreeSet<u64>>,
    /// Tags that a kept release's plan names, by repository.
    pub tags: BTreeSet<(Repository, String)>,
}

/// The releases that stay: the current one, the one before, and the last `keep` of each application that there was.
/// `releases` are sorted by number.
///
/// A release that was not `good` counts for nothing: it was never active, or was taken back.
pub fn kept(releases: &[Release], current: Option<u64>, keep: usize, good: impl Fn(u64) -> bool) -> BTreeSet<u64> {
    let releases: Vec<&Release> = releases.iter().filter(|r| good(r.number) || Some(r.number) == current).collect();
    let before = releases.iter().rev().map(|r| r.number).find(|number| Some(*number) < current);
    let mut kept: BTreeSet<u64> = current.into_iter().chain(before).collect();
    // What came after the current one is on its way.
    kept.extend(releases.iter().map(|r| r.number).filter(|number| Some(*number) > current));
    let apps: BTreeSet<&AppName> = releases.iter().flat_map(|release| release.images.keys()).collect();
    for app in apps {
        let with = releases.iter().rev().filter(|release| good(release.number) && release.images.contains_key(app));
        kept.extend(with.take(keep).map(|release| release.number));
    }
    kept
}

/// The releases that go: those not kept, but for the newest `keep` that were not `good`, so that people see what failed.
/// `releases` are sorted by number.
///
/// None goes while there is no current one: a failed release's number tells then which containers are left over.
/// The newest of all stays: the next one's number comes after it.
pub fn outdated(
    releases: &[Release],
    kept: &BTreeSet<u64>,
    current: Option<u64>,
    keep: usize,
    good: impl Fn(u64) -> bool,
) -> Vec<Item> {
    let numbers = || releases.iter().rev().map(|release| release.number);
    let shown: BTreeSet<u64> = numbers().filter(|number| !good(*number)).take(keep).collect();
    let stays = |number: &u64| kept.contains(number) || shown.contains(number) || Some(*number) == numbers().next();
    let going = releases.iter().map(|release| release.number).filter(|number| current.is_some() && !stays(number));
    let item = |number| Item {
        place: Place::Manager,
        thing: Thing::Release { number },
        why: if good(number) {
            format!("the newest {keep} of each of its applications stay")
        } else {
            format!("did not stay active, and the newest {keep} of those stay")
        },
        bytes: 0,
    };
    going.map(item).collect()
}

/// What these releases need; `registry` is the private registry's name, `namespace` its folder for applications.
pub fn needed(releases: &[Release], kept: &BTreeSet<u64>, naming: crate::release::Naming<'_>) -> Needed {
    let mut needed = Needed::default();
    for release in releases.iter().filter(|release| kept.contains(&release.number)) {
        for digest in release.images.values().filter_map(|image| image.digest.as_ref()) {
            needed.digests.entry(digest.clone()).or_default().insert(release.number);
        }
        for image in release.plan.apps.values().filter_map(|app| naming.full(&app.image).ok()) {
            if image.digest.is_none() && image.registry.as_deref() == Some(naming.registry) {
                let tag = image.tag_or_latest().to_owned();
                needed.tags.insert((image.repository, tag));
            }
        }
    }
    needed
}
