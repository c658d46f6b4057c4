//! The laws while the world falls apart: nodes are lost and return, containers die, starts fail, the manager forgets what
//! it has not written down. Thousands of steps in a second.

use super::*;
use matrix::{
    reconcile::{
        Hold, Stage, Staged,
        rollout::{self, Next},
        waited_for,
    },
    release::{Phase, Rollout},
};

mod stops;
use stops::Stops;

#[derive(Debug, Clone)]
enum Upset {
    Deploy(String),
    /// What is on its way is not wanted any more.
    Abort,
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
    /// So many turns a stop drains from now on, and so many it takes to end then.
    Drains(u8),
    /// So many turns of the loop, so many seconds apart.
    Turns(u8, u8),
}

fn any_upset() -> impl Strategy<Value = Upset> {
    prop_oneof![
        3 => any_release().prop_map(Upset::Deploy),
        1 => Just(Upset::Abort),
        2 => (1..=4usize).prop_map(Upset::Lose),
        2 => (1..=4usize).prop_map(Upset::Doubt),
        3 => (1..=4usize).prop_map(Upset::Return),
        2 => (0..20usize).prop_map(Upset::Ends),
        1 => (0..20usize).prop_map(Upset::StartsAgain),
        1 => (0..20usize).prop_map(Upset::Vanishes),
        2 => (prop::char::range('a', 'd'), prop::bool::ANY).prop_map(|(app, on)| Upset::Fails(app, on)),
        1 => Just(Upset::Forgets),
        1 => prop::bool::ANY.prop_map(Upset::Blind),
        2 => (0..4u8).prop_map(Upset::Drains),
        8 => (1..8u8, 0..10u8).prop_map(|(turns, seconds)| Upset::Turns(turns, seconds)),
    ]
}

/// A plan of which some applications are replaced step by step.
fn any_release() -> impl Strategy<Value = String> {
    (any_plan(), prop::sample::subsequence(vec!["a", "b", "c", "d"], 0..=4)).prop_map(|(plan, rolling)| {
        rolling.iter().fold(plan, |plan, app| {
            plan.replace(&format!("[apps.{app}]\n"), &format!("[apps.{app}]\nupdate = \"rolling\"\n"))
        })
    })
}

struct Upheaval {
    /// Its release is the one that is active.
    sim: Sim,
    /// What is on its way, and the places it was given.
    rollout: Option<Rollout>,
    staged: Assignments,
    stage: Stage,
    /// What runs in this phase.
    effective: Release,
    passed: BTreeSet<String>,
    number: u64,
    switches: usize,
    holds: BTreeMap<String, Hold>,
    failing: BTreeSet<String>,
    clock: i64,
    blind: bool,
    stops: Stops,
    steps: usize,
}

impl Upheaval {
    fn new(first: &str, nodes: usize) -> Self {
        let sim = Sim::new(nodes, release(1, first));
        let effective = sim.release.clone();
        let mut world = Self {
            sim,
            rollout: None,
            staged: Assignments::new(),
            stage: Stage::default(),
            effective,
            passed: BTreeSet::new(),
            number: 1,
            switches: 0,
            holds: BTreeMap::new(),
            failing: BTreeSet::new(),
            clock: 0,
            blind: false,
            stops: Stops::default(),
            steps: 0,
        };
        let one = world.sim.snapshot.nodes.values_mut().next().unwrap();
        one.containers.push(foreign(1, None, 20000));
        one.containers.push(foreign(2, Some("other"), 20001));
        world
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.clock).unwrap()
    }

    fn happens(&mut self, upset: &Upset) {
        let node = |sim: &mut Sim, n: usize, state| {
            let name = NodeName::try_from(format!("node{n}")).unwrap();
            if let Some(node) = sim.snapshot.nodes.get_mut(&name) {
                node.state = state;
            }
        };
        match upset {
            Upset::Deploy(text) => {
                self.give_up();
                self.number += 1;
                self.rollout = Some(Rollout::new(release(self.number, text), self.now(), false));
            }
            Upset::Abort => self.give_up(),
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
            // What was seen to answer is written down, as are places, the releases with their phase and the last table.
            Upset::Forgets => {
                self.holds.clear();
                self.passed.clear();
                self.stops.are_forgotten(&mut self.sim);
            }
            Upset::Blind(blind) => self.blind = *blind,
            Upset::Drains(turns) => self.stops.turns = *turns,
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

    /// What is active is wanted again, whole.
    fn give_up(&mut self) {
        if self.rollout.take().is_some() {
            (self.staged, self.stage) = (Assignments::new(), Stage::default());
            self.passed.clear();
            self.holds.clear();
        }
    }

    fn frozen(&self) -> bool {
        let is_lost = |n: &&Node| matches!(n.state, NodeState::Lost { .. });
        let lost = self.sim.snapshot.nodes.values().filter(is_lost).count();
        lost > 1 && lost * 2 > self.sim.snapshot.nodes.len()
    }

    /// Where everything belongs; whether something of the release on its way finds no room.
    fn place(&mut self) -> bool {
        let frozen = self.frozen();
        let effective = self.rollout.as_ref().map(|rollout| rollout.effective(&self.sim.release));
        self.effective = effective.unwrap_or_else(|| self.sim.release.clone());
        let release = &self.effective;
        let placed = schedule::place(schedule::Input {
            release,
            frozen,
            beside: &schedule::Beside::ports_of(&self.staged),
            ..self.sim.input()
        });
        self.sim.assignments = placed.assignments;
        let Some(rollout) = &self.rollout else { return false };
        let placed = rollout::place(rollout::Input {
            rollout,
            release,
            places: &self.sim.assignments,
            staged: &self.staged,
            snapshot: &self.sim.snapshot,
            ports: [20000, 20100],
            frozen,
            doubts: &self.sim.doubts,
        });
        (self.staged, self.stage) = (placed.places, placed.stage);
        !placed.no_room.is_empty()
    }

    /// Ends the phase of what is on its way where it is over.
    fn advance(&mut self, no_room: bool) -> bool {
        let Some(rollout) = self.rollout.clone() else { return false };
        if no_room {
            self.give_up();
            return true;
        }
        if self.frozen() {
            return false;
        }
        let answered = |name: &str| self.sim.verified.contains_key(name);
        let pending = self.stage.pending(&self.sim.snapshot, answered, |name| self.passed.contains(name));
        let rolling = waited_for(&self.sim.assignments, &self.sim.snapshot, answered).map(|id| id.app).collect();
        let next = rollout::next(rollout::Look {
            rollout: &rollout,
            active: &self.sim.release,
            stage: &self.stage,
            pending: !pending.is_empty(),
            rolling: &rolling,
            shares: false,
        });
        match next {
            Next::Wait | Next::Try(_) => false,
            Next::Roll(apps) => {
                self.rollout = Some(Rollout { phase: Phase::Rolling { apps }, ..rollout });
                true
            }
            Next::Switch => {
                // What ran before and has fallen since is healed, and not waited for.
                for (name, place) in named(&self.stage.beside) {
                    let ready = self.sim.snapshot.nodes[&place.node].is_ready();
                    assert!(!ready || answered(&name), "{name} has not answered, and it is switched to");
                }
                self.switches += 1;
                self.sim.assignments = std::mem::take(&mut self.staged);
                self.sim.deploy(rollout.release);
                (self.rollout, self.stage) = (None, Stage::default());
                self.passed.clear();
                true
            }
        }
    }

    /// One turn of the loop; whether anything was done.
    fn turn(&mut self) -> bool {
        self.steps += 1;
        let mut no_room = self.place();
        let mut moved = false;
        while self.advance(no_room) {
            moved = true;
            no_room = self.place();
        }
        let routed = (!self.blind).then_some(&self.sim.table);
        let staged = |rollout| Staged { release: rollout, stage: &self.stage, passed: &self.passed };
        let decision = diff(World {
            routed,
            now: self.now(),
            release: &self.effective,
            previous: if self.rollout.is_some() { Some(&self.sim.release) } else { self.sim.previous.as_ref() },
            staged: self.rollout.as_ref().map(|rollout| staged(&rollout.release)),
            ..self.sim.world(&self.holds)
        });
        let beside = self.stage.names();
        let table = routes::table(routes::Input {
            cloud: &self.sim.cloud,
            release: &self.effective,
            assignments: &self.sim.assignments,
            snapshot: &self.sim.snapshot,
            verified: &self.sim.verified,
            leaving: &decision.leaving.union(&beside).cloned().collect(),
            last: &self.sim.table,
            trial: None,
        });
        self.stops.keep_needed(&self.sim.snapshot, &decision.leaving);
        let served = table.apps.values().flat_map(|app| app.backends.iter()).filter(|(_, b)| b.serving);
        for (name, _) in served {
            assert!(!beside.contains(name), "{name} gets requests before the switch");
        }
        moved |= table != self.sim.table;
        for action in &decision.actions {
            // Some action before it may have ended the rollout: the next turn decides anew.
            let number = self.rollout.as_ref().map(|rollout| rollout.release.number);
            self.acts(action);
            if number != self.rollout.as_ref().map(|rollout| rollout.release.number) {
                break;
            }
        }
        self.sim.table = table;
        moved |= self.stops.any();
        self.stop_on();
        moved || !decision.actions.is_empty()
    }

    /// Time passes for what drains.
    fn stop_on(&mut self) {
        for action in self.stops.fail(&self.sim.snapshot) {
            let until = Timestamp::from_second(self.clock + 5).unwrap();
            self.holds
                .insert(action.container().to_owned(), Hold { until, failures: 1, why: "it does not answer".into() });
        }
        for action in self.stops.signals() {
            self.signal(&action);
        }
        for action in self.stops.ends() {
            let name = action.container();
            let there = |node: &Node| node.containers.iter().any(|c| c.name == name);
            if there(&self.sim.snapshot.nodes[action.node()]) {
                self.sim.act(&action);
            }
            self.sim.verified.remove(name);
        }
    }

    /// What gets its signal answers no more: somebody else has to.
    fn signal(&mut self, action: &Action) {
        let (app, name) = (action.instance().app.clone(), action.container());
        let node = &self.sim.snapshot.nodes[action.node()];
        let Some(container) = node.containers.iter().find(|c| c.name == name) else { return };
        let routed = self.sim.table.apps.values().any(|app| app.backends.contains_key(name));
        assert!(!routed, "{name} gets its signal while requests are sent to it");
        // A plan that gives an application's fixed port to another one means it.
        let there = |port| container.published.values().any(|p| *p == port);
        let mut others = self.sim.assignments.iter();
        let evicted = others.any(|(id, place)| id.app != app && place.node == node.name && there(place.host_port));
        let active = named(&self.sim.assignments).any(|(active, _)| active == name);
        let runs = container.state == ContainerState::Running;
        assert!(!active || !runs, "{name} gets its signal, though what runs in this phase wants it");
        let before = self.serving(&app);
        self.sim.verified.remove(name);
        if self.effective.plan.apps.get(&app).is_none_or(|app| app.count() == 0) {
            return;
        }
        let lost = |node: &Node| matches!(node.state, NodeState::Lost { .. });
        let reached = |place: &schedule::Assignment| !lost(&self.sim.snapshot.nodes[&place.node]);
        let placed = || self.sim.assignments.iter().filter(|(id, place)| id.app == app && reached(place));
        // One instance on a fixed port has to go before the next comes, also where it is the only one in reach.
        let forced = evicted || placed().all(|(_, place)| place.pinned_port) && placed().count() <= 1;
        assert!(before == 0 || self.serving(&app) > 0 || forced, "{action}: the last of {app} that serves");
    }

    fn acts(&mut self, action: &Action) {
        assert!(self.sim.snapshot.nodes[action.node()].is_ready(), "{action}: its node does not answer");
        if self.stops.has(action.container()) {
            return;
        }
        let app = action.instance().app.clone();
        match action {
            Action::Stop { name, .. } => {
                assert!(!self.blind, "{name} is stopped while nobody knows who gets requests");
                let active = named(&self.sim.assignments).any(|(active, _)| active == *name);
                assert!(!active, "{name} is stopped, though what runs in this phase wants it");
                if self.stops.turns == 0 {
                    self.signal(action);
                    self.sim.act(action);
                } else {
                    self.stops.begin(action);
                }
            }
            Action::Start { container, .. } | Action::Verify { container, .. } => {
                let held = self.holds.get(&container.name).is_some_and(|hold| hold.until > self.now());
                assert!(!held, "{action}: it is tried before its time");
                self.sim.act(action);
            }
        }
        if let Action::Verify { container, reason: Reason::CheckChanged, .. } = action {
            self.passed.insert(container.name.clone());
        }
        if let Action::Start { container, .. } | Action::Verify { container, .. } = action
            && self.failing.contains(app.as_str())
        {
            self.sim.verified.remove(&container.name);
            let failures = self.holds.get(&container.name).map_or(0, |hold| hold.failures) + 1;
            let until = Timestamp::from_second(self.clock + 5).unwrap();
            self.passed.remove(&container.name);
            self.holds.insert(container.name.clone(), Hold { until, failures, why: "it does not answer".into() });
            let rolling = |rollout: &Rollout| matches!(&rollout.phase, Phase::Rolling { apps } if apps.contains(&app));
            let of_it = self.stage.names().contains(&container.name) || self.rollout.as_ref().is_some_and(rolling);
            if failures > 2 && of_it {
                self.give_up();
            }
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

fn named(places: &Assignments) -> impl Iterator<Item = (String, &schedule::Assignment)> {
    places.iter().map(|(id, a)| (ContainerSpec::name_of(id, &a.spec, &a.node, a.host_port), a))
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

/// An instance that has ended gave its port to its successor, whose release is not wanted any more.
#[test]
fn what_took_the_port_of_one_that_ended_gives_it_back() {
    let one = "[apps.a]\nimage = \"a:v1\"\nnodes = [\"node1\"]\npublish = 5050\n";
    let mut world = Upheaval::new(one, 1);
    world.happens(&Upset::Turns(2, 0));
    let before = world.sim.ours();
    world.happens(&Upset::Deploy(one.replace("v1", "v2")));
    world.happens(&Upset::Ends(0));
    world.happens(&Upset::Turns(1, 0));
    assert_ne!(world.sim.ours(), before, "the successor is there");
    world.happens(&Upset::Abort);
    world.mended();
    assert_eq!(world.sim.ours().difference(&before).filter(|name| !name.starts_with("foreign")).count(), 0);
    assert_eq!(world.sim.table.apps.values().map(|app| app.backends.len()).sum::<usize>(), 1, "it serves again");
}

/// What serves nobody is replaced first: else each would wait for the other.
#[test]
fn step_by_step_a_release_mends_what_does_not_answer_at_a_fixed_port() {
    let one = "[apps.a]\nupdate = \"rolling\"\nimage = \"a:v1\"\nnodes = [\"node1\", \"node2\"]\npublish = 5050\n";
    for number in 0..2 {
        let mut world = Upheaval::new(one, 2);
        world.happens(&Upset::Turns(2, 0));
        world.happens(&Upset::StartsAgain(number));
        world.happens(&Upset::Deploy(one.replace("v1", "v2")));
        world.mended();
        assert!(world.rollout.is_none());
        assert_eq!(world.sim.ours(), world.sim.wanted());
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
        let mut world = Upheaval::new(&first, nodes);
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
        // It may hold a port for ever that what is on its way wants: a release's deadline ends that.
        prop_assert!(homeless || world.rollout.is_none(), "what was on its way is active, or nothing of it is there");
        prop_assert!(world.steps > 0);
    }
}
