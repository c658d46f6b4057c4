//! What a plan names and the world does not know: warnings, because a node may come and an image may be pushed.
//!
//! Pure: it is told what there is. Used by whoever knows, the manager first.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Checked, Diagnostic,
    check::plural,
    diagnostic::{Notes, nearest},
};
use crate::model::{ImageRef, NodeName};

/// What there is, as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Admitted nodes, whether they answer or not; none where unknown.
    pub nodes: Option<BTreeSet<NodeName>>,
    /// Tags by repository in the private registry; none where unknown.
    pub images: Option<BTreeMap<String, BTreeSet<String>>>,
    /// The private registry's name; references with another are not looked at.
    pub registry: String,
    /// Where an image without `/` lives in it: `cloud`.
    pub namespace: String,
}

/// The names this plan uses that the world does not know, in the file's order.
pub fn world_warnings(checked: &Checked, world: &World) -> Vec<Diagnostic> {
    let mut found = Notes::default();
    if let Some(nodes) = &world.nodes {
        for (node, span) in checked.places.nodes.iter().filter(|(node, _)| !nodes.contains(node)) {
            let note = found.warning(span.clone(), format!("no node {node} is known"));
            match nearest(node.as_str(), nodes.iter().map(NodeName::as_str)) {
                Some(near) => note.hint(format!("did you mean {near}? matrix nodes lists them")),
                None => note.hint("its instances wait until it is admitted; matrix nodes lists those that are"),
            }
        }
        for (app, count, span) in &checked.places.spread {
            if *count as usize > nodes.len() {
                let known = plural(nodes.len(), "node");
                found
                    .warning(span.clone(), format!("{app} wants {count} instances on one fixed port, and there is room for one on each of {known}"))
                    .hint("leave publish out and the manager allots ports");
            }
        }
    }
    if let Some(images) = &world.images {
        for (image, span) in &checked.places.images {
            missing_image(image, span.clone(), images, world, &mut found);
        }
    }
    found.finish(&checked.source)
}

fn missing_image(
    image: &ImageRef,
    span: std::ops::Range<usize>,
    images: &BTreeMap<String, BTreeSet<String>>,
    world: &World,
    found: &mut Notes,
) {
    if image.registry.as_ref().is_some_and(|registry| *registry != world.registry) {
        return;
    }
    let written = image.repository.as_str();
    let repository = match &image.registry {
        None if !written.contains('/') => format!("{}/{written}", world.namespace),
        _ => written.to_owned(),
    };
    match images.get(&repository) {
        None => {
            let note = found.warning(span, format!("no image {repository} is in the registry"));
            match nearest(&repository, images.keys().map(String::as_str)) {
                Some(near) => note.hint(format!("did you mean {near}? matrix images lists them")),
                None => note.hint(format!("put it there with matrix install-image {written}")),
            }
        }
        Some(tags) if image.digest.is_none() && !tags.contains(image.tag_or_latest()) => {
            let tag = image.tag_or_latest();
            let some: Vec<&str> = tags.iter().rev().take(5).map(String::as_str).collect();
            found
                .warning(span, format!("image {repository} has no tag {tag} in the registry"))
                .hint(format!("it has {}", some.join(", ")));
        }
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_world_lacks_is_told_with_its_place() {
        let text = "\
[apps.shop]
image = \"shop:v3\"
nodes = [\"node25\", \"node180\", \"elsewhere\"]
[apps.baskets]
[apps.pinned]
image = \"cloud/shop@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"
replicas = 3
publish = 80
[apps.outside]
image = \"registry.example/any\"
path = \"/outside\"
";
        let checked = super::super::read("p", text).expect("a valid plan");
        assert_eq!(world_warnings(&checked, &World::default()), [], "nothing is known, so nothing is missing");
        let world = World {
            nodes: Some(["node25", "node108"].map(|n| n.parse().expect("a node")).into()),
            images: Some(
                [("cloud/shop", &["v1", "v2"][..]), ("cloud/basket", &["latest"][..])]
                    .map(|(name, tags)| (name.to_owned(), tags.iter().map(|t| (*t).to_owned()).collect()))
                    .into(),
            ),
            registry: "matrix-manager.matrix:5000".to_owned(),
            namespace: "cloud".to_owned(),
        };
        let said: Vec<String> = world_warnings(&checked, &world)
            .into_iter()
            .map(|d| format!("{}:{} {} ({})", d.line, d.column, d.message, d.hint.unwrap_or_default()))
            .collect();
        assert_eq!(
            said,
            [
                "2:9 image cloud/shop has no tag v3 in the registry (it has v2, v1)",
                "3:20 no node node180 is known (did you mean node108? matrix nodes lists them)",
                "3:31 no node elsewhere is known (its instances wait until it is admitted; matrix nodes lists those that are)",
                "4:7 no image cloud/baskets is in the registry (did you mean cloud/basket? matrix images lists them)",
                "7:12 pinned wants 3 instances on one fixed port, and there is room for one on each of 2 nodes \
                 (leave publish out and the manager allots ports)",
            ]
        );
    }
}
