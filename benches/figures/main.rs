//! The figures this project is held to, ours beside others', on a lab of this machine: `make bench`.
//!
//! Each pair is measured in the same run, one after the other, several rounds; shown are medians, the spread, and the
//! median of the rounds' ratios. A figure that is short is told, and no failure; one that cannot be measured is.
//! `cargo bench --bench figures -- decide routes` measures only these: deploys, traffic, images, releases,
//! poweroff, kills, swarm, memory, routes, decide.

mod decide;
mod deploys;
mod images;
mod kills;
#[path = "../../tests/load/mod.rs"]
mod load;
mod poweroff;
mod releases;
mod report;
mod rig;
mod routes;
mod swarm;
mod traffic;

use std::process::ExitCode;

use report::Report;
use rig::{Lab, Res};

type Alone = fn(&mut Report) -> Res<()>;
type OnALab = fn(&Lab, &mut Report) -> Res<()>;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|w| w == name);
    let mut report = Report::default();
    let alone: [(&str, Alone); 2] = [("decide", decide::measure), ("routes", routes::measure)];
    for (name, measure) in alone {
        if wants(name)
            && let Err(error) = measure(&mut report)
        {
            report.failed(name, &error);
        }
    }
    let on_a_lab: [(&str, OnALab); 8] = [
        ("deploys", deploys::measure),
        ("traffic", traffic::measure),
        ("images", images::measure),
        ("releases", releases::measure),
        ("poweroff", poweroff::measure),
        ("kills", kills::measure),
        ("swarm", swarm::measure),
        ("memory", deploys::measure_ten),
    ];
    if on_a_lab.iter().any(|(name, _)| wants(name)) {
        match Lab::up(3).and_then(|lab| images::prepare(&lab).map(|()| lab)) {
            Ok(lab) => {
                for (name, measure) in on_a_lab {
                    if wants(name)
                        && let Err(error) = measure(&lab, &mut report)
                    {
                        report.failed(name, &error);
                    }
                }
            }
            Err(error) => report.failed("all that needs a lab", &error),
        }
    }
    if report.end() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
