//! Backends that get no requests whatever their probes say: what is dead, and what is out of the table while VCL still names
//! it. A word to varnishd each, where new VCL would have to be compiled.
//!
//! What is dead is so in every VCL. What is out is so only in the one that runs: requests that began in an older one may
//! have nobody else left in it, and what drains still serves.

use std::{
    collections::BTreeMap,
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
    /// Each with its backend's name in the VCL that runs.
    containers: BTreeMap<String, String>,
    /// When that changed last.
    since: Option<Instant>,
}

/// What was told for a table that comes: backends' names.
#[derive(Debug, Default)]
pub(super) struct Turned {
    out: BTreeMap<String, String>,
    back: BTreeMap<String, String>,
    /// Whose VCL does not run then.
    past: BTreeMap<String, String>,
    /// What was out before.
    before: BTreeMap<String, String>,
}

/// Tells backends of these names.
async fn tell<'a>(
    varnish: &Varnish,
    backends: impl IntoIterator<Item = &'a String>,
    health: Health,
) -> Result<(), VarnishError> {
    for backend in backends {
        match varnish.set_health(backend, health).await {
            // It has no such backend: nobody to tell.
            Err(VarnishError::Refused { message, .. }) if message.contains("No Backends matches") => {}
            result => result?,
        }
    }
    Ok(())
}

/// Tells every version of a container's backend.
pub(super) async fn overrule(varnish: &Varnish, container: &str, health: Health) -> Result<(), VarnishError> {
    tell(varnish, [&format!("{}*.{}", vcl::PREFIX, vcl::backend_id(container))], health).await
}

impl Inner {
    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_out(&self, container: &str) -> bool {
        self.out().containers.contains_key(container)
    }

    fn is_sick(&self, container: &str) -> bool {
        self.sick.lock().unwrap_or_else(PoisonError::into_inner).contains(container)
    }

    /// Those of them that are not dead besides.
    fn well(&self, containers: &BTreeMap<String, String>) -> Vec<String> {
        containers
            .iter()
            .filter(|(container, _)| !self.is_sick(container))
            .map(|(_, backend)| backend.clone())
            .collect()
    }

    /// Takes out what this table lacks and its VCL names, and back in what it has again: before it runs, since what leaves
    /// may not wait, and what comes back serves. False: not all of it was told.
    pub(super) async fn turn_out(&self, varnish: &Varnish, next: &Generation) -> (Turned, bool) {
        let (before, now) = (self.out().containers.clone(), next.out());
        // Who is called well meanwhile stays out.
        self.out().containers.extend(now.clone());
        let runs = |backend: &str| next.apps.values().any(|(vcl, _)| backend.starts_with(&format!("{vcl}.")));
        let mut turned = Turned { before: before.clone(), ..Turned::default() };
        turned.out.extend(now.iter().filter(|(container, _)| !before.contains_key(*container)).map(owned));
        let (back, past) = before.into_iter().filter(|(c, _)| !now.contains_key(c)).partition(|(_, b)| runs(b));
        (turned.back, turned.past) = (back, past);
        let told = tell(varnish, turned.out.values(), Health::Sick).await.is_ok()
            && tell(varnish, &self.well(&turned.back), Health::Auto).await.is_ok();
        if !told {
            // It is compiled then, which says the same.
            turned.past.extend(turned.out.iter().map(owned));
        }
        (turned, told)
    }

    /// It runs. What was out of VCL that does not run any more is in there again: that VCL may be used once more.
    pub(super) async fn turned(&self, varnish: &Varnish, turned: &Turned, next: &Generation) {
        self.are_out(next.out());
        _ = tell(varnish, &self.well(&turned.past), Health::Auto).await;
    }

    /// The table that was to come does not.
    pub(super) async fn turn_back(&self, varnish: &Varnish, turned: Turned) {
        _ = tell(varnish, &self.well(&turned.out), Health::Auto).await;
        _ = tell(varnish, turned.back.values(), Health::Sick).await;
        self.are_out(turned.before);
    }

    /// Remembers which are out.
    pub(super) fn are_out(&self, containers: BTreeMap<String, String>) {
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
        none.extend(generation.out().into_keys());
        for (app, (name, _)) in generation.apps.iter().filter(|(_, (name, _))| loaded.contains(name)) {
            let serving = generation.made_from.apps[app].backends.iter().filter(|(_, b)| b.serving);
            for (container, _) in serving.filter(|(container, _)| none.contains(*container)) {
                _ = varnish.set_health(&format!("{name}.{}", vcl::backend_id(container)), Health::Sick).await;
            }
        }
    }
}

fn owned((container, backend): (&String, &String)) -> (String, String) {
    (container.clone(), backend.clone())
}
