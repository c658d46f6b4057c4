//! Backends that get no requests whatever their probes say: what is dead, and what is out of the table while VCL still names
//! it. A word to varnishd each, where new VCL would have to be compiled; said again to every VCL that is loaded.

use std::{
    collections::BTreeSet,
    sync::{MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{Generation, Inner};
use crate::{
    remote::varnish::{Health, Varnish, VarnishError},
    routing::vcl,
};

/// So long after the last one was taken out, VCL is compiled that does not name them: nobody waits for that.
const LINGER: Duration = Duration::from_secs(10);

/// What is out of the table that runs, and named by its VCL.
#[derive(Debug, Default)]
pub(super) struct Out {
    containers: BTreeSet<String>,
    /// When that changed last.
    since: Option<Instant>,
}

/// What was told for a table that comes.
#[derive(Debug, Default)]
pub(super) struct Turned {
    out: BTreeSet<String>,
    back: BTreeSet<String>,
    /// What was out before.
    before: BTreeSet<String>,
}

/// Tells every version of a container's backend.
pub(super) async fn overrule(varnish: &Varnish, container: &str, health: Health) -> Result<(), VarnishError> {
    match varnish.set_health(&format!("{}*.{}", vcl::PREFIX, vcl::backend_id(container)), health).await {
        // It has no backend: nothing to take out.
        Err(VarnishError::Refused { message, .. }) if message.contains("No Backends matches") => Ok(()),
        result => result,
    }
}

impl Inner {
    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_out(&self, container: &str) -> bool {
        self.out().containers.contains(container)
    }

    fn is_sick(&self, container: &str) -> bool {
        self.sick.lock().unwrap_or_else(PoisonError::into_inner).contains(container)
    }

    /// Takes out what this table lacks and its VCL names, and back in what it has again: before it runs, since what leaves
    /// may not wait, and what comes back serves.
    pub(super) async fn turn_out(&self, varnish: &Varnish, next: &Generation) -> Result<Turned, VarnishError> {
        let (before, now) = (self.out().containers.clone(), next.out());
        self.out().containers.extend(now.iter().cloned());
        let named = |c: &&String| next.table.apps.values().any(|app| app.backends.contains_key(*c));
        let turned = Turned {
            out: now.difference(&before).cloned().collect(),
            back: before.iter().filter(named).cloned().collect(),
            before,
        };
        for container in &turned.out {
            overrule(varnish, container, Health::Sick).await?;
        }
        for container in turned.back.iter().filter(|c| !self.is_sick(c)) {
            overrule(varnish, container, Health::Auto).await?;
        }
        Ok(turned)
    }

    /// The table that was to come does not.
    pub(super) async fn turn_back(&self, varnish: &Varnish, turned: Turned) {
        for container in turned.out.iter().filter(|c| !self.is_sick(c)) {
            _ = overrule(varnish, container, Health::Auto).await;
        }
        for container in &turned.back {
            _ = overrule(varnish, container, Health::Sick).await;
        }
        self.are_out(turned.before);
    }

    /// Remembers which are out.
    pub(super) fn are_out(&self, containers: BTreeSet<String>) {
        let since = (!containers.is_empty()).then(Instant::now);
        *self.out() = Out { containers, since };
    }

    /// Whether some have been out for so long that nothing else will bring VCL without them.
    pub(super) fn lingers(&self) -> bool {
        self.out().since.is_some_and(|since| since.elapsed() > LINGER)
    }

    /// What an earlier manager overruled, nobody would give back.
    pub(super) async fn forget_overruled(&self, varnish: &Varnish, generation: &Generation) {
        let names: Vec<_> = generation.apps.values().map(|(name, _)| name.clone()).collect();
        for name in &names {
            _ = varnish.set_health(&format!("{name}.*"), Health::Auto).await;
        }
        self.tell_overruled(varnish, generation, &names).await;
    }

    /// Overrules are lost with the VCL they were said of.
    pub(super) async fn tell_overruled(&self, varnish: &Varnish, generation: &Generation, loaded: &[String]) {
        let mut none = self.sick.lock().unwrap_or_else(PoisonError::into_inner).clone();
        none.append(&mut generation.out());
        for (app, (name, _)) in generation.apps.iter().filter(|(_, (name, _))| loaded.contains(name)) {
            let serving = generation.made_from.apps[app].backends.iter().filter(|(_, b)| b.serving);
            for (container, _) in serving.filter(|(container, _)| none.contains(*container)) {
                _ = varnish.set_health(&format!("{name}.{}", vcl::backend_id(container)), Health::Sick).await;
            }
        }
    }
}
