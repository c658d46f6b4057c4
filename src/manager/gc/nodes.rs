//! Cleaning on nodes: looks, and takes away one thing at a time.
//!
//! Forces nothing: what came into use meanwhile is refused by the engine.

use futures_util::future::join_all;

use crate::{
    clean::{self, Forecast, Item, Needed, NodeInput, Place, Thing},
    manager::{Manager, chain, events::Kind},
    model::{ImageRef, NodeName},
    remote::docker::{EngineClient, EngineError},
};

use super::{Cleaned, Stays};

/// Adds what goes from nodes that answer.
pub(super) async fn forecast(manager: &Manager, needed: &Needed, forecast: &mut Forecast) {
    let snapshot = manager.nodes().snapshot();
    let admitted =
        snapshot.nodes.values().filter(|node| node.state_word() != "candidate" && node.state_word() != "refused");
    let looks = admitted.map(|node| async move {
        let engine = manager.nodes().engine(&node.name).filter(|_| node.is_ready());
        match engine {
            None => (&node.name, Err(format!("{} does not answer: nothing goes from it", node.name))),
            Some(engine) => (&node.name, engine.stock().await.map_err(|e| chain(&e))),
        }
    });
    let placed = manager.placed();
    for (node, stock) in join_all(looks).await {
        match stock {
            Err(why) => forecast.notes.push(why),
            Ok(stock) => forecast.items.extend(clean::node(NodeInput {
                cloud: &manager.config().cloud,
                registry: &manager.config().registry.name,
                node,
                stock: &stock,
                needed,
                placed: &placed,
            })),
        }
    }
}

/// Takes away what goes from nodes, each node's things one after another.
pub(super) async fn clean(manager: &Manager, items: &[Item]) -> Cleaned {
    let mut nodes: Vec<&NodeName> = items.iter().filter_map(node_of).collect();
    nodes.dedup();
    let mut all = Cleaned::default();
    let each = nodes.into_iter().map(|node| one_node(manager, node, items));
    join_all(each).await.into_iter().for_each(|cleaned| all.add(cleaned));
    all
}

fn node_of(item: &Item) -> Option<&NodeName> {
    match &item.place {
        Place::Node(node) => Some(node),
        Place::Manager | Place::Registry => None,
    }
}

async fn one_node(manager: &Manager, node: &NodeName, items: &[Item]) -> Cleaned {
    let mut cleaned = Cleaned::default();
    let Some(engine) = manager.nodes().engine(node) else {
        cleaned.notes.push(format!("{node} went away: nothing went from it"));
        return cleaned;
    };
    let mut refused = 0;
    for item in items.iter().filter(|item| node_of(item) == Some(node)) {
        let gone = {
            let lock = manager.0.submitting.lock().await;
            match manager.still(&lock).and_then(|kept| stays(manager, item, &kept.needed)) {
                Ok(()) => remove(manager, &engine, item).await,
                Err(Stays::This) => Ok(false),
                Err(Stays::All(why)) => {
                    cleaned.notes.push(format!("the rest on {node} stays for now: {why}"));
                    break;
                }
            }
        };
        match gone {
            Ok(true) => {
                manager.0.events.tell(
                    Kind::Note,
                    "gc",
                    Some(node),
                    format!("{} {} is gone", item.thing.word(), item.thing),
                );
                cleaned.removed += 1;
                cleaned.freed += item.bytes;
            }
            Ok(false) => refused += 1,
            Err(error) => cleaned.errors.push(chain(&error)),
        }
    }
    if refused > 0 {
        cleaned.notes.push(format!("{refused} things on {node} came into use meanwhile and stay"));
    }
    if cleaned.removed > 0 {
        _ = manager.nodes().refresh(node).await;
    }
    cleaned
}

/// Whether it is needed now, after all.
fn stays(manager: &Manager, item: &Item, needed: &Needed) -> Result<(), Stays> {
    let is_needed = match &item.thing {
        Thing::Container { name, .. } => manager.placed().contains(name),
        Thing::Image { names, .. } => names
            .iter()
            .filter_map(|name| name.parse::<ImageRef>().ok()?.digest)
            .any(|digest| needed.digests.contains_key(&digest)),
        Thing::Release { .. } | Thing::Manifest { .. } | Thing::Blobs { .. } => false,
    };
    if is_needed { Err(Stays::This) } else { Ok(()) }
}

async fn remove(manager: &Manager, engine: &EngineClient, item: &Item) -> Result<bool, EngineError> {
    match &item.thing {
        Thing::Container { id, .. } => engine.remove_stopped(&manager.config().cloud, id).await,
        Thing::Image { names, .. } => {
            // Tags first: the name with the digest is the one a release would pull.
            let (digests, tags): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.contains('@'));
            for name in tags.into_iter().chain(digests) {
                if !engine.remove_image(name).await? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Thing::Release { .. } | Thing::Manifest { .. } | Thing::Blobs { .. } => Ok(false),
    }
}
