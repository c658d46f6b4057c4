//! Everything breaks, under load, while releases go out: `make chaos`. Root, a lab of three nodes.
//!
//! `SEED=n` decides plans, releases and faults; `ROUNDS=n` and `MINUTES=n` bound it; `ROUND=k` runs one round alone. After
//! each round all is mended, and what must hold is looked at: `checks.rs`. What may be lost, and why: `faults.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::format_push_string, missing_docs, dead_code)]

mod checks;
#[path = "../lab/cloud.rs"]
mod cloud;
mod dice;
mod faults;
#[path = "../load/mod.rs"]
mod load;
mod plans;
#[path = "../lab/rig.rs"]
mod rig;
#[path = "../lab/skewed_engine.rs"]
mod skewed_engine;
mod tally;
mod watch;

use std::{
    collections::BTreeMap,
    env,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use checks::Ledger;
use cloud::{SmallDisk, written};
use dice::Dice;
use faults::{Fault, Thaw};
use load::{Asked, Fate, Flow, Kind, Load, Mix, Report};
use plans::{App, Plan, Release};
use rig::{Lab, Ran, run};
use tally::Tally;
use watch::Watch;

pub const NODES: [&str; 3] = ["node1", "node2", "node3"];
/// The node whose disk is filled: a small one.
pub const SMALL: &str = "node3";
const EVENTS: u64 = 4;
const RATE: u32 = 100;

struct Cloud {
    /// Taken away before the lab is.
    _disk: SmallDisk,
    pub lab: Lab,
    /// On each node: a container of nobody's, as it was.
    pub foreign: BTreeMap<&'static str, String>,
}

impl Cloud {
    fn up() -> Self {
        let lab = Lab::up(&NODES);
        let disk = SmallDisk::under(&lab, SMALL, "256m");
        lab.ready(&NODES);
        for tag in ["v1", "v2"] {
            lab.hello(&format!("hello:{tag}"), &[("APP", tag)]);
        }
        let mut cloud = Self { lab, foreign: BTreeMap::new(), _disk: disk };
        for node in NODES {
            let image = "matrix-manager.matrix:5000/cloud/hello:v1";
            cloud.lab.on(node, &["docker", "run", "-d", "--restart=always", "--name", "foreign", image]).ok();
            cloud.foreign.insert(node, cloud.foreign_on(node));
        }
        cloud
    }

    pub fn foreign_on(&self, node: &str) -> String {
        self.lab.on(node, &["docker", "inspect", "-f", "{{.Id}} {{.State.Running}}", "foreign"]).out.trim().to_owned()
    }

    /// `matrix ARGS…`, at most two minutes.
    fn matrix(&self, args: &[&str]) -> Ran {
        let mut command = Command::new("timeout");
        command.args(["-s", "KILL", "120"]).arg(rig::matrix().get_program());
        for variable in ["MATRIX_LAB", "MATRIX_MANAGER", "MATRIX_TOKEN"] {
            command.env_remove(variable);
        }
        run({
            command.arg("--manager").arg(self.lab.socket()).args(args);
            command
        })
    }

    pub fn deploy(&self, plan: &str) -> Ran {
        let file = written(plan);
        self.matrix(&["deploy", file.path().to_str().unwrap()])
    }

    fn release(&self, release: &Release) -> Ran {
        match release {
            Release::Good(_, plan) | Release::Bad(plan) => self.deploy(&plan.text()),
            Release::Back => self.matrix(&["rollback"]),
            Release::Staged(plan, activated) => {
                let file = written(&plan.text());
                let staged = self.matrix(&["deploy", "--stage", file.path().to_str().unwrap()]);
                if staged.code != 0 {
                    return staged;
                }
                thread::sleep(Duration::from_millis(500));
                self.matrix(&[if *activated { "activate" } else { "abort" }])
            }
        }
    }
}

/// A fault that struck, in the load's time.
struct Event {
    fault: Fault,
    what: String,
    struck: Instant,
    held: Duration,
    ended: Instant,
    with_release: bool,
}

struct Run {
    cloud: Cloud,
    seed: u64,
    tally: Tally,
}

impl Run {
    fn new(seed: u64) -> Self {
        eprintln!("chaos: seed {seed}");
        Self { cloud: Cloud::up(), seed, tally: Tally::default() }
    }

    /// The faults of a round: all of them have had their turn before one comes again.
    fn faults(&self, round: u64, count: u64) -> Vec<Fault> {
        let all = Fault::ALL.len() as u64;
        let fault = |at: u64| {
            let mut deck = Fault::ALL;
            Dice::new(self.seed, 1_000_000 + at / all).shuffle(&mut deck);
            deck[usize::try_from(at % all).unwrap()]
        };
        (round * EVENTS..round * EVENTS + count).map(fault).collect()
    }

    fn round(&mut self, number: u64, faults: &[Fault]) {
        eprintln!("chaos: round {number} (alone: SEED={} ROUND={number} make chaos)", self.seed);
        let _thaw = Thaw(self.cloud.lab.name.clone());
        let mut wrong = Vec::new();
        let mut dice = Dice::new(self.seed, number);
        let mut plan = Plan::random(&mut dice);
        eprintln!("{}", plan.text().lines().map(|l| format!("    {l}")).collect::<Vec<_>>().join("\n"));
        // Twice: what a rollback goes back to has the same applications.
        let mut before = plan.clone();
        before.apps.iter_mut().for_each(App::turn);
        self.cloud.deploy(&before.text());
        let ran = self.cloud.deploy(&plan.text());
        if ran.code != 0 {
            wrong.push(format!("the first deploy failed: {}{}", ran.out, ran.err));
        }
        wrong.extend(checks::well(&self.cloud, 30));
        let mix = Mix { paths: plan.paths(), rate: RATE, posts: 10, slow: 3, fresh: 30, sockets: plan.paths() };
        let state = self.cloud.lab.state_dir();
        let flow = Flow::start(&state.join("varnish"), state.join("flow.log")).unwrap();
        let load = Load::with(self.cloud.lab.varnish(), mix);
        let watch = Watch::start(self.cloud.lab.socket());
        thread::sleep(Duration::from_secs(1));
        let mut events = Vec::new();
        for fault in faults {
            let release = dice.chance(50).then(|| plan.next(&mut dice));
            let (event, said) = self.event(*fault, release.as_ref(), &mut plan, &mut dice);
            if let Some(release) = release {
                *self.tally.releases.entry(release.what()).or_default() += 1;
            }
            events.push(event);
            wrong.extend(said);
            thread::sleep(Duration::from_millis(500));
        }
        thread::sleep(Duration::from_millis(500));
        let report = load.stop();
        wrong.extend(self.accounted(&report, &events, &watch, &flow.read(), &plan));
        drop(watch);
        wrong.extend(checks::all(&self.cloud, &plan));
        self.tally.rounds += 1;
        if !wrong.is_empty() {
            // Before the lab goes, and its logs with it.
            let kept = format!("target/chaos-{}-{number}-matrix.log", self.seed);
            _ = std::fs::write(&kept, self.cloud.lab.log("matrix"));
            eprintln!("  {} things are wrong; the manager's log: {kept}", wrong.len());
        }
        for what in wrong.into_iter().take(12) {
            eprintln!("  WRONG: {what}");
            self.tally.failures.push(format!("SEED={} ROUND={number}: {what}", self.seed));
        }
    }

    /// A fault strikes, perhaps while a release goes out; it is mended, and all is well again.
    fn event(&self, fault: Fault, release: Option<&Release>, plan: &mut Plan, dice: &mut Dice) -> (Event, Vec<String>) {
        let mut wrong = Vec::new();
        let held = fault.hold(dice);
        let (first, second) = (dice.between(0, 1500), dice.between(0, 1500));
        let cloud = &self.cloud;
        let (what, struck, ran) = thread::scope(|scope| {
            let going = release.map(|release| {
                scope.spawn(move || {
                    thread::sleep(Duration::from_millis(first));
                    cloud.release(release)
                })
            });
            if going.is_some() {
                thread::sleep(Duration::from_millis(second));
            }
            let struck = Instant::now();
            let (what, mend) = fault.strike(cloud, dice);
            thread::sleep(held);
            mend(cloud);
            (what, struck, going.map(|thread| thread.join().unwrap()))
        });
        let seconds = held.as_secs_f64();
        let with = release.map(|r| format!(", {} meanwhile", r.what())).unwrap_or_default();
        eprintln!("  {} ({what}) for {seconds:.1} s{with}", fault.name());
        if let (Some(release), Some(ran)) = (release, ran) {
            wrong.extend(self.released(fault, release, &ran, plan));
        }
        wrong.extend(checks::well(cloud, 60).map(|text| format!("{} ({what}): {text}", fault.name())));
        (Event { fault, what, struck, held, ended: Instant::now(), with_release: release.is_some() }, wrong)
    }

    /// What a release came to, as it should have; at the end the plan that is meant is out.
    fn released(&self, fault: Fault, release: &Release, ran: &Ran, plan: &mut Plan) -> Vec<String> {
        let mut wrong = Vec::new();
        let text = format!("{} during {}: exit {}: {}{}", release.what(), fault.name(), ran.code, ran.out, ran.err);
        if ran.code == 137 {
            wrong.push(format!("it hangs: {text}"));
        }
        match release {
            Release::Good(_, next) | Release::Staged(next, true) => {
                if ran.code == 0 {
                    plan.clone_from(next);
                } else if !fault.may_fail_releases() {
                    wrong.push(text);
                }
            }
            Release::Bad(_) if ran.code == 0 => wrong.push(format!("it went out: {text}")),
            Release::Staged(_, false) if ran.code != 0 && !fault.may_fail_releases() => wrong.push(text),
            Release::Bad(_) | Release::Back | Release::Staged(..) => {}
        }
        // Whatever became of it: this is what should run. The cloud may be busy with the last for a while.
        let patience = Instant::now() + Duration::from_secs(90);
        for turn in 0.. {
            let ran = self.cloud.deploy(&plan.text());
            if ran.code == 0 {
                return wrong;
            }
            // What was staged when the fault struck waits for its word.
            if turn == 5 {
                self.cloud.matrix(&["abort"]);
            }
            if Instant::now() > patience {
                wrong.push(format!("{} cannot be put right for 90 s: {}{}", release.what(), ran.out, ran.err));
                return wrong;
            }
            thread::sleep(Duration::from_secs(1));
        }
        wrong
    }

    /// Every request was answered, or is lost by a fault that may cost it; no POST was carried out twice.
    fn accounted(
        &mut self,
        report: &Report,
        events: &[Event],
        watch: &Watch,
        fates: &BTreeMap<String, Fate>,
        plan: &Plan,
    ) -> Vec<String> {
        let ledger = Ledger::read(&self.cloud);
        let mut wrong = Vec::new();
        let since = |at: Instant| at.saturating_duration_since(report.began);
        let within = |asked: &Asked, event: &Event, cost: Duration| {
            asked.ended() >= since(event.struck) && asked.due <= since(event.struck) + cost
        };
        let mut lost = vec![0; events.len()];
        for asked in report.losses() {
            let due = asked.due.as_secs_f64();
            let path = &report.paths[asked.path];
            let costs = |cost: fn(&faults::Cost) -> Duration| {
                let covers = |event: &Event| within(asked, event, cost(&event.fault.cost(event.held)));
                events.iter().rposition(covers)
            };
            let post = || costs(|cost| cost.posts).filter(|_| asked.kind == Kind::Post);
            // One of two gives its fixed port to its successor, the fault takes the other: nobody is left.
            let app = plan.apps.iter().find(|app| *path == format!("/{}/", app.name));
            let alone = app.is_some_and(|app| app.publish.is_some() && app.count() <= 2);
            let both = || {
                let takes = |event: &Event| event.with_release && event.fault.takes_instances();
                events.iter().rposition(|event| takes(event) && within(asked, event, faults::REPLACED))
            };
            let by = costs(|cost| cost.any).or_else(post).or_else(|| both().filter(|_| alone));
            match by {
                Some(event) => lost[event] += 1,
                None => wrong.push(format!("lost at {due:.3} s: {:?} {path}: {}", asked.kind, asked.why())),
            }
            if let Some(id) = &asked.id {
                let any = both().is_some_and(|_| alone)
                    || by.is_some_and(|at| within(asked, &events[at], events[at].fault.cost(events[at].held).any));
                let flowed = fates.get(id).is_some_and(|fate| fate.flowed);
                let fate = match (by, ledger.done(id), ledger.begun(id)) {
                    (None, ..) => "nobody knows why",
                    (_, 1.., _) => "carried out by an instance whose answer was lost",
                    (_, 0, true) => "begun by an instance that died",
                    (_, 0, false) if flowed => {
                        "its body had begun to flow to an instance that died: it is not sent again"
                    }
                    _ if any => "there was nobody to take it",
                    _ => "NOT EXPLAINED",
                };
                if fate == "NOT EXPLAINED" {
                    wrong.push(format!(
                        "POST {id} at {due:.3} s was lost, though its body had not begun to flow: {}",
                        asked.why()
                    ));
                }
                *self.tally.lost_posts.entry(fate).or_default() += 1;
            }
        }
        wrong.extend(ledger.twice().into_iter().map(|id| format!("POST {id} was carried out twice")));
        let full = events.iter().any(|e| e.fault == Fault::DiskFull);
        for asked in report.asked.iter().filter(|a| a.is_good() && !full) {
            if let Some(id) = asked.id.as_ref().filter(|id| ledger.done(id) == 0) {
                wrong.push(format!("POST {id} was answered, but no instance knows of it"));
            }
        }
        for (at, why) in &report.sockets.broken {
            let allowed = events.iter().any(|event| {
                // A silence is noticed ten seconds later.
                let end = since(event.ended) + Duration::from_secs(11);
                event.fault.cost(event.held).sockets && *at >= since(event.struck) && *at <= end
            });
            if !allowed {
                wrong.push(format!("a websocket broke at {:.3} s: {why}", at.as_secs_f64()));
            }
        }
        for (event, lost) in events.iter().zip(lost) {
            let (from, to) = (since(event.struck), since(event.ended));
            let affected = report.asked.iter().filter(|a| a.due >= from && a.due <= to);
            let slow = Duration::from_secs(1);
            let reroute =
                affected.filter(|a| !a.is_good() || a.waited() > slow).map(|a| a.due.saturating_sub(from)).max();
            let seen = (!event.with_release)
                .then(|| (watch.detected(event.struck), watch.restored_until(event.struck, event.ended)));
            let (detect, restore) = seen.unwrap_or_default();
            let detect = detect.filter(|d| event.struck + *d <= event.ended);
            self.tally.fault(event.fault, lost, detect, reroute.unwrap_or_default(), restore);
            let shown = |d: Option<Duration>| d.map_or_else(|| "-".to_owned(), |d| format!("{:.1} s", d.as_secs_f64()));
            let at = since(event.struck).as_secs_f64();
            eprintln!(
                "  at {at:.1} s {} ({}): {lost} lost, detected {}, rerouted {}, restored {}",
                event.fault.name(),
                event.what,
                shown(detect),
                shown(reroute),
                shown(restore)
            );
        }
        self.tally.requests += report.total();
        self.tally.posts += report.asked.iter().filter(|a| a.kind == Kind::Post).count();
        self.tally.lost += report.lost();
        self.tally.messages += report.sockets.echoed;
        wrong
    }

    fn end(self) {
        eprintln!("\nchaos, seed {}\n{}", self.seed, self.tally);
        assert!(self.tally.failures.is_empty(), "{} failures", self.tally.failures.len());
    }
}

fn setting(name: &str) -> Option<u64> {
    env::var(name)
        .ok()
        .filter(|text| !text.is_empty())
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Part of `make test`: about a minute, always the same.
#[test]
fn a_short_round_loses_nothing_that_is_not_explained() {
    let mut run = Run::new(1);
    run.round(0, &[Fault::ProcessKilled, Fault::ManagerKilled, Fault::NodeOff]);
    run.end();
}

#[test]
#[ignore = "make chaos"]
fn chaos() {
    let seed = setting("SEED").unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() % 100_000);
    let minutes = setting("MINUTES").unwrap_or(13);
    let begun = Instant::now();
    let mut run = Run::new(seed);
    let rounds = match setting("ROUND") {
        Some(alone) => alone..alone + 1,
        None => 0..setting("ROUNDS").unwrap_or(u64::MAX),
    };
    for number in rounds {
        // A round takes up to two minutes.
        if begun.elapsed() + Duration::from_secs(90) > Duration::from_secs(minutes * 60) && number > 0 {
            break;
        }
        let faults = run.faults(number, EVENTS);
        run.round(number, &faults);
    }
    run.end();
}
