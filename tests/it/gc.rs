//! Laws of cleaning, over any stock: what a kept release, a container, somebody else or a push under way needs, stays.

use std::collections::{BTreeMap, BTreeSet};

use matrix::{
    clean::{self, Needed, NodeInput, RegistryInput, Room, Thing},
    inventory::{
        Container, ContainerState, NodeImage, NodeStock, Ours, RegistryStock, RepositoryStock, SpecHash, StoredBlob,
        StoredManifest, StoredTag,
    },
    model::{AppName, CloudId, Digest, ImageRef, NodeName, Timestamp},
    plan,
    release::{Naming, Release},
};
use proptest::prelude::*;

const REGISTRY: &str = "matrix-manager.matrix:5000";

fn digest(number: u8) -> Digest {
    format!("sha256:{number:064x}").parse().unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn needed(digests: &[u8], tags: &[&str]) -> Needed {
    Needed {
        digests: digests.iter().map(|n| (digest(*n), BTreeSet::from([1]))).collect(),
        tags: tags.iter().map(|tag| ("cloud/shop".parse().unwrap(), (*tag).to_owned())).collect(),
    }
}

/// A release of these applications, each with its image.
fn release(number: u64, images: &[(&str, u8)]) -> Release {
    let text =
        images.iter().fold(String::new(), |text, (app, n)| format!("{text}[apps.{app}]\nimage = \"{app}:v{n}\"\n"));
    let plan = plan::read("p", &text).unwrap().plan;
    let pinned = |(app, n): &(&str, u8)| {
        let image = format!("{REGISTRY}/cloud/{app}@{}", digest(*n)).parse().unwrap();
        (app.parse().unwrap(), image)
    };
    let images: BTreeMap<AppName, ImageRef> = images.iter().map(pinned).collect();
    // Fields that are only ever added have their defaults.
    serde_json::from_value(serde_json::json!({
        "number": number, "plan": plan, "images": images, "created": at(0), "by": "x", "message": null,
    }))
    .unwrap()
}

#[test]
fn the_last_releases_of_each_application_are_kept() {
    let mut all: Vec<Release> = vec![release(1, &[("old", 1)])];
    all.extend((2..=9).map(|n| release(n, &[("shop", u8::try_from(n).unwrap())])));
    let kept = |current, keep| clean::kept(&all, current, keep, |_| true).into_iter().collect::<Vec<_>>();
    assert_eq!(kept(Some(9), 5), [1, 5, 6, 7, 8, 9], "an application that left the plan can come back");
    assert_eq!(kept(Some(9), 1), [1, 8, 9], "the one before the current is always there");
    assert_eq!(kept(Some(7), 1), [1, 6, 7, 8, 9], "what came after the current one may be on its way");
    let kept: Vec<_> = clean::kept(&all, Some(9), 2, |n| n != 8 && n != 6).into_iter().collect();
    assert_eq!(kept, [1, 7, 9], "what failed or was taken back counts for nothing");
    let naming = Naming { registry: REGISTRY, namespace: "cloud" };
    let needed = clean::needed(&all, &clean::kept(&all, Some(9), 5, |_| true), naming);
    let digests: Vec<_> = needed.digests.keys().cloned().collect();
    assert_eq!(digests, [1, 5, 6, 7, 8, 9].map(digest));
    assert!(needed.tags.contains(&("cloud/shop".parse().unwrap(), "v9".to_owned())), "{:?}", needed.tags);
}

#[test]
fn old_releases_are_forgotten_but_for_the_last_that_failed() {
    let all: Vec<Release> = (1..=20).map(|n| release(n, &[("shop", u8::try_from(n).unwrap())])).collect();
    let outdated = |current, good: fn(u64) -> bool| {
        let kept = clean::kept(&all, current, 5, good);
        let numbers = |thing| if let Thing::Release { number } = thing { number } else { 0 };
        let items = clean::outdated(&all, &kept, current, 5, good);
        items.into_iter().map(|item| numbers(item.thing)).collect::<Vec<_>>()
    };
    assert_eq!(outdated(Some(20), |_| true), (1..=15).collect::<Vec<_>>());
    // Good: 2, 4 … 20.
    assert_eq!(outdated(Some(20), |n| n % 2 == 0), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    assert_eq!(outdated(Some(1), |n| n == 1), (2..=15).collect::<Vec<_>>(), "of what failed five are listed");
    assert!(outdated(None, |_| false).is_empty(), "while nothing is active, what failed is known by its number");
}

fn image(number: u8, names: u8) -> NodeImage {
    let own = format!("{REGISTRY}/cloud/shop@{}", digest(number));
    let tag = format!("{REGISTRY}/cloud/shop:v{number}");
    let names: BTreeSet<String> = match names {
        0 => [own].into(),
        1 => [own, tag].into(),
        2 => [own, "mine:latest".to_owned()].into(),
        3 => [format!("other.example:5000/cloud/shop@{}", digest(number))].into(),
        _ => BTreeSet::new(),
    };
    NodeImage {
        id: format!("sha256:{number:064x}"),
        names,
        layers: [("base".to_owned(), 100), (format!("base/{number}"), 1)].into(),
    }
}

fn container(number: usize, state: ContainerState, cloud: Option<&str>) -> Container {
    Container {
        id: format!("{number:064}"),
        name: format!("shop.{number}"),
        ours: cloud.map(|cloud| Ours {
            cloud: cloud.parse().unwrap(),
            instance: "shop.1".parse().unwrap(),
            release: 1,
            spec: SpecHash("0".repeat(16)),
        }),
        image: String::new(),
        state,
        published: BTreeMap::new(),
        created: None,
    }
}

fn states() -> impl Strategy<Value = ContainerState> {
    use ContainerState as S;
    prop::sample::select(vec![S::Created, S::Running, S::Paused, S::Restarting, S::Removing, S::Exited, S::Dead])
}

fn clouds() -> impl Strategy<Value = Option<&'static str>> {
    prop::sample::select(vec![None, Some("matrix"), Some("another")])
}

proptest! {
    #[test]
    fn what_one_can_go_back_to_is_never_forgotten(
        apps in prop::collection::vec(prop::collection::btree_set("[a-d]", 1..4), 1..40),
        bad in prop::collection::btree_set(1u64..40, 0..20),
        current in prop::option::of(1u64..40),
        keep in 1usize..7,
    ) {
        let all: Vec<Release> = (1..).zip(&apps).map(|(number, apps)| {
            let images: Vec<(&str, u8)> = apps.iter().map(|app| (app.as_str(), u8::try_from(number).unwrap())).collect();
            release(number, &images)
        }).collect();
        let current = current.filter(|current| *current <= all.len() as u64);
        let good = |number| !bad.contains(&number);
        let kept = clean::kept(&all, current, keep, good);
        let gone: BTreeSet<u64> = clean::outdated(&all, &kept, current, keep, good)
            .into_iter()
            .filter_map(|item| if let Thing::Release { number } = item.thing { Some(number) } else { None })
            .collect();
        prop_assert!(gone.is_disjoint(&kept));
        let stays: Vec<Release> = all.iter().filter(|release| !gone.contains(&release.number)).cloned().collect();
        prop_assert_eq!(stays.last(), all.last(), "no number is given twice");
        for app in ["a", "b", "c", "d"].map(|app| app.parse::<AppName>().unwrap()) {
            let last = |of: &[Release]| of.iter().rev().filter(|r| good(r.number) && r.images.contains_key(&app))
                .take(keep).map(|r| r.number).collect::<Vec<_>>();
            prop_assert_eq!(last(&stays), last(&all));
        }
        // The way back is the same, and so is what images are kept for.
        let before = |of: &[Release]| of.iter().rev().map(|r| r.number).find(|n| good(*n) && Some(*n) < current);
        prop_assert_eq!(before(&stays), before(&all));
        prop_assert_eq!(&clean::kept(&stays, current, keep, good), &kept);
        prop_assert_eq!(clean::outdated(&stays, &kept, current, keep, good), vec![], "a second time finds nothing");
    }

    #[test]
    fn a_node_keeps_what_anybody_needs(
        images in prop::collection::btree_map(0u8..12, 0u8..5, 0..10),
        containers in prop::collection::vec((states(), clouds(), 0u8..12), 0..8),
        placed in prop::collection::btree_set(0usize..8, 0..4),
        wanted in prop::collection::vec(0u8..12, 0..4),
    ) {
        let stock = NodeStock {
            images: images.iter().map(|(number, names)| image(*number, *names)).collect(),
            containers: containers
                .iter()
                .enumerate()
                .map(|(n, (state, cloud, image))| (container(n, *state, *cloud), format!("sha256:{image:064x}")))
                .collect(),
        };
        let placed: BTreeSet<String> = placed.iter().map(|n| format!("shop.{n}")).collect();
        let needed = needed(&wanted, &[]);
        let cloud: CloudId = "matrix".parse().unwrap();
        let node: NodeName = "node1".parse().unwrap();
        let ask = |stock: &NodeStock| clean::node(NodeInput {
            cloud: &cloud, registry: REGISTRY, node: &node, stock, needed: &needed, placed: &placed,
        });
        let items = ask(&stock);
        let mut left = stock.clone();
        for item in &items {
            match &item.thing {
                Thing::Container { id, name } => {
                    let (gone, _) = stock.containers.iter().find(|(c, _)| c.id == *id).unwrap();
                    prop_assert_eq!(gone.ours.as_ref().map(|o| o.cloud.as_str()), Some("matrix"));
                    prop_assert!(!matches!(gone.state,
                        ContainerState::Running | ContainerState::Paused | ContainerState::Restarting));
                    prop_assert!(!placed.contains(name));
                    left.containers.retain(|(c, _)| c.id != *id);
                }
                Thing::Image { id, .. } => left.images.retain(|image| image.id != *id),
                other => prop_assert!(false, "{:?}", other),
            }
        }
        for (container, image) in &left.containers {
            let there = |stock: &NodeStock| stock.images.iter().any(|i| i.id == *image);
            prop_assert_eq!(there(&left), there(&stock), "{} keeps its image", container.name);
        }
        for gone in stock.images.iter().filter(|image| !left.images.contains(image)) {
            prop_assert!(gone.digests().all(|digest| !needed.digests.contains_key(&digest)));
            prop_assert!(gone.names.iter().all(|name| name.starts_with(REGISTRY)) && !gone.names.is_empty());
        }
        // What it says is freed is what is not kept by another.
        let layers = |stock: &NodeStock| -> u64 {
            let all: BTreeMap<String, u64> = stock.images.iter().flat_map(|i| i.layers.clone()).collect();
            all.values().sum()
        };
        prop_assert_eq!(items.iter().map(|i| i.bytes).sum::<u64>(), layers(&stock) - layers(&left));
        prop_assert_eq!(ask(&left), vec![], "a second time finds nothing");
    }

    #[test]
    fn the_registry_keeps_what_releases_tags_and_pushes_need(
        manifests in prop::collection::btree_map(
            0u8..16, (0i64..100, prop::collection::btree_set(0u8..40, 0..5), prop::bool::weighted(0.05)), 0..10),
        tags in prop::collection::btree_map("(v[0-9]|latest)", (0u8..16, 0i64..100), 0..6),
        loose in prop::collection::btree_map(16u8..40, 0i64..100, 0..24),
        wanted in prop::collection::vec(0u8..16, 0..4),
        count in prop::option::of(0usize..4),
        young in 0i64..100,
    ) {
        let mut blobs: BTreeMap<Digest, StoredBlob> =
            loose.iter().map(|(n, since)| (digest(*n), StoredBlob { size: 10, since: at(*since) })).collect();
        blobs.extend(manifests.iter().map(|(n, (since, ..))| (digest(*n), StoredBlob { size: 1, since: at(*since) })));
        let repository = RepositoryStock {
            manifests: manifests.iter().map(|(n, (since, parts, bad))| {
                let parts = (!bad).then(|| parts.iter().map(|n| digest(*n)).collect());
                (digest(*n), StoredManifest { since: at(*since), parts })
            }).collect(),
            tags: tags.iter().map(|(name, (n, since))| {
                (name.clone(), StoredTag { digest: digest(*n), since: at(*since) })
            }).collect(),
        };
        let stock =
            RegistryStock { repositories: BTreeMap::from([("cloud/shop".parse().unwrap(), repository.clone())]), blobs };
        let needed = needed(&wanted, &["v3"]);
        let ask = |stock| clean::registry(RegistryInput { stock, needed: &needed, tags: count, young: at(young) });
        let plan = ask(&stock);
        let gone: BTreeSet<Digest> = plan.items.iter().filter_map(|item| match &item.thing {
            Thing::Manifest { digest, .. } => Some(digest.clone()),
            _ => None,
        }).collect();
        let left: BTreeMap<_, _> =
            repository.manifests.iter().filter(|(digest, _)| !gone.contains(*digest)).collect();
        for digest in &gone {
            prop_assert!(!needed.digests.contains_key(digest), "a kept release needs it");
            prop_assert!(repository.manifests[digest].since <= at(young), "young");
            let tags: Vec<_> = repository.tags.iter().filter(|(_, tag)| tag.digest == *digest).collect();
            prop_assert!(tags.iter().all(|(name, tag)| *name != "latest" && *name != "v3" && tag.since <= at(young)));
            prop_assert!(count.is_some() || tags.is_empty(), "tags stay, but where a number was set");
        }
        for (digest, manifest) in &left {
            prop_assert!(!plan.sweep.contains(*digest));
            for part in manifest.parts.iter().flatten() {
                prop_assert!(!plan.sweep.contains(part) && !gone.contains(part), "{digest} names {part}");
            }
        }
        prop_assert!(plan.young.iter().all(|digest| stock.blobs[digest].since > at(young)));
        let bytes: u64 = plan.sweep.iter().map(|digest| stock.blobs[digest].size).sum();
        prop_assert_eq!((plan.bytes, plan.items.iter().map(|item| item.bytes).sum::<u64>()), (bytes, bytes));
        // Done, and asked again: nothing.
        let mut after = stock.clone();
        after.blobs.retain(|digest, _| !plan.sweep.contains(digest));
        let repository = after.repositories.values_mut().next().unwrap();
        repository.manifests.retain(|digest, _| !gone.contains(digest));
        repository.tags.retain(|_, tag| !gone.contains(&tag.digest));
        prop_assert_eq!(ask(&after).items, vec![]);
    }
}

#[test]
fn a_disk_holds_what_it_lacks_or_is_named() {
    let coming = BTreeMap::from([(digest(1), 100), (digest(2), 10)]);
    let none = BTreeSet::new();
    let one = BTreeSet::from([digest(1)]);
    for (free, there, expected) in [
        (330, &none, Room::Enough),
        (329, &none, Room::Tight { bytes: 110 }),
        (110, &none, Room::Tight { bytes: 110 }),
        (109, &none, Room::No { bytes: 110 }),
        (30, &one, Room::Enough),
        (9, &one, Room::No { bytes: 10 }),
    ] {
        assert_eq!(clean::room(free, &coming, there), expected, "{free} bytes free");
    }
    assert_eq!(clean::room(0, &BTreeMap::new(), &none), Room::Enough, "nothing comes");
    assert_eq!(clean::room(9, &BTreeMap::from([(digest(1), u64::MAX)]), &none), Room::No { bytes: u64::MAX });
}
