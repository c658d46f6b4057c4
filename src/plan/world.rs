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
