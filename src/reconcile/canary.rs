//! A release that gets a share of the requests: which applications begin so, and whether it goes on, waits or goes back.
//!
//! Told what was counted and for how long; counts nothing and routes nothing.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    model::AppName,
    plan::{Canary, Mode, Percent},
    release::Release,
};

use super::Stage;

/// Fewer failed or slow requests than this are chance.
const CHANCE: u64 = 3;
/// Fewer requests than this say nothing good either.
const FEW: u64 = 20;
/// One in so many answers may be slow: what is compared is the 95th percentile.
const SLOW: Percent = Percent(500);

/// What came of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// How many were sent.
    pub asked: u64,
    /// How many were answered by 5xx, or not at all.
    pub failed: u64,
    /// How many answers took longer than they may to begin.
    pub slow: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.asked += other.asked;
        self.failed += other.failed;
        self.slow += other.slow;
    }
}

/// What came of an application's requests since the share began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// Those sent to instances of the release on its way.
    pub new: Tally,
    /// Those sent to the others.
    pub old: Tally,
}

/// What follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is not over.
    Wait,
    /// All requests may go to the new instances. Why, for people.
    On(String),
    /// None may any more. Why, for people.
    Back(String),
}

/// The applications that begin with a share of the requests: those the plan says so of, that take requests now and are
/// made from something else next.
pub fn tried(active: &Release, next: &Release, stage: &Stage) -> BTreeSet<AppName> {
    let begins = |app: &AppName| {
        let takes_requests = |release: &Release| release.plan.apps.get(app).is_some_and(|app| !app.routes.is_empty());
        next.plan.apps.get(app).is_some_and(|app| app.update.mode == Mode::Canary)
            && active.plan.apps.get(app).is_some_and(|app| app.count() > 0)
            && [active, next].into_iter().all(takes_requests)
            && active.spec(app) != next.spec(app)
    };
    stage.beside.keys().map(|id| &id.app).filter(|app| begins(app)).cloned().collect()
}

/// Whether an application's new instances held their limits for `elapsed`.
///
/// Before the time is over only what is twice as bad as it may be ends it: a handful of requests scatters.
pub fn judge(limits: &Canary, counted: &Counted, elapsed: Duration) -> Verdict {
    let Counted { new, old } = counted;
    let time = Duration::from_secs(limits.time_seconds.into());
    let over = elapsed >= time;
    let strict = if over { 1 } else { 2 };
    // Shares as fractions over both sums, so that nothing is rounded.
    let asked_of_old = u128::from(old.asked.max(1));
    let allowed = u128::from(old.failed) * 10_000 + u128::from(limits.errors.0) * asked_of_old;
    let failing = u128::from(new.failed) * 10_000 * asked_of_old > strict * allowed * u128::from(new.asked);
    if new.failed >= CHANCE && failing {
        return Verdict::Back(format!(
            "{} requests to its new instances failed, {} to the old ones: at most {} more may",
            share(new.failed, new.asked),
            share(old.failed, old.asked),
            limits.errors
        ));
    }
    let slow = u128::from(new.slow) * 10_000 > strict * u128::from(SLOW.0) * u128::from(new.asked);
    if let Some(limit) = limits.latency_ms.filter(|_| new.slow >= CHANCE && slow) {
        return Verdict::Back(format!(
            "{} answers of its new instances took longer than {limit} ms to begin: at most {SLOW} may",
            share(new.slow, new.asked)
        ));
    }
    match (over, new.asked) {
        (false, _) => Verdict::Wait,
        (true, asked) if asked < FEW => {
            Verdict::On(format!("only {asked} requests came to its new instances in {} s", time.as_secs()))
        }
        (true, _) => Verdict::On(format!("{} requests to its new instances failed", share(new.failed, new.asked))),
    }
}

/// `12 of 204 (5.88%)`
fn share(part: u64, whole: u64) -> String {
    let hundredths = u32::try_from(part * 10_000 / whole.max(1)).unwrap_or(10_000);
    format!("{part} of {whole} ({})", Percent(hundredths))
}

/// How far it is, for people: `10% of shop's requests go to release 7, 34 of 60 s, 0 of 812 failed`.
pub fn told(app: &AppName, limits: &Canary, release: u64, counted: &Counted, elapsed: Duration) -> String {
    let (share, time, Tally { asked, failed, .. }) = (limits.share, limits.time_seconds, counted.new);
    let so_far = elapsed.as_secs().min(time.into());
    format!("{share}% of {app}'s requests go to release {release}, {so_far} of {time} s, {failed} of {asked} failed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(asked: u64, failed: u64, slow: u64) -> Tally {
        Tally { asked, failed, slow }
    }

    #[test]
    fn limits_decide_and_chance_does_not() {
        let limits = Canary { share: 10, time_seconds: 60, errors: Percent(100), latency_ms: Some(500) };
        let none = tally(0, 0, 0);
        let (during, end) = (30, 60);
        for (new, old, seconds, wanted) in [
            // Nothing wrong: until the time is over, then on.
            (tally(1000, 0, 0), tally(9000, 0, 0), during, "wait"),
            (tally(1000, 0, 0), tally(9000, 0, 0), end, "on"),
            (tally(1000, 10, 0), tally(9000, 0, 0), end, "on"),
            (tally(1000, 11, 0), tally(9000, 0, 0), end, "back"),
            // As bad as it may be and half as much again: not before its time is over.
            (tally(1000, 15, 0), tally(9000, 0, 0), during, "wait"),
            (tally(1000, 21, 0), tally(9000, 0, 0), during, "back"),
            // What fails with the old ones too is not the release's fault.
            (tally(1000, 50, 0), tally(9000, 450, 0), end, "on"),
            (tally(1000, 61, 0), tally(9000, 450, 0), end, "back"),
            // One or two are chance, three of three are not.
            (tally(2, 2, 0), none, during, "wait"),
            (tally(2, 2, 0), none, end, "on"),
            (tally(3, 3, 0), none, during, "back"),
            // Slow answers: one in twenty may be.
            (tally(1000, 0, 50), tally(9000, 0, 0), end, "on"),
            (tally(1000, 0, 51), tally(9000, 0, 0), end, "back"),
            (tally(1000, 0, 101), tally(9000, 0, 0), during, "back"),
            (tally(1000, 0, 99), tally(9000, 0, 0), during, "wait"),
            (none, none, end, "on"),
            (none, none, during, "wait"),
        ] {
            let verdict = judge(&limits, &Counted { new, old }, Duration::from_secs(seconds));
            let word = match &verdict {
                Verdict::Wait => "wait",
                Verdict::On(_) => "on",
                Verdict::Back(_) => "back",
            };
            assert_eq!(word, wanted, "{new:?} {old:?} after {seconds} s: {verdict:?}");
        }
    }

    #[test]
    fn limits_at_their_ends() {
        let strict = Canary { errors: Percent(0), latency_ms: None, ..Canary::default() };
        let at = |limits: &Canary, new| judge(limits, &Counted { new, old: tally(100, 0, 0) }, Duration::from_secs(1));
        assert!(matches!(at(&strict, tally(100_000, 3, 0)), Verdict::Back(_)));
        assert_eq!(at(&strict, tally(100_000, 0, 100_000)), Verdict::Wait, "latency is not looked at");
        let any = Canary { errors: Percent(10_000), ..strict };
        assert_eq!(at(&any, tally(100, 100, 0)), Verdict::Wait);
        assert_eq!(at(&any, tally(u64::MAX / 10_000, u64::MAX / 10_000, 0)), Verdict::Wait, "no overflow");
    }

    #[test]
    fn verdicts_say_what_was_seen() {
        let limits = Canary::default();
        let counted = Counted { new: tally(204, 12, 0), old: tally(1833, 2, 0) };
        let Verdict::Back(why) = judge(&limits, &counted, Duration::from_secs(20)) else { panic!("it goes on") };
        let wanted = "12 of 204 (5.88%) requests to its new instances failed, 2 of 1833 (0.1%) to the old ones: \
                      at most 1% more may";
        assert_eq!(why, wanted);
        let few = judge(&limits, &Counted { new: tally(7, 0, 0), ..counted }, Duration::from_secs(60));
        assert_eq!(few, Verdict::On("only 7 requests came to its new instances in 60 s".to_owned()));
        let shop = AppName::try_from("shop").expect("a name");
        let wanted = "10% of shop's requests go to release 7, 34 of 60 s, 12 of 204 failed";
        assert_eq!(told(&shop, &limits, 7, &counted, Duration::from_secs(34)), wanted);
    }
}
