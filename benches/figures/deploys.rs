//! Deploys beside the least that must be done (every `docker run` at once over open connections) and beside the scripts
//! that came before (one machine, one container after the other).

use std::{
    fmt::Write as _,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use crate::{
    report::{Figure, Goal, Other, Report, Unit, note},
    rig::{Lab, Masters, Res, Varnish, all_answer, hand_written, noisy, processes, resident, run, timed},
};

/// Applications that are on every node, each on its own port: as many entries as applications times nodes.
pub struct Plan<'a> {
    lab: &'a Lab,
    addresses: Vec<String>,
    apps: usize,
}

const IMAGE: &str = "matrix-manager.matrix:5000/cloud/hello:latest";

impl<'a> Plan<'a> {
    pub fn new(lab: &'a Lab, apps: usize) -> Res<Self> {
        Ok(Self { lab, addresses: lab.addresses()?, apps })
    }

    fn port(app: usize) -> u16 {
        u16::try_from(5050 + app).unwrap_or(5050)
    }

    pub fn entries(&self) -> usize {
        self.apps * self.addresses.len()
    }

    fn deploy(&self, file: &str, text: &str) -> Res<()> {
        let path = self.lab.state_dir().join(file);
        std::fs::write(&path, text)?;
        run(self.lab.matrix(&["deploy", &path.display().to_string()])).map(drop)
    }

    fn text(&self) -> String {
        let nodes: Vec<_> = (1..=self.addresses.len()).map(|n| format!("\"node{n}\"")).collect();
        let app = |app| {
            format!(
                "[apps.app{app}]\nimage = \"hello\"\nnodes = [{}]\npublish = {}\n",
                nodes.join(", "),
                Self::port(app)
            )
        };
        (0..self.apps).map(app).collect()
    }

    /// Until every entry has answered through the gateway's Varnish.
    pub fn ours(&self) -> Res<f64> {
        let text = self.text();
        timed(|| {
            self.deploy("bench.toml", &text)?;
            let address = format!("{}:6081", self.lab.gateway);
            (0..self.apps).try_for_each(|app| all_answer(&address, &format!("/app{app}/"), self.addresses.len()))
        })
    }

    pub fn again(&self) -> Res<f64> {
        timed(|| self.deploy("bench.toml", &self.text()))
    }

    /// Nothing runs any more.
    pub fn nothing(&self) -> Res<()> {
        self.deploy("nothing.toml", "[apps.idle]\nimage = \"hello\"\nreplicas = 0\npath = false\n")
    }

    /// Every `docker run` at once; until every entry has answered by itself.
    fn floor(&self, masters: &Masters) -> Res<f64> {
        self.lab.inside("gateway", || {
            timed(|| {
                thread::scope(|scope| {
                    let entry = |app: usize, node: usize| {
                        let port = Self::port(app);
                        let mut docker = masters.on(node, &docker_run(app, port));
                        run(&mut docker)?;
                        all_answer(&format!("{}:{port}", self.addresses[node]), "/", 1)
                    };
                    let all: Vec<_> = (0..self.apps)
                        .flat_map(|app| (0..self.addresses.len()).map(move |node| (app, node)))
                        .map(|(app, node)| scope.spawn(move || entry(app, node)))
                        .collect();
                    all.into_iter()
                        .try_for_each(|one| one.join().unwrap_or_else(|_| Err("a thread ended badly".into())))
                })
            })
        })
    }

    /// One machine after the other stopped, one container after the other started, then the VCL.
    fn scripts(&self, varnish: &Varnish, round: usize) -> Res<f64> {
        let config = self.lab.run_dir().join("ssh_config");
        let ssh = |address: &str, command: &str| {
            let mut ssh = Command::new("ssh");
            ssh.arg("-F").arg(&config).args(["-l", "root", address, command]).stdin(Stdio::null());
            run(ssh)
        };
        self.lab.inside("gateway", || {
            timed(|| {
                for address in &self.addresses {
                    ssh(address, STOP_ALL)?;
                }
                for app in 0..self.apps {
                    for address in &self.addresses {
                        ssh(address, &docker_run(app, Self::port(app)))?;
                    }
                }
                let backends = |app| self.addresses.iter().map(|a| (a.clone(), Self::port(app))).collect();
                let apps: Vec<_> = (0..self.apps).map(|app| (format!("app{app}"), backends(app))).collect();
                varnish.load(&format!("scripts{round}"), &hand_written(&apps), None)?;
                (0..self.apps)
                    .try_for_each(|app| all_answer("127.0.0.1:6082", &format!("/app{app}/"), self.addresses.len()))
            })
        })
    }
}

const STOP_ALL: &str = "docker ps -aq | xargs -r docker rm -f";

fn docker_run(app: usize, port: u16) -> String {
    format!("docker run -d --restart always -e APP=app{app} -p {port}:8080 {IMAGE}")
}

pub fn measure(lab: &Lab, report: &mut Report) -> Res<()> {
    let plan = Plan::new(lab, 2)?;
    let masters = Masters::open(lab)?;
    masters.everywhere(&format!("docker pull -q {IMAGE}"))?;
    let varnish = Varnish::start(lab, 6082)?;
    let (mut ours, mut floor, mut scripts, mut again) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut doubted, mut doubted_again) = (0, 0);
    for round in 0..=5 {
        let noise = noisy();
        let ours_took = plan.ours()?;
        let noise_again = noisy();
        // Commands one after another, as a person or a pipeline gives them.
        let mut repeated = (0..5).map(|_| plan.again()).collect::<Res<Vec<_>>>()?;
        plan.nothing()?;
        settle();
        let noise = noisy() || noise;
        let (floor_took, scripts_took) = lab.paused(|| {
            let floor = plan.floor(&masters)?;
            masters.everywhere(STOP_ALL)?;
            settle();
            let scripts = plan.scripts(&varnish, round)?;
            masters.everywhere(STOP_ALL)?;
            Ok((floor, scripts))
        })?;
        settle();
        // The first round fills caches.
        if round > 0 {
            ours.push(ours_took);
            floor.push(floor_took);
            scripts.push(scripts_took);
            again.append(&mut repeated);
            doubted += usize::from(noise);
            doubted_again += 5 * usize::from(noise_again);
        }
    }
    let entries = plan.entries();
    report.add(Figure {
        name: format!("deploy, {entries} entries on 3 nodes, beside parallel docker run"),
        unit: Unit::Seconds,
        ours: ours.clone(),
        other: Other::Measured(floor),
        goal: Goal::AtMost(1.15),
        noisy: doubted,
    });
    report.add(Figure {
        name: format!("deploy, {entries} entries on 3 nodes, beside the scripts before"),
        unit: Unit::Seconds,
        ours,
        other: Other::Measured(scripts),
        goal: Goal::AtMost(0.5),
        noisy: doubted,
    });
    report.add(Figure {
        name: "deploy that changes nothing, 3 nodes".to_owned(),
        unit: Unit::Millis,
        ours: again.iter().map(|seconds| seconds * 1000.0).collect(),
        other: Other::Limit(100.0),
        goal: Goal::Below(1.0),
        noisy: doubted_again,
    });
    Ok(())
}

/// Ten nodes: a larger deploy, and what the manager keeps in memory after it.
pub fn measure_ten(lab: &Lab, report: &mut Report) -> Res<()> {
    lab.grow(10)?;
    let plan = Plan::new(lab, 3)?;
    let masters = Masters::open(lab)?;
    masters.everywhere(&format!("docker pull -q {IMAGE}"))?;
    let (mut ours, mut floor, mut memory, mut doubted) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for round in 0..=3 {
        let noise = noisy();
        let ours_took = plan.ours()?;
        memory.push(resident(lab.manager()?)?);
        plan.nothing()?;
        settle();
        let noise = noisy() || noise;
        let floor_took = lab.paused(|| {
            let floor = plan.floor(&masters)?;
            masters.everywhere(STOP_ALL)?;
            Ok(floor)
        })?;
        settle();
        if round > 0 {
            ours.push(ours_took);
            floor.push(floor_took);
            doubted += usize::from(noise);
        }
    }
    report.add(Figure {
        name: format!("deploy, {} entries on 10 nodes, beside parallel docker run", plan.entries()),
        unit: Unit::Seconds,
        ours,
        other: Other::Measured(floor),
        goal: Goal::AtMost(1.15),
        noisy: doubted,
    });
    report.add(Figure {
        name: format!("memory of the manager, 10 nodes, {} instances", plan.entries()),
        unit: Unit::Megabytes,
        ours: memory,
        other: Other::Limit(50.0),
        goal: Goal::Below(1.0),
        noisy: 0,
    });
    note(&sessions(lab)?);
    Ok(())
}

/// What the manager's ssh processes keep beside it.
fn sessions(lab: &Lab) -> Res<String> {
    let folder = lab.run_dir().join("ssh").display().to_string();
    let sizes: Vec<f64> = processes()
        .into_iter()
        .filter(|(_, words)| {
            words.first().is_some_and(|w| w.contains("ssh")) && words.iter().any(|w| w.contains(&folder))
        })
        .filter_map(|(pid, _)| resident(pid).ok())
        .collect();
    let mut text = String::new();
    write!(text, "its {} ssh sessions keep {:.1} MB beside it", sizes.len(), sizes.iter().sum::<f64>())?;
    Ok(text)
}

/// What was stopped is cleaned up behind the scenes for a while.
fn settle() {
    thread::sleep(Duration::from_millis(500));
}
