//! What a run counted.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::faults::Fault;

/// Of one kind of fault.
#[derive(Debug, Default)]
struct Times {
    count: usize,
    lost: usize,
    detect: Vec<Duration>,
    reroute: Vec<Duration>,
    restore: Vec<Duration>,
}

#[derive(Debug, Default)]
pub struct Tally {
    faults: BTreeMap<Fault, Times>,
    pub requests: usize,
    pub posts: usize,
    pub lost: usize,
    /// POSTs that got no answer, by what became of them.
    pub lost_posts: BTreeMap<&'static str, usize>,
    pub messages: usize,
    pub releases: BTreeMap<&'static str, usize>,
    pub rounds: usize,
    pub failures: Vec<String>,
}

impl Tally {
    pub fn fault(
        &mut self,
        fault: Fault,
        lost: usize,
        detect: Option<Duration>,
        reroute: Duration,
        restore: Option<Duration>,
    ) {
        let times = self.faults.entry(fault).or_default();
        times.count += 1;
        times.lost += lost;
        times.detect.extend(detect);
        times.reroute.push(reroute);
        times.restore.extend(restore);
    }
}

fn span(values: &[Duration]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    match sorted.last() {
        None => "-".to_owned(),
        Some(worst) => format!("{:.1} / {:.1}", sorted[sorted.len() / 2].as_secs_f64(), worst.as_secs_f64()),
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: usize = self.faults.values().map(|t| t.count).sum();
        let releases: usize = self.releases.values().sum();
        writeln!(f, "{} rounds, {faults} faults, {releases} releases", self.rounds)?;
        writeln!(
            f,
            "{} requests ({} POSTs), {} lost, {} websocket messages",
            self.requests, self.posts, self.lost, self.messages
        )?;
        for (what, count) in &self.lost_posts {
            writeln!(f, "  {count} lost POSTs: {what}")?;
        }
        for (what, count) in &self.releases {
            writeln!(f, "  {count} × {what}")?;
        }
        writeln!(
            f,
            "{:<32} {:>5} {:>6} {:>14} {:>14} {:>14}",
            "seconds, median / worst", "times", "lost", "detect", "reroute", "restore"
        )?;
        for (fault, t) in &self.faults {
            let (detect, reroute, restore) = (span(&t.detect), span(&t.reroute), span(&t.restore));
            writeln!(f, "{:<32} {:>5} {:>6} {detect:>14} {reroute:>14} {restore:>14}", fault.name(), t.count, t.lost)?;
        }
        for failure in &self.failures {
            writeln!(f, "FAILED {failure}")?;
        }
        Ok(())
    }
}
