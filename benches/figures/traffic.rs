//! GETs through the gateway beside a VCL written by hand, over the same backends, in a varnishd as Debian starts it.

use crate::{
    deploys::Plan,
    report::{Figure, Goal, Other, Report, Unit},
    rig::{Lab, Res, Varnish, hand_written, noisy, run},
};

pub fn measure(lab: &Lab, report: &mut Report) -> Res<()> {
    let plan = Plan::new(lab, 1)?;
    plan.ours()?;
    let varnish = Varnish::plain(lab, 6083)?;
    let backends = lab.addresses()?.into_iter().map(|address| (address, 5050)).collect();
    varnish.load("hand", &hand_written(&[("app0".to_owned(), backends)]), None)?;
    let (mut ours, mut other, mut doubted) = (Vec::new(), Vec::new(), 0);
    // Many short turns: what else the machine does comes in waves longer than one of them.
    for round in 0..=20 {
        let noise = noisy();
        // Whoever is second finds a warmer machine: they change places.
        let (first, second) = if round % 2 == 0 { (6081, 6083) } else { (6083, 6081) };
        let (first, second) = (load(lab, first)?, load(lab, second)?);
        let (mine, theirs) = if round % 2 == 0 { (first, second) } else { (second, first) };
        if round > 0 {
            ours.push(mine);
            other.push(theirs);
            doubted += usize::from(noise);
        }
    }
    plan.nothing()?;
    report.add(Figure {
        name: "GETs through the gateway, beside a VCL written by hand".to_owned(),
        unit: Unit::PerSecond,
        ours,
        other: Other::Measured(other),
        goal: Goal::AtLeast(0.97),
        noisy: doubted,
    });
    Ok(())
}

/// Requests a second, from the lab's client.
fn load(lab: &Lab, port: u16) -> Res<f64> {
    let url = format!("http://10.10.10.1:{port}/app0/");
    let told = lab.inside("client", || run(std::process::Command::new("wrk").args(["-t1", "-c32", "-d2s", &url])))?;
    if let Some(errors) = told.lines().find(|l| l.contains("Non-2xx") || l.contains("Socket errors")) {
        return Err(format!("port {port}: {}", errors.trim()).into());
    }
    let line = told.lines().find_map(|l| l.strip_prefix("Requests/sec:")).ok_or("wrk said nothing")?;
    Ok(line.trim().parse()?)
}
