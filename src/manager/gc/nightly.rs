//! The cleaning of each night, at the hour the configuration names; and looking after a registry that was left half cleaned.
//!
//! Makes up for none: what a manager that was down missed comes the next night.

use std::time::Duration;

use jiff::{Zoned, civil::Time};

use crate::manager::{Manager, events::Kind};

use super::{GcError, window};

/// How long a release that is under way at that hour is waited for, and a push.
const PATIENCE: Duration = Duration::from_secs(3600);
/// A machine that slept, or whose clock was set, is noticed by then.
const LOOK: Duration = Duration::from_secs(10);

/// Cleans each night until the manager ends.
pub(in crate::manager) async fn nightly(manager: Manager) {
    let at = manager.config().gc.at.0;
    let mut next = at.map(|at| after(&Zoned::now(), at));
    loop {
        window::heal(&manager).await;
        let left = next.as_ref().map(|next| Zoned::now().duration_until(next));
        let pause = left.map_or(LOOK, |left| Duration::try_from(left).unwrap_or(Duration::ZERO));
        tokio::select! {
            () = manager.stopped().cancelled() => return,
            () = tokio::time::sleep(pause.min(LOOK)) => {}
        }
        if next.as_ref().is_none_or(|next| Zoned::now() < *next) {
            continue;
        }
        match manager.gc(PATIENCE, |_| ()).await {
            Ok(_) => {}
            Err(error @ (GcError::Busy | GcError::UnderWay(_))) => {
                manager.0.events.tell(Kind::Note, "gc", None, format!("not this night: {error}"));
            }
            Err(GcError::State(error)) => {
                manager.0.events.tell(Kind::Failed, "gc", None, crate::manager::chain(&error));
            }
        }
        next = at.map(|at| after(&Zoned::now(), at));
    }
}

/// The next moment after `now` at which clocks show `at`; where they skip that hour, the one they show instead.
fn after(now: &Zoned, at: Time) -> Zoned {
    let on = |day: jiff::civil::Date| day.to_datetime(at).to_zoned(now.time_zone().clone());
    let days = [now.date(), now.date().tomorrow().unwrap_or(now.date())];
    let next = days.into_iter().filter_map(|day| on(day).ok()).find(|moment| moment > now);
    next.unwrap_or_else(|| now.saturating_add(jiff::Span::new().hours(24)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_night_is_found_over_midnight_and_a_change_of_clocks() {
        for (now, at, next) in [
            ("2026-11-20T02:59:59+01:00[Europe/Berlin]", "03:00", "2026-11-20T03:00:00+01:00[Europe/Berlin]"),
            ("2026-11-20T03:00:00+01:00[Europe/Berlin]", "03:00", "2026-11-21T03:00:00+01:00[Europe/Berlin]"),
            ("2026-12-31T23:30:00+01:00[Europe/Berlin]", "00:15", "2027-01-01T00:15:00+01:00[Europe/Berlin]"),
            // that hour is skipped there
            ("2027-03-28T01:00:00+01:00[Europe/Berlin]", "02:30", "2027-03-28T03:30:00+02:00[Europe/Berlin]"),
        ] {
            let now: Zoned = now.parse().expect("a moment");
            assert_eq!(after(&now, at.parse().expect("a time")).to_string(), next, "{now}");
        }
    }
}
