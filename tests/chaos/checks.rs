//! What must hold when all is mended.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    Cloud, NODES,
    faults::processes,
    plans::Plan,
    rig::run,
    watch::{status, whole},
};

/// What happened to POSTs, as the instances wrote it down themselves: of each id, how often its head was read, and how
/// often its whole body.
#[derive(Debug, Default)]
pub struct Ledger(BTreeMap<String, (u32, u32)>);

impl Ledger {
    pub fn read(cloud: &Cloud) -> Self {
        let mut ledger = Self::default();
        for node in NODES {
            let folder = cloud.lab.state_dir().join("nodes").join(node).join("docker/volumes/ledger/_data");
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let text = fs::read(entry.path()).unwrap_or_default();
                for line in String::from_utf8_lossy(&text).lines() {
                    if let Some((what, id)) = line.split_once(' ') {
                        let (begun, done) = ledger.0.entry(id.to_owned()).or_default();
                        *if what == "done" { done } else { begun } += 1;
                    }
                }
            }
        }
        ledger
    }
    pub fn begun(&self, id: &str) -> bool {
        self.0.get(id).is_some_and(|(begun, _)| *begun > 0)
    }
    pub fn done(&self, id: &str) -> u32 {
        self.0.get(id).map_or(0, |(_, done)| *done)
    }
    /// Ids of POSTs that were carried out more than once.
    pub fn twice(&self) -> Vec<&str> {
        self.0.iter().filter(|(_, (_, done))| *done > 1).map(|(id, _)| id.as_str()).collect()
    }
}

/// What it takes for something to hold, at most so long; otherwise, what is wrong.
fn soon(seconds: u64, mut wrong: impl FnMut() -> Option<String>) -> Option<String> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        let found = wrong()?;
        if Instant::now() > deadline {
            return Some(found);
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Waits until all is well; otherwise what the manager says.
pub fn well(cloud: &Cloud, seconds: u64) -> Option<String> {
    soon(seconds, || {
        let status = status(&cloud.lab.socket());
        // A disk that was emptied is looked at again within seconds.
        let full = |node: &serde_json::Value| node["disk_full"] == true;
        let roomy = |status: &serde_json::Value| !status["nodes"].as_object().is_some_and(|all| all.values().any(full));
        if status.as_ref().is_some_and(|status| whole(status) && roomy(status)) {
            return None;
        }
        let Some(status) = status else { return Some("the manager does not answer".to_owned()) };
        Some(format!("after {seconds} s not all is well:\n{}", brief(&status)))
    })
}

fn brief(status: &serde_json::Value) -> String {
    let mut text =
        format!("settled {}, gateway {}, problems {}\n", status["settled"], status["gateway_up"], status["problems"]);
    for (name, node) in status["nodes"].as_object().into_iter().flatten() {
        text += &format!("{name} {} {}\n", node["state"], node["trouble"]);
    }
    for (name, app) in status["applications"].as_object().into_iter().flatten() {
        for i in app["instances"].as_array().into_iter().flatten() {
            text += &format!(
                "{name} wants {}: {} {} {} {}\n",
                app["wanted"], i["instance"], i["node"], i["state"], i["why"]
            );
        }
    }
    text
}

/// Everything that does not hold.
pub fn all(cloud: &Cloud, plan: &Plan) -> Vec<String> {
    let checks = [
        again(cloud, plan),
        soon(15, || instances(cloud, plan)),
        foreign(cloud),
        soon(40, || vcls(cloud, plan)),
        soon(15, || masters(cloud)),
        sockets(cloud),
        descriptors(cloud),
    ];
    checks.into_iter().flatten().collect()
}

fn again(cloud: &Cloud, plan: &Plan) -> Option<String> {
    let ran = cloud.deploy(&plan.text());
    let same = ran.code == 0 && ran.out.contains("nothing to change");
    (!same).then(|| format!("a repeated deploy does something: {}{}", ran.out, ran.err))
}

/// The engines' own word: exactly what the manager says there is, as many as the plan wants, nothing stopped beside it.
fn instances(cloud: &Cloud, plan: &Plan) -> Option<String> {
    let said: BTreeSet<_> = cloud.lab.instances().into_iter().map(|i| (i.node, i.container)).collect();
    let there: BTreeSet<_> = NODES
        .iter()
        .flat_map(|node| cloud.lab.containers(node).into_keys().map(|name| ((*node).to_owned(), name)))
        .collect();
    if said != there {
        return Some(format!("the manager says {said:?}, the engines have {there:?}"));
    }
    for app in &plan.apps {
        let count = there.iter().filter(|(_, name)| name.starts_with(&format!("{}.", app.name))).count();
        if count != app.count() {
            return Some(format!("{} has {count} instances, the plan wants {}: {there:?}", app.name, app.count()));
        }
    }
    let wanted: usize = plan.apps.iter().map(crate::plans::App::count).sum();
    (there.len() != wanted).then(|| format!("{} containers, not {wanted}: {there:?}", there.len()))
}

fn foreign(cloud: &Cloud) -> Option<String> {
    NODES.iter().find_map(|node| {
        let now = cloud.foreign_on(node);
        let before = &cloud.foreign[*node];
        soon(10, || {
            (now != *before && cloud.foreign_on(node) != *before)
                .then(|| format!("{node}'s foreign container was {before}, is {now}"))
        })
    })
}

/// One root, one VCL and one or two labels for each application, perhaps what new labels stand for; and what others loaded.
fn vcls(cloud: &Cloud, plan: &Plan) -> Option<String> {
    let workdir = cloud.lab.state_dir().join("varnish").display().to_string();
    let list = cloud.lab.gateway(&["varnishadm", "-n", &workdir, "vcl.list"]).out;
    // A worker of varnishd holds what it used last until it works again: discarded, but not yet gone.
    let kept = list.lines().filter(|line| !line.starts_with("discarded"));
    let names: Vec<_> = kept.filter_map(|l| l.split_whitespace().find(|w| w.starts_with("matrix_"))).collect();
    let of = |start: &str| names.iter().filter(|name| name.starts_with(start)).count();
    let (roots, versions, second) = (of("matrix_root_"), of("matrix_vcl_"), of("matrix_second_app_"));
    let first = of("matrix_app_");
    let others = names.len() - roots - versions - second - first - of("matrix_nothing");
    let apps = plan.apps.len();
    // A varnishd that came back has only the labels that are in use.
    let has_one = |app: &crate::plans::App| {
        ["matrix_app_", "matrix_second_app_"].iter().any(|label| names.contains(&&*format!("{label}{}", app.name)))
    };
    let labelled = plan.apps.iter().all(has_one) && first.max(second) <= apps;
    (roots != 1 || versions != apps || !labelled || others > 0)
        .then(|| format!("VCL is left over, or lacks ({apps} applications):\n{list}"))
}

/// One ssh master a node.
fn masters(cloud: &Cloud) -> Option<String> {
    let mut pgrep = Command::new("pgrep");
    pgrep.args(["-a", "-f", "--", &format!("ssh -S {}/", cloud.lab.run_dir().join("ssh").display())]);
    let found = run(pgrep).out;
    (found.lines().count() != NODES.len()).then(|| format!("not one ssh master a node:\n{found}"))
}

fn sockets(cloud: &Cloud) -> Option<String> {
    let mut find = Command::new("find");
    find.arg(cloud.lab.run_dir()).args(["-type", "s"]);
    let found = run(find).out;
    // The manager's, and a node's master and engine.
    (found.lines().count() > 1 + 2 * NODES.len()).then(|| format!("sockets are left over:\n{found}"))
}

fn descriptors(cloud: &Cloud) -> Option<String> {
    let manager = *processes(&cloud.lab, "svc-matrix", "matrix").first()?;
    let open = fs::read_dir(format!("/proc/{manager}/fd")).map_or(0, Iterator::count);
    (open > 150).then(|| format!("the manager has {open} files open"))
}
