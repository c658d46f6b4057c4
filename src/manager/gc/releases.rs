//! Cleaning of the journal: releases that nobody goes back to are forgotten, all at once.
//!
//! What they alone needed goes after them: a release that is listed has its images.

use std::collections::BTreeSet;

use crate::{
    clean::{Item, Thing},
    manager::{Manager, chain, events::Kind, run::Message},
};

use super::{Cleaned, Stays};

/// Forgets what was told to go and may go still.
pub(super) async fn clean(manager: &Manager, told: &[Item]) -> Cleaned {
    let mut cleaned = Cleaned::default();
    let told = numbers(told);
    if told.is_empty() {
        return cleaned;
    }
    let lock = manager.0.submitting.lock().await;
    let going = manager.still(&lock).map(|kept| &numbers(&kept.outdated) & &told);
    let going = match going {
        Ok(going) => going,
        Err(Stays::All(why)) => {
            cleaned.notes.push(format!("all releases stay for now: {why}"));
            return cleaned;
        }
        Err(Stays::This) => return cleaned,
    };
    match manager.journal().forget(&going) {
        Ok(()) => {
            cleaned.removed = going.len();
            let said: Vec<_> = going.iter().map(ToString::to_string).collect();
            let text =
                format!("forgotten: {} {}", if said.len() == 1 { "release" } else { "releases" }, said.join(" "));
            manager.0.events.tell(Kind::Note, "gc", None, text);
            // A loop that ended means the manager is ending.
            _ = manager.0.inbox.send(Message::Forgotten(going));
        }
        Err(error) => cleaned.errors.push(chain(&error)),
    }
    cleaned
}

fn numbers(items: &[Item]) -> BTreeSet<u64> {
    let number = |item: &Item| if let Thing::Release { number } = item.thing { Some(number) } else { None };
    items.iter().filter_map(number).collect()
}
