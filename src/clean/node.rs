//! What goes from a node.
//!
//! Never a container of somebody else, one that runs or has a place, nor an image that any container there is made from,
//! that a kept release needs, or that has a name outside our registry.

use std::collections::BTreeSet;

use crate::{
    inventory::{Container, ContainerState, NodeImage, NodeStock},
    model::{CloudId, NodeName},
};

use super::{Item, Needed, Place, Thing};

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct NodeInput<'a> {
    /// Our cloud.
    pub cloud: &'a CloudId,
    /// The private registry's name in images' names.
    pub registry: &'a str,
    /// The node.
    pub node: &'a NodeName,
    /// What is kept there.
    pub stock: &'a NodeStock,
    /// What kept releases need.
    pub needed: &'a Needed,
    /// Names of the containers that have a place.
    pub placed: &'a BTreeSet<String>,
}

/// What goes, containers first.
pub fn node(input: NodeInput<'_>) -> Vec<Item> {
    let place = Place::Node(input.node.clone());
    let (gone, left): (Vec<_>, Vec<_>) =
        input.stock.containers.iter().partition(|(container, _)| is_left_over(input, container));
    let used: BTreeSet<&String> = left.iter().map(|(_, image)| image).collect();
    let (going, staying): (Vec<_>, Vec<_>) =
        input.stock.images.iter().partition(|image| !used.contains(&image.id) && is_unneeded(input, image));
    let mut kept: BTreeSet<&String> = staying.iter().flat_map(|image| image.layers.keys()).collect();
    let mut items: Vec<Item> = gone
        .into_iter()
        .map(|(container, _)| Item {
            place: place.clone(),
            thing: Thing::Container { id: container.id.clone(), name: container.name.clone() },
            why: "stopped, and has no place in the plan".to_owned(),
            bytes: 0,
        })
        .collect();
    for image in going {
        // A layer that two going images share is counted with the first.
        let bytes = image.layers.iter().filter(|(layer, _)| kept.insert(layer)).map(|(_, bytes)| bytes).sum();
        items.push(Item {
            place: place.clone(),
            thing: Thing::Image { id: image.id.clone(), names: image.names.iter().cloned().collect() },
            why: "no container there uses it, and no release kept needs it".to_owned(),
            bytes,
        });
    }
    items
}

fn is_left_over(input: NodeInput<'_>, container: &Container) -> bool {
    let ours = container.ours.as_ref().is_some_and(|ours| ours.cloud == *input.cloud);
    let stopped = matches!(container.state, ContainerState::Created | ContainerState::Exited | ContainerState::Dead);
    ours && stopped && !input.placed.contains(&container.name)
}

fn is_unneeded(input: NodeInput<'_>, image: &NodeImage) -> bool {
    image.is_of(input.registry) && image.digests().all(|digest| !input.needed.digests.contains_key(&digest))
}
