//! What goes from the registry.
//!
//! Never what a kept release names, a manifest that another one that stays names, nor anything young: a push puts blobs
//! first, then the manifest, then the tag. Tags are names people deploy by: they stay, but where a number was set.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    inventory::{RegistryStock, RepositoryStock, StoredTag},
    model::{Digest, Repository, Timestamp},
};

use super::{Item, Needed, Place, Thing};

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct RegistryInput<'a> {
    /// What is kept there.
    pub stock: &'a RegistryStock,
    /// What kept releases need.
    pub needed: &'a Needed,
    /// How many tags of a repository stay, the newest; none: all.
    pub tags: Option<usize>,
    /// What came after this is left alone.
    pub young: Timestamp,
}

/// What goes, and what the registry's own collector would take after that.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistryPlan {
    /// Manifests.
    pub items: Vec<Item>,
    /// Blobs that nothing names then.
    pub sweep: BTreeSet<Digest>,
    /// Bytes of them.
    pub bytes: u64,
    /// Those among them that are young: a push may be under way, and the collector knows no age.
    pub young: BTreeSet<Digest>,
    /// Manifests nobody can read: what they name is unknown, so the collector must not run.
    pub unreadable: Vec<String>,
}

/// What goes.
pub fn registry(input: RegistryInput<'_>) -> RegistryPlan {
    let mut plan = RegistryPlan::default();
    let mut named: BTreeSet<&Digest> = BTreeSet::new();
    for (name, repository) in &input.stock.repositories {
        let stays = staying(input, name, repository);
        for (digest, manifest) in &repository.manifests {
            if manifest.parts.is_none() {
                plan.unreadable.push(format!("{name}@{}", digest.short()));
            }
            if stays.contains(digest) {
                named.insert(digest);
                named.extend(manifest.parts.iter().flatten());
                continue;
            }
            let tags: Vec<String> =
                repository.tags.iter().filter(|(_, tag)| tag.digest == *digest).map(|(name, _)| name.clone()).collect();
            let why = match (tags.is_empty(), input.tags) {
                (false, Some(count)) => format!("not among the newest {count} tags, and no release kept needs it"),
                _ => "has no tag, and no release kept needs it".to_owned(),
            };
            let thing = Thing::Manifest { repository: name.clone(), digest: digest.clone(), tags };
            plan.items.push(Item { place: Place::Registry, thing, why, bytes: 0 });
        }
    }
    for (digest, blob) in input.stock.blobs.iter().filter(|(digest, _)| !named.contains(digest)) {
        plan.sweep.insert(digest.clone());
        plan.bytes += blob.size;
        if blob.since > input.young {
            plan.young.insert(digest.clone());
        }
    }
    count_bytes(input.stock, &mut plan);
    plan
}

/// Tells each manifest's bytes, those of a shared blob with the first that goes; what is left was named by none.
fn count_bytes(stock: &RegistryStock, plan: &mut RegistryPlan) {
    let mut left = plan.sweep.clone();
    let size = |digest: &Digest| stock.blobs.get(digest).map_or(0, |blob| blob.size);
    for item in &mut plan.items {
        let Thing::Manifest { repository, digest, .. } = &item.thing else { continue };
        let manifest = stock.repositories.get(repository).and_then(|repository| repository.manifests.get(digest));
        let parts = manifest.iter().flat_map(|manifest| manifest.parts.iter().flatten());
        item.bytes = parts.chain([digest]).filter(|part| left.remove(*part)).map(size).sum();
    }
    if !left.is_empty() {
        plan.items.push(Item {
            place: Place::Registry,
            thing: Thing::Blobs { count: left.len() },
            why: "no manifest names them".to_owned(),
            bytes: left.iter().map(size).sum(),
        });
    }
}

/// The manifests that stay.
fn staying<'a>(input: RegistryInput<'_>, name: &Repository, repository: &'a RepositoryStock) -> BTreeSet<&'a Digest> {
    let tagged = staying_tags(input, name, &repository.tags);
    let mut stays = BTreeSet::new();
    let mut next: Vec<&Digest> = repository
        .manifests
        .iter()
        .filter(|(digest, manifest)| {
            manifest.parts.is_none()
                || manifest.since > input.young
                || input.needed.digests.contains_key(*digest)
                || tagged.contains(digest)
        })
        .map(|(digest, _)| digest)
        .collect();
    // A list's members stay with it.
    while let Some(digest) = next.pop() {
        let Some((digest, manifest)) = repository.manifests.get_key_value(digest) else { continue };
        if stays.insert(digest) {
            next.extend(manifest.parts.iter().flatten());
        }
    }
    stays
}

/// The manifests that tags hold.
fn staying_tags<'a>(
    input: RegistryInput<'_>,
    name: &Repository,
    tags: &'a BTreeMap<String, StoredTag>,
) -> BTreeSet<&'a Digest> {
    let mut newest: Vec<_> = tags.iter().collect();
    newest.sort_by(|(a, one), (b, other)| other.since.cmp(&one.since).then_with(|| a.cmp(b)));
    let count = input.tags.unwrap_or(usize::MAX);
    let by_name = |tag: &str| tag == "latest" || input.needed.tags.contains(&(name.clone(), tag.to_owned()));
    newest
        .into_iter()
        .enumerate()
        .filter(|(index, (tag, stored))| *index < count || stored.since > input.young || by_name(tag))
        .map(|(_, (_, stored))| &stored.digest)
        .collect()
}
