//! Cleaning in the registry: manifests over its API, blobs by its own collector in a window in which it takes nothing.
//!
//! Without its folder in the configuration it is left alone: its API tells neither age nor what has no tag.

use std::time::Duration;

use crate::{
    clean::{self, Forecast, Item, Needed, RegistryInput, RegistryPlan, Thing},
    inventory::RegistryStock,
    manager::{Manager, chain, events::Kind},
    model::{Digest, Timestamp},
    remote::registry::storage,
};

use super::{Cleaned, Stays, window};

/// Adds what goes from the registry.
pub(super) async fn forecast(manager: &Manager, needed: &Needed, forecast: &mut Forecast) {
    let Some(_) = &manager.config().gc.storage else {
        forecast.notes.push("the registry's folder is not configured ([gc] storage): nothing goes from it".to_owned());
        return;
    };
    match look(manager).await {
        Err(why) => forecast.notes.push(why),
        Ok(stock) => {
            let plan = plan(manager, &stock, needed);
            forecast.items.extend(plan.items);
        }
    }
}

pub(super) fn plan(manager: &Manager, stock: &RegistryStock, needed: &Needed) -> RegistryPlan {
    let gc = &manager.config().gc;
    let grace = jiff::SignedDuration::from_mins(gc.grace_minutes.into());
    let young = Timestamp::now().checked_sub(grace).unwrap_or(Timestamp::MIN);
    let mut plan = clean::registry(RegistryInput { stock, needed, tags: gc.tags, young });
    if gc.collect.is_empty() || gc.restart.is_empty() {
        plan.items.retain(|item| !matches!(item.thing, Thing::Blobs { .. }));
        plan.items.iter_mut().for_each(|item| item.bytes = 0);
        plan.sweep.clear();
    }
    plan
}

/// What the registry's folder holds now.
pub(super) async fn look(manager: &Manager) -> Result<RegistryStock, String> {
    let folder = manager.config().gc.storage.clone().unwrap_or_default();
    let read = tokio::task::spawn_blocking(move || storage::read(&folder)).await;
    read.map_err(|e| e.to_string())?.map_err(|e| chain(&e))
}

/// Takes away what goes: manifests first, then what nothing names any more.
pub(super) async fn clean(manager: &Manager, items: &[Item], patience: Duration) -> Cleaned {
    let mut cleaned = Cleaned::default();
    for item in items {
        let Thing::Manifest { repository, digest, .. } = &item.thing else { continue };
        let lock = manager.0.submitting.lock().await;
        match manager.still(&lock).and_then(|kept| free(&kept.needed, digest)) {
            Ok(()) => {}
            Err(Stays::This) => continue,
            Err(Stays::All(why)) => {
                cleaned.notes.push(format!("the registry stays as it is for now: {why}"));
                return cleaned;
            }
        }
        match manager.registry().delete(repository, digest).await {
            Ok(()) => {
                manager.0.events.tell(Kind::Note, "gc", None, format!("{} is gone from the registry", item.thing));
                cleaned.removed += 1;
            }
            Err(error) => cleaned.errors.push(chain(&error)),
        }
    }
    if manager.config().gc.storage.is_some() {
        cleaned.add(window::collect(manager, patience).await);
    }
    cleaned
}

fn free(needed: &Needed, digest: &Digest) -> Result<(), Stays> {
    if needed.digests.contains_key(digest) { Err(Stays::This) } else { Ok(()) }
}
