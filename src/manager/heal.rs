//! Instances that keep dying or stay unhealthy: which of them are placed elsewhere, which are started again in place.
//!
//! Pure: told what is seen and when, remembers what was. Touches nothing; an application that is bad everywhere does not
//! wander, since each replacement doubles the pause before its next.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    inventory::{NodeState, Snapshot},
    model::{AppName, InstanceId, NodeName, Port, Timestamp},
    schedule::Doubts,
};

/// An instance in its place, as it is seen now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    /// Its node, which answers.
    pub node: NodeName,
    /// The engine's id of its container, which runs.
    pub id: String,
    /// Since when its node answers.
    pub ready_since: Timestamp,
    /// Since when the gateway's probe calls it sick.
    pub unhealthy_since: Option<Timestamp>,
    /// Whether the plan leaves its node open.
    pub replica: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The instance is to run elsewhere, for this reason.
    Elsewhere { instance: InstanceId, node: NodeName, why: String },
    /// Its container is to be stopped and started, for this reason.
    Again { instance: InstanceId, node: NodeName, id: String, why: String },
}

/// So many ends of one container's process within [`WITHIN`] are too many.
const DEATHS: usize = 5;
const WITHIN: Duration = Duration::from_secs(120);
/// For so long an instance may be unhealthy.
const UNHEALTHY_FOR: Duration = Duration::from_secs(60);
/// How long an instance stays away from where it went badly.
const AWAY: Duration = Duration::from_secs(15 * 60);
/// Between two replacements of one application, or two restarts of one instance: at first, and at the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// What happened so far.
#[derive(Debug, Default)]
pub(super) struct History {
    deaths: BTreeMap<InstanceId, (NodeName, Vec<Timestamp>)>,
    away: BTreeMap<InstanceId, BTreeMap<NodeName, Timestamp>>,
    replacements: BTreeMap<AppName, Pause>,
    restarts: BTreeMap<InstanceId, Pause>,
}

/// Not before a moment; doubled each time, and forgotten after a good while.
#[derive(Debug, Clone, Copy)]
struct Pause {
    until: Timestamp,
    length: Duration,
}

impl Pause {
    fn over(this: Option<&Self>, now: Timestamp) -> bool {
        this.is_none_or(|pause| pause.until <= now)
    }
    fn after(this: Option<&Self>, now: Timestamp) -> Self {
        let fresh = |pause: &&Self| now.duration_since(pause.until) < span(PAUSE.1);
        let length = this.filter(fresh).map_or(PAUSE.0, |pause| (pause.length * 2).min(PAUSE.1));
        Self { until: now + length, length }
    }
}

fn span(duration: Duration) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX)
}

impl History {
    /// The process of an instance that had answered ended.
    pub(super) fn died(&mut self, instance: &InstanceId, node: &NodeName, now: Timestamp) {
        let (at, deaths) = self.deaths.entry(instance.clone()).or_insert_with(|| (node.clone(), Vec::new()));
        if at != node {
            (*at, *deaths) = (node.clone(), Vec::new());
        }
        deaths.retain(|death| now.duration_since(*death) < span(WITHIN));
        deaths.push(now);
    }

    /// Where instances should not run.
    pub(super) fn away(&self) -> BTreeMap<InstanceId, BTreeSet<NodeName>> {
        self.away.iter().map(|(id, nodes)| (id.clone(), nodes.keys().cloned().collect())).collect()
    }

    /// What is to be done about these instances now.
    pub(super) fn decide(&mut self, instances: &BTreeMap<InstanceId, Facts>, now: Timestamp) -> Vec<Step> {
        self.forget(instances, now);
        let mut steps = Vec::new();
        for (id, facts) in instances {
            let Some((why, hangs)) = self.why(id, facts, now) else { continue };
            let kept_away = self.away.get(id).is_some_and(|nodes| nodes.contains_key(&facts.node));
            if facts.replica && !kept_away {
                let pause = self.replacements.get(&id.app);
                if !Pause::over(pause, now) {
                    continue;
                }
                self.replacements.insert(id.app.clone(), Pause::after(pause, now));
                self.away.entry(id.clone()).or_default().insert(facts.node.clone(), now + AWAY);
                self.deaths.remove(id);
                // No other place may be found: then it is started again here, later.
                self.restarts.insert(id.clone(), Pause::after(None, now));
                steps.push(Step::Elsewhere { instance: id.clone(), node: facts.node.clone(), why });
            } else if hangs && Pause::over(self.restarts.get(id), now) {
                // One that dies is started again by its engine.
                self.restarts.insert(id.clone(), Pause::after(self.restarts.get(id), now));
                let (instance, node, id) = (id.clone(), facts.node.clone(), facts.id.clone());
                steps.push(Step::Again { instance, node, id, why });
            }
        }
        steps
    }

    /// What is wrong with it, and whether it hangs.
    fn why(&self, id: &InstanceId, facts: &Facts, now: Timestamp) -> Option<(String, bool)> {
        // While its node was away nothing could answer; it has as much time as any other to get well.
        let since = facts.unhealthy_since.map(|since| since.max(facts.ready_since));
        if let Some(since) = since.filter(|since| now.duration_since(*since) >= span(UNHEALTHY_FOR)) {
            let seconds = now.duration_since(since).as_secs();
            return Some((format!("the gateway's probe has had no good answer for {seconds} s"), true));
        }
        let (_, deaths) = self.deaths.get(id).filter(|(node, _)| *node == facts.node)?;
        let recent = deaths.iter().filter(|death| now.duration_since(**death) < span(WITHIN)).count();
        (recent >= DEATHS).then(|| (format!("its process ended {recent} times in {} s", WITHIN.as_secs()), false))
    }

    fn forget(&mut self, instances: &BTreeMap<InstanceId, Facts>, now: Timestamp) {
        self.away.values_mut().for_each(|nodes| nodes.retain(|_, until| *until > now));
        self.away.retain(|_, nodes| !nodes.is_empty());
        self.deaths.retain(|_, (_, deaths)| deaths.iter().any(|death| now.duration_since(*death) < span(WITHIN)));
        let old = |pause: &Pause| now.duration_since(pause.until) >= span(PAUSE.1);
        self.replacements.retain(|_, pause| !old(pause));
        let well = |id: &InstanceId| instances.get(id).is_some_and(|facts| facts.unhealthy_since.is_none());
        self.restarts.retain(|id, pause| !(old(pause) || well(id) && pause.until <= now));
    }
}

/// What placement is told: instances to keep away, lost nodes that are waited for, and ports somebody holds.
pub(super) fn doubts(
    away: &BTreeMap<InstanceId, BTreeSet<NodeName>>,
    snapshot: &Snapshot,
    move_after: Duration,
    held: BTreeMap<NodeName, BTreeSet<Port>>,
    now: Timestamp,
) -> Doubts {
    let waits = snapshot
        .nodes
        .values()
        .filter(|node| matches!(node.state, NodeState::Lost { since } if now.duration_since(since) < span(move_after)));
    Doubts { away: away.clone(), awaited: waits.map(|node| node.name.clone()).collect(), held }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).expect("a time")
    }

    fn id(text: &str) -> InstanceId {
        text.parse().expect("an instance")
    }

    fn node(text: &str) -> NodeName {
        NodeName::try_from(text).expect("a name")
    }

    fn facts(on: &str, unhealthy_since: Option<i64>, replica: bool) -> Facts {
        let (id, ready_since) = (format!("id-{on}"), Timestamp::UNIX_EPOCH);
        Facts { node: node(on), id, ready_since, unhealthy_since: unhealthy_since.map(at), replica }
    }

    fn words(steps: &[Step]) -> Vec<String> {
        let word = |step: &Step| match step {
            Step::Elsewhere { instance, node, .. } => format!("{instance} leaves {node}"),
            Step::Again { instance, node, .. } => format!("{instance} again on {node}"),
        };
        steps.iter().map(word).collect()
    }

    /// At each second: what is unhealthy since when, and what is done.
    #[test]
    fn what_is_unhealthy_for_a_minute_is_replaced_or_started_again() {
        for (what, replica, turns) in [
            ("not yet", true, vec![(59, Some(0), "")]),
            ("a replica moves, once", true, vec![(60, Some(0), "web.1 leaves node1"), (61, Some(0), "")]),
            (
                "nowhere to go: started again where it is, ever later",
                true,
                vec![
                    (60, Some(0), "web.1 leaves node1"),
                    (119, Some(0), ""),
                    (121, Some(0), "web.1 again on node1"),
                    (200, Some(0), ""),
                    (242, Some(0), "web.1 again on node1"),
                ],
            ),
            (
                "a pinned one stays where it is",
                false,
                vec![
                    (60, Some(0), "web.1 again on node1"),
                    (100, Some(0), ""),
                    (121, Some(0), "web.1 again on node1"),
                    (200, Some(0), ""),
                    (242, Some(0), "web.1 again on node1"),
                    // It got well, and has all its patience again.
                    (500, None, ""),
                    (600, Some(540), "web.1 again on node1"),
                    (661, Some(540), "web.1 again on node1"),
                ],
            ),
        ] {
            let mut history = History::default();
            for (second, since, step) in turns {
                let all = BTreeMap::from([(id("web.1"), facts("node1", since, replica))]);
                let steps = history.decide(&all, at(second));
                assert_eq!(words(&steps).join(", "), step, "{what}, at {second}");
            }
        }
    }

    #[test]
    fn what_was_away_with_its_node_has_its_time_to_get_well() {
        let mut history = History::default();
        let sick = |ready| Facts { ready_since: at(ready), ..facts("node1", Some(0), false) };
        let mut at_second = |second| words(&history.decide(&BTreeMap::from([(id("web.1"), sick(100))]), at(second)));
        assert_eq!(at_second(101), [""; 0]);
        assert_eq!(at_second(159), [""; 0]);
        assert_eq!(at_second(160), ["web.1 again on node1"]);
    }

    #[test]
    fn what_dies_again_and_again_is_replaced_by_one_at_a_time_and_ever_later() {
        let mut history = History::default();
        let crash = |history: &mut History, instance: &str, on: &str, second: i64, times: usize| {
            for _ in 0..times {
                history.died(&id(instance), &node(on), at(second));
            }
        };
        let all = |one: &str, two: &str| {
            BTreeMap::from([(id("web.1"), facts(one, None, true)), (id("web.2"), facts(two, None, true))])
        };
        crash(&mut history, "web.1", "node1", 0, DEATHS - 1);
        assert_eq!(words(&history.decide(&all("node1", "node2"), at(1))), [""; 0]);
        crash(&mut history, "web.1", "node1", 119, 1);
        crash(&mut history, "web.2", "node2", 119, DEATHS);
        assert_eq!(words(&history.decide(&all("node1", "node2"), at(119))), ["web.1 leaves node1"]);
        assert_eq!(history.away(), BTreeMap::from([(id("web.1"), BTreeSet::from([node("node1")]))]));
        assert_eq!(words(&history.decide(&all("node3", "node2"), at(150))), [""; 0], "one at a time");
        crash(&mut history, "web.2", "node2", 178, 1);
        assert_eq!(words(&history.decide(&all("node3", "node2"), at(179))), ["web.2 leaves node2"]);
        // It is bad everywhere: two minutes now, then four.
        crash(&mut history, "web.1", "node3", 290, DEATHS);
        assert_eq!(words(&history.decide(&all("node3", "node1"), at(298))), [""; 0]);
        assert_eq!(words(&history.decide(&all("node3", "node1"), at(299))), ["web.1 leaves node3"]);
        assert_eq!(history.away()[&id("web.1")].len(), 2, "it does not go back at once");
        crash(&mut history, "web.1", "node2", 530, DEATHS);
        assert_eq!(words(&history.decide(&all("node2", "node1"), at(538))), [""; 0]);
        // Deaths that are spread over a day are nobody's concern.
        let mut calm = History::default();
        (0..20).for_each(|hour| calm.died(&id("web.1"), &node("node1"), at(hour * 3600)));
        assert_eq!(words(&calm.decide(&all("node1", "node2"), at(20 * 3600))), [""; 0]);
        // And it may come back after a while.
        history.decide(&all("node2", "node1"), at(299 + 15 * 60));
        assert_eq!(history.away(), BTreeMap::new());
    }
}
