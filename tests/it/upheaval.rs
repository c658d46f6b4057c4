//! The laws while the world falls apart: nodes are lost and return, containers die, starts fail, the manager forgets what
//! it has not written down. Thousands of steps in a second.

use super::*;
use matrix::reconcile::Hold;

#[derive(Debug, Clone)]
enum Upset {
    Deploy(String),
    Lose(usize),
    /// It misses an answer.
    Doubt(usize),
    Return(usize),
    /// Of all containers of ours, the one of this number ends.
    Ends(usize),
    /// It ends, and its engine starts it again.
    StartsAgain(usize),
    /// Somebody removes it.
    Vanishes(usize),
    /// Nothing of this application answers from now on, or again.
    Fails(char, bool),
    /// The manager is killed and starts again.
    Forgets,
    /// The gateway's table is not known from now on, or again.
    Blind(bool),
    /// So many turns of the loop, so many seconds apart.
    Turns(u8, u8),
}

fn any_upset() -> impl Strategy<Value = Upset> {
    prop_oneof![
        3 => any_plan().prop_map(Upset::Deploy),
        2 => (1..=4usize).prop_map(Upset::Lose),
        2 => (1..=4usize).prop_map(Upset::Doubt),
        3 => (1..=4usize).prop_map(Upset::Return),
        2 => (0..20usize).prop_map(Upset::Ends),
        1 => (0..20usize).prop_map(Upset::StartsAgain),
        1 => (0..20usize).prop_map(Upset::Vanishes),
        2 => (prop::char::range('a', 'd'), prop::bool::ANY).prop_map(|(app, on)| Upset::Fails(app, on)),
        1 => Just(Upset::Forgets),
        1 => prop::bool::ANY.prop_map(Upset::Blind),
        8 => (1..8u8, 0..10u8).prop_map(|(turns, seconds)| Upset::Turns(turns, seconds)),
    ]
}

struct Upheaval {
    sim: Sim,
    holds: BTreeMap<String, Hold>,
    failing: BTreeSet<String>,
    clock: i64,
    blind: bool,
    steps: usize,
}

impl Upheaval {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.clock).unwrap()
    }

    fn happens(&mut self, upset: &Upset) {
        let number = self.sim.release.number;
        let node = |sim: &mut Sim, n: usize, state| {
            let name = NodeName::try_from(format!("node{n}")).unwrap();
            if let Some(node) = sim.snapshot.nodes.get_mut(&name) {
                node.state = state;
            }
        };
        match upset {
            Upset::Deploy(text) => {
                self.sim.deploy(release(number + 1, text));
                self.holds.clear();
            }
            Upset::Lose(n) => node(&mut self.sim, *n, NodeState::Lost { since: now() }),
            Upset::Doubt(n) => {
                node(&mut self.sim, *n, NodeState::Suspect { misses: std::num::NonZeroU8::MIN });
            }
            Upset::Return(n) => node(&mut self.sim, *n, NodeState::Ready),
            Upset::Ends(n) => self.one(*n, |c| c.state = ContainerState::Exited),
            Upset::StartsAgain(n) => self.one(*n, |c| c.id = format!("{}x", c.id)),
            Upset::Vanishes(n) => self.one(*n, |c| c.name.push_str("-gone")),
            Upset::Fails(app, true) => _ = self.failing.insert(app.to_string()),
            Upset::Fails(app, false) => _ = self.failing.remove(&app.to_string()),
            // What was seen to answer is written down, as are places, the releases and the last table.
            Upset::Forgets => self.holds.clear(),
            Upset::Blind(blind) => self.blind = *blind,
            Upset::Turns(turns, seconds) => {
                for _ in 0..*turns {
                    self.turn();
                    self.clock += i64::from(*seconds);
                }
            }
        }
    }

    /// Something happens to one of our containers, on whatever node; what answered is not what answers then.
    fn one(&mut self, number: usize, what: impl FnOnce(&mut Container)) {
        let ours = |c: &&mut Container| c.ours.as_ref().is_some_and(|ours| ours.cloud.as_str() == "test");
        let mut all: Vec<_> =
            self.sim.snapshot.nodes.values_mut().flat_map(|n| n.containers.iter_mut()).filter(ours).collect();
        if all.is_empty() {
            return;
        }
        let at = number % all.len();
        let before = all[at].name.clone();
        what(all[at]);
        self.sim.verified.remove(&before);
        for node in self.sim.snapshot.nodes.values_mut() {
            node.containers.retain(|c| !c.name.ends_with("-gone"));
        }
    }

    /// One turn of the loop; whether anything was done.
    fn turn(&mut self) -> bool {
        self.steps += 1;
        let admitted = self.sim.snapshot.nodes.len();
        let is_lost = |n: &&Node| matches!(n.state, NodeState::Lost { .. });
        let lost = self.sim.snapshot.nodes.values().filter(is_lost).count();
        let placed = schedule::place(schedule::Input {
            release: &self.sim.release,
            snapshot: &self.sim.snapshot,
            previous: &self.sim.assignments,
            ports: [20000, 20100],
            frozen: lost > 1 && lost * 2 > admitted,
            beside: &schedule::Beside::NOTHING,
            doubts: &schedule::Doubts::NONE,
        });
        self.sim.assignments = placed.assignments;
        let routed = (!self.blind).then_some(&self.sim.table);
        let decision = diff(World { routed, now: self.now(), ..self.sim.world(&self.holds) });
        let table = routes::table(routes::Input {
            cloud: &self.sim.cloud,
            release: &self.sim.release,
            assignments: &self.sim.assignments,
            snapshot: &self.sim.snapshot,
            verified: &self.sim.verified,
            leaving: &decision.leaving,
            last: &self.sim.table,
            trial: None,
        });
        let moved = table != self.sim.table;
        for action in &decision.actions {
            self.acts(action);
        }
        self.sim.table = table;
        moved || !decision.actions.is_empty()
    }

    fn acts(&mut self, action: &Action) {
        assert!(self.sim.snapshot.nodes[action.node()].is_ready(), "{action}: its node does not answer");
        let app = action.instance().app.clone();
        let before = self.serving(&app);
        let mut evicted = false;
        match action {
            Action::Stop { node, name, .. } => {
                // A plan that gives an application's fixed port to another one means it.
                let holds = |c: &Container, port| c.name == *name && c.published.values().any(|p| *p == port);
                let there = |port| self.sim.snapshot.nodes[node].containers.iter().any(|c| holds(c, port));
                let mut places = self.sim.assignments.iter();
                evicted = places.any(|(id, place)| id.app != app && place.node == *node && there(place.host_port));
                assert!(!self.blind, "{name} is stopped while nobody knows who gets requests");
            }
            Action::Start { container, .. } | Action::Verify { container, .. } => {
                let held = self.holds.get(&container.name).is_some_and(|hold| hold.until > self.now());
                assert!(!held, "{action}: it is tried before its time");
            }
        }
        self.sim.act(action);
        if let Action::Stop { .. } = action
            && self.sim.release.plan.apps.get(&app).is_some_and(|app| app.count() > 0)
        {
            let lost = |node: &Node| matches!(node.state, NodeState::Lost { .. });
            let reached = |place: &schedule::Assignment| !lost(&self.sim.snapshot.nodes[&place.node]);
            let placed = || self.sim.assignments.iter().filter(|(id, place)| id.app == app && reached(place));
            // One instance on a fixed port has to go before the next comes, also where it is the only one in reach.
            let forced = evicted || placed().all(|(_, place)| place.pinned_port) && placed().count() <= 1;
            assert!(before == 0 || self.serving(&app) > 0 || forced, "{action}: the last of {app} that serves");
        }
        if let Action::Start { container, .. } | Action::Verify { container, .. } = action
            && self.failing.contains(app.as_str())
        {
            self.sim.verified.remove(&container.name);
            let failures = self.holds.get(&container.name).map_or(0, |hold| hold.failures) + 1;
            let until = Timestamp::from_second(self.clock + 5).unwrap();
            self.holds.insert(container.name.clone(), Hold { until, failures, why: "it does not answer".into() });
        }
    }

    /// How many instances of an application run, answer and can be reached.
    fn serving(&self, app: &matrix::model::AppName) -> usize {
        let of = |c: &Container| c.ours.as_ref().is_some_and(|o| o.cloud == self.sim.cloud && o.instance.app == *app);
        let routed = |c: &Container| self.sim.table.apps.get(app).is_some_and(|app| app.backends.contains_key(&c.name));
        let running = self.sim.snapshot.containers().filter(|(_, c)| c.state == ContainerState::Running && of(c));
        let answers = running.filter(|(_, c)| self.sim.verified.contains_key(&c.name));
        // What a silent node runs counts while it gets requests.
        let there = |n: &Node, c: &Container| n.is_ready() || matches!(n.state, NodeState::Suspect { .. }) && routed(c);
        answers.filter(|(n, c)| there(n, c)).count()
    }

    /// Everything is mended, and the loop goes on until it has nothing to say.
    fn mended(&mut self) {
        for node in self.sim.snapshot.nodes.values_mut() {
            node.state = NodeState::Ready;
        }
        (self.blind, self.failing) = (false, BTreeSet::new());
        for _ in 0..300 {
            self.clock += 3600;
            if !self.turn() {
                return;
            }
        }
        panic!("it does not come to rest");
    }
}

#[test]
fn a_successor_that_cannot_be_reached_replaces_nobody() {
    for next in ["nodes = [\"node3\"]", "nodes = [\"node2\", \"node3\"]"] {
        let mut sim = Sim::new(3, release(1, "[apps.shop]\nreplicas = 1\n"));
        sim.settle();
        let before = sim.ours();
        sim.deploy(release(2, &format!("[apps.shop]\n{next}\n")));
        // What is new has answered; before what was there has left, its nodes are lost.
        sim.step();
        for node in sim.snapshot.nodes.values_mut().filter(|node| node.name.as_str() != "node1") {
            node.state = NodeState::Lost { since: now() };
        }
        for _ in 0..5 {
            sim.step();
        }
        assert!(sim.ours().is_superset(&before), "{next}: {:?}", sim.ours());
        for node in sim.snapshot.nodes.values_mut() {
            node.state = NodeState::Ready;
        }
        sim.settle();
        assert_eq!(sim.ours(), sim.wanted());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_breaks_exactly_the_desired_remains_and_nothing_serving_is_stopped_first(
        first in any_plan(),
        nodes in 2..5usize,
        upsets in prop::collection::vec(any_upset(), 1..40),
    ) {
        let sim = Sim::new(nodes, release(1, &first));
        let (holds, failing) = (BTreeMap::new(), BTreeSet::new());
        let mut world = Upheaval { sim, holds, failing, clock: 0, blind: false, steps: 0 };
        let one = world.sim.snapshot.nodes.values_mut().next().unwrap();
        one.containers.push(foreign(1, None, 20000));
        one.containers.push(foreign(2, Some("other"), 20001));
        for upset in &upsets {
            world.happens(upset);
        }
        world.mended();
        let homeless = !world.sim.place().unplaced.is_empty();
        // What finds no place leaves its predecessor where it was.
        if !homeless {
            prop_assert_eq!(world.sim.ours(), world.sim.wanted(), "exactly what is wanted is there");
            let routed: BTreeSet<_> =
                world.sim.table.apps.values().flat_map(|app| app.backends.keys().cloned()).collect();
            prop_assert_eq!(&routed, &world.sim.ours(), "all that is there is routed");
        }
        prop_assert!(world.sim.ours().is_superset(&world.sim.wanted()), "all that is wanted is there");
        prop_assert!(!world.turn(), "there is nothing more to do");
        let strangers = world.sim.snapshot.containers().filter(|(_, c)| c.name.starts_with("foreign")).count();
        prop_assert_eq!(strangers, 2);
        prop_assert!(world.steps > 0);
    }
}
