//! A release on its way: what is active stays whole until all of the new one answers.
//!
//! Says what is wanted in each phase and how a release ended; looks at nothing.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Release;
use crate::model::{AppName, Timestamp};

/// A release on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The release that is to become active.
    pub release: Release,
    /// How far it is.
    pub phase: Phase,
    /// Since when.
    pub since: Timestamp,
    /// Whether the switch (or the canary before it) waits until somebody asks for it.
    pub hold: bool,
    /// Whether the switch comes without a canary: on the way back, and where somebody asked for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub straight: bool,
}

/// How far a rollout is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// New instances start beside the old ones and get no requests.
    Staging,
    /// All of it answers; the new instances of these applications get a share of their requests, and are watched.
    Canary {
        /// These applications.
        apps: BTreeSet<AppName>,
    },
    /// What has no room beside its old instances is replaced step by step.
    Rolling {
        /// These applications.
        apps: BTreeSet<AppName>,
    },
}

impl Rollout {
    /// The beginning of one.
    pub fn new(release: Release, since: Timestamp, hold: bool) -> Self {
        Self { release, phase: Phase::Staging, since, hold, straight: false }
    }

    /// The same without a canary.
    #[must_use]
    pub fn straight(self) -> Self {
        Self { straight: true, ..self }
    }

    /// What the cloud should run in this phase, without what only starts beside it.
    #[must_use]
    pub fn effective(&self, active: &Release) -> Release {
        match &self.phase {
            Phase::Staging | Phase::Canary { .. } => active.clone(),
            Phase::Rolling { apps } => active.with(&self.release, apps),
        }
    }
}

impl Release {
    /// The cloud before its first release: nothing is wanted.
    pub fn none() -> Self {
        Self {
            number: 0,
            plan: crate::plan::Plan::default(),
            images: std::collections::BTreeMap::new(),
            created: Timestamp::UNIX_EPOCH,
            by: String::new(),
            message: None,
            restarts: std::collections::BTreeMap::new(),
        }
    }

    /// This release, but for these applications, which are as in `next`; what `next` lacks of them is gone.
    #[must_use]
    pub fn with(&self, next: &Self, apps: &BTreeSet<AppName>) -> Self {
        let mut blend = Self { number: next.number, ..self.clone() };
        for name in apps {
            blend.plan.apps.remove(name);
            blend.images.remove(name);
            blend.restarts.remove(name);
            if let (Some(app), Some(image)) = (next.plan.apps.get(name), next.images.get(name)) {
                blend.plan.apps.insert(name.clone(), app.clone());
                blend.images.insert(name.clone(), image.clone());
                blend.restarts.extend(next.restarts.get_key_value(name).map(|(name, times)| (name.clone(), *times)));
            }
        }
        blend
    }
}

/// What became of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// In a word.
    pub state: State,
    /// Why, for people; each may have several lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub why: Vec<String>,
    /// When.
    pub at: Timestamp,
}

/// What became of a release, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It became active: every instance that could be reached answered.
    Good,
    /// It never became active, since something of it failed.
    Failed,
    /// It never became active, since somebody threw it away.
    Aborted,
    /// It became active, began to fail, and was taken back.
    Undone,
}

impl State {
    /// As users read it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
            Self::Undone => "undone",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(number: u64, text: &str) -> Release {
        let plan = crate::plan::read("test.plan", text).expect("a plan").plan;
        let digest: crate::model::Digest = format!("sha256:{number:064}").parse().expect("a digest");
        let images = plan.apps.iter().map(|(n, app)| (n.clone(), app.image.pinned("r:5000", digest.clone()))).collect();
        Release { number, plan, images, ..Release::none() }
    }

    #[test]
    fn only_what_has_no_room_is_replaced_before_the_switch() {
        let active = release(1, "[apps.shop]\n[apps.blog]\n[apps.gone]\n");
        let next = release(2, "[apps.shop]\n[apps.blog]\n[apps.new]\n");
        let mut rollout = Rollout::new(next.clone(), Timestamp::UNIX_EPOCH, false);
        assert_eq!(rollout.effective(&active), active);
        let names = ["shop", "gone"].map(|n| AppName::try_from(n).expect("a name"));
        rollout.phase = Phase::Canary { apps: names.clone().into() };
        assert_eq!(rollout.effective(&active), active, "a share of the requests is no switch");
        rollout.phase = Phase::Rolling { apps: names.clone().into() };
        let blend = rollout.effective(&active);
        assert_eq!(blend.plan.apps.keys().map(AppName::as_str).collect::<Vec<_>>(), ["blog", "shop"]);
        let [shop, _] = names;
        let blog = AppName::try_from("blog").expect("a name");
        assert_eq!(blend.spec(&shop), next.spec(&shop));
        assert_eq!(blend.spec(&blog), active.spec(&blog));
    }
}
