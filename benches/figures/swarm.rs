//! Swarm on the same nodes, under the same load: the engine has it built in. Its mesh wants IPVS, which not every kernel
//! brings, so its instances are found by name (an overlay network, `dnsrr`) by Debian's HAProxy, which runs in the swarm too.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use crate::{
    deploys::Plan,
    load::{Load, Report as Counted},
    poweroff,
    releases::{APPS, How, INSTANCES, count, deploy, gateway, mix, plan, under_load},
    report::{Figure, Goal, Other, Report, Unit, median, note},
    rig::{Lab, Masters, Res, matrix, run, until},
};

const IMAGE: &str = "matrix-manager.matrix:5000/cloud/hello:latest";
const EDGE: &str = "matrix-manager.matrix:5000/cloud/haproxy:latest";
const RATE: u32 = 200;
const TIME: Duration = Duration::from_secs(40);

pub fn measure(lab: &Lab, report: &mut Report) -> Res<()> {
    haproxy(lab)?;
    // Ours.
    deploy(lab, &plan(&APPS, How::Staged, 0))?;
    let mut took = Vec::new();
    let ours = under_load(lab, gateway(), mix(&APPS, RATE), TIME, |turn| {
        took.push(deploy(lab, &plan(&APPS, How::Staged, turn))?.as_secs_f64());
        thread::sleep(Duration::from_millis(500));
        Ok(())
    })?;
    note(&format!("matrix, {} releases of 3 × 3: {ours}", took.len()));
    let ours_off = poweroff::cut(lab, RATE)?;
    Plan::new(lab, 1)?.nothing()?;
    // Swarm's, while our manager sits still.
    let (theirs, theirs_took, off) = lab.paused(|| {
        let swarm = Swarm::up(lab)?;
        let mut took = Vec::new();
        let counted = under_load(lab, swarm.edge, mix(&APPS, RATE), TIME, |turn| {
            took.push(swarm.update(turn)?.as_secs_f64());
            thread::sleep(Duration::from_millis(500));
            Ok(())
        })?;
        note(&format!("Swarm, {} start-first updates of 3 × 3: {counted}", took.len()));
        let off = swarm.power_off()?;
        Ok((counted, took, off))
    })?;
    let pair = |name: &str, unit, ours: f64, theirs: f64| Figure {
        name: format!("{name}, {RATE}/s, beside Swarm"),
        unit,
        ours: vec![ours],
        other: Other::Measured(vec![theirs]),
        goal: Goal::AtMost(1.0),
        noisy: 0,
    };
    let p99 = |counted: &Counted| counted.percentile(99).as_secs_f64() * 1000.0;
    report.add(pair("release of 3 × 3, command to done", Unit::Seconds, median(&took), median(&theirs_took)));
    report.add(pair("lost in releases of 3 × 3", Unit::Count, count(ours.lost()), count(theirs.lost())));
    report.add(pair("p99 in releases of 3 × 3", Unit::Millis, p99(&ours), p99(&theirs)));
    report.add(pair("power-off, instances elsewhere", Unit::Seconds, ours_off.elsewhere, off.elsewhere));
    report.add(pair("power-off, lost", Unit::Count, count(ours_off.counted.lost()), count(off.counted.lost())));
    let worst = |counted: &Counted| counted.max().as_secs_f64();
    report.add(pair("power-off, longest wait", Unit::Seconds, worst(&ours_off.counted), worst(&off.counted)));
    Ok(())
}

/// Debian's HAProxy as an image in the lab's registry; its base is kept below target/.
fn haproxy(lab: &Lab) -> Res<()> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/apps/haproxy-base.tar");
    if !base.exists() {
        let made = base.with_extension("part.tar");
        fs::create_dir_all(base.parent().ok_or("no folder")?)?;
        run(matrix().args(["create-base", "haproxy-base", "--packages", "haproxy", "--output"]).arg(&made))?;
        fs::rename(&made, &base)?;
    }
    let folder = lab.state_dir().join("bench-haproxy");
    fs::create_dir_all(&folder)?;
    let backend = |app: &&str| {
        format!(
            "backend {app}\n  server-template s 8 {app}:8080 check inter 1s fall 2 rise 1 resolvers docker init-addr none\n"
        )
    };
    let backends: String = APPS.iter().map(backend).collect();
    fs::write(
        folder.join("haproxy.cfg"),
        format!(
            "defaults\n  mode http\n  timeout connect 300ms\n  timeout client 60s\n  timeout server 60s\n  retries 3\n  \
             option redispatch 1\n  retry-on conn-failure empty-response\n\
             resolvers docker\n  nameserver dns 127.0.0.11:53\n  timeout resolve 500ms\n  timeout retry 500ms\n  \
             hold valid 500ms\n  hold obsolete 0s\n\
             frontend edge\n  bind :8080\n  use_backend %[path,field(2,/)]\n{backends}"
        ),
    )?;
    fs::write(
        folder.join("image.toml"),
        "base = \"haproxy-base.tar\"\nfiles = [{ from = \"haproxy.cfg\", to = \"/etc/haproxy.cfg\", mode = \"0644\" }]\n\
         command = [\"haproxy\", \"-db\", \"-f\", \"/etc/haproxy.cfg\"]\nport = 8080\n",
    )?;
    let archive = lab.state_dir().join("bench-haproxy.tar");
    run(matrix()
        .args(["create-image", "haproxy"])
        .arg(&folder)
        .arg("--base")
        .arg(&base)
        .arg("--output")
        .arg(&archive))?;
    run(lab.matrix(&["install-image", &archive.display().to_string()])).map(drop)
}

struct Swarm<'a> {
    lab: &'a Lab,
    masters: Masters,
    edge: SocketAddr,
}

impl<'a> Swarm<'a> {
    fn up(lab: &'a Lab) -> Res<Self> {
        let addresses = lab.addresses()?;
        let swarm = Self { lab, masters: Masters::open(lab)?, edge: format!("{}:8088", addresses[0]).parse()? };
        swarm.docker(&format!("swarm init --advertise-addr {}", addresses[0]))?;
        let token = swarm.docker("swarm join-token -q worker")?;
        for node in 1..swarm.masters.nodes {
            let join = format!("docker swarm join --token {} {}:2377", token.trim(), addresses[0]);
            run(&mut swarm.masters.on(node, &join))?;
        }
        swarm.masters.everywhere(&format!("docker pull -q {EDGE}"))?;
        swarm.docker("network create -d overlay mesh")?;
        for app in APPS {
            swarm.docker(&format!(
                "service create -q --name {app} --network mesh --endpoint-mode dnsrr --replicas {INSTANCES} \
                 --update-order start-first --stop-grace-period 10s --env TURN=0 {IMAGE}"
            ))?;
        }
        swarm.docker(&format!(
            "service create -q --name edge --network mesh --constraint node.hostname==node1 \
             --publish mode=host,target=8080,published=8088 {EDGE}"
        ))?;
        until("Swarm's applications answer", 40, || {
            thread::sleep(Duration::from_millis(200));
            lab.inside("client", || {
                let ask = |app: &str| crate::load::request(swarm.edge, &format!("GET /{app}/ HTTP/1.1"));
                Ok(APPS.iter().all(|app| ask(app).is_ok_and(|answer| answer.status == 200)))
            })
        })?;
        thread::sleep(Duration::from_secs(3));
        Ok(swarm)
    }

    /// On the swarm's manager.
    fn docker(&self, command: &str) -> Res<String> {
        run(&mut self.masters.on(0, &format!("docker {command}")))
    }

    /// All applications at once, until Swarm calls each converged.
    fn update(&self, turn: usize) -> Res<Duration> {
        let begun = Instant::now();
        let update = |app: &&str| {
            let mut docker = self.masters.on(0, &format!("docker service update -q --env-add TURN={turn} {app}"));
            docker.stdout(std::process::Stdio::null()).spawn()
        };
        let children = APPS.iter().map(update).collect::<Result<Vec<Child>, _>>()?;
        for mut child in children {
            if !child.wait()?.success() {
                return Err("docker service update failed".into());
            }
        }
        Ok(begun.elapsed())
    }

    /// Not the node where its manager and its edge are: neither would be back.
    fn power_off(&self) -> Res<poweroff::Off> {
        let load = self.lab.inside("client", || Ok(Load::with(self.edge, mix(&APPS, RATE))))?;
        load.until(Duration::from_secs(3));
        let at = load.elapsed();
        let began = Instant::now();
        run(self.lab.lab(&["poweroff", poweroff::VICTIM]))?;
        until("Swarm runs them elsewhere", 90, || {
            thread::sleep(Duration::from_millis(100));
            let format = "'{{.Node}} {{.CurrentState}}'";
            let all = self
                .docker(&format!("service ps --filter desired-state=running --format {format} {}", APPS.join(" ")))?;
            let there = all.lines().filter(|l| l.contains(" Running") && !l.starts_with(poweroff::VICTIM)).count();
            Ok(there == APPS.len() * INSTANCES)
        })?;
        let elsewhere = began.elapsed().as_secs_f64();
        load.until(at + Duration::from_secs(15));
        let counted = load.quietly();
        note(&format!("Swarm, power-off: {counted}"));
        Ok(poweroff::Off { counted, at, elsewhere, explained: 0 })
    }
}

impl Drop for Swarm<'_> {
    fn drop(&mut self) {
        _ = run(self.lab.lab(&["boot", poweroff::VICTIM]));
        for node in (1..=self.masters.nodes).rev() {
            let leave = ["docker", "swarm", "leave", "--force"];
            _ = run(self.lab.lab(&[&["shell", &format!("node{node}"), "--"][..], &leave].concat()));
        }
    }
}
