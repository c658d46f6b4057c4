//! One figure, one line: name, ours, the other's, the ratio, pass or short.
//!
//! Measures nothing itself.

use std::fmt;

/// What the ratio of ours to the other's has to be.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    AtMost(f64),
    AtLeast(f64),
    Below(f64),
}

impl Goal {
    fn met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(goal) => ratio <= goal,
            Self::AtLeast(goal) => ratio >= goal,
            Self::Below(goal) => ratio < goal,
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(goal) => write!(f, "≤ {goal}"),
            Self::AtLeast(goal) => write!(f, "≥ {goal}"),
            Self::Below(goal) => write!(f, "< {goal}"),
        }
    }
}

/// What the numbers are.
#[derive(Debug, Clone, Copy)]
pub enum Unit {
    Seconds,
    Millis,
    PerSecond,
    Megabytes,
    Count,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Seconds => format!("{value:.2} s"),
            Self::Millis if value < 20.0 => format!("{value:.1} ms"),
            Self::Millis => format!("{value:.0} ms"),
            Self::PerSecond => format!("{value:.0}/s"),
            Self::Megabytes => format!("{value:.1} MB"),
            Self::Count => format!("{value:.0}"),
        }
    }
}

/// What ours is held against.
#[derive(Debug, Clone)]
pub enum Other {
    /// Measured in the same rounds.
    Measured(Vec<f64>),
    /// A number that was set.
    Limit(f64),
}

/// One figure of several rounds.
#[derive(Debug, Clone)]
pub struct Figure {
    pub name: String,
    pub unit: Unit,
    pub ours: Vec<f64>,
    pub other: Other,
    pub goal: Goal,
    /// Rounds in which something else used this machine.
    pub noisy: usize,
}

impl Figure {
    /// The median of the rounds' ratios: what slows this machine for a while slows both of a round.
    fn ratio(&self) -> f64 {
        let ratios: Vec<f64> = match &self.other {
            Other::Measured(other) => self.ours.iter().zip(other).map(|(ours, other)| over(*ours, *other)).collect(),
            Other::Limit(limit) => self.ours.iter().map(|ours| over(*ours, *limit)).collect(),
        };
        median(&ratios)
    }

    fn column(&self, values: &[f64]) -> String {
        let (low, high) = values.iter().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(*v), high.max(*v)));
        let number = |value| self.unit.show(value).split(' ').next().unwrap_or_default().replace("/s", "");
        match values {
            [one] => self.unit.show(*one),
            _ => format!("{} ({}–{})", self.unit.show(median(values)), number(low), number(high)),
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let other = match &self.other {
            Other::Measured(values) => self.column(values),
            Other::Limit(limit) => format!("limit {}", self.unit.show(*limit)),
        };
        let ratio = self.ratio();
        let verdict = if self.goal.met(ratio) { "pass" } else { "short" };
        let goal = self.goal.to_string();
        write!(
            f,
            "{:<58} {:<24} {other:<24} ratio {ratio:<6.2} {goal:<7} {verdict}",
            self.name,
            self.column(&self.ours)
        )?;
        match self.noisy {
            0 => Ok(()),
            noisy => write!(f, "  (others used this machine in {noisy} of {} rounds)", self.ours.len()),
        }
    }
}

/// Of two counts of losses, none is as good as none, and nothing is as good as none.
fn over(ours: f64, other: f64) -> f64 {
    match (ours, other) {
        (0.0, 0.0) => 0.0,
        _ => ours / other,
    }
}

/// The middle value.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// Says something to know beside the figures.
pub fn note(text: &str) {
    println!("  {text}");
}

/// All figures of a run.
#[derive(Debug, Default)]
pub struct Report {
    done: Vec<Figure>,
    failed: Vec<String>,
}

impl Report {
    /// Prints and keeps a figure.
    pub fn add(&mut self, figure: Figure) {
        println!("{figure}");
        self.done.push(figure);
    }

    /// Keeps that something could not be measured.
    pub fn failed(&mut self, what: &str, why: &dyn fmt::Display) {
        eprintln!("{what}: not measured: {why}");
        self.failed.push(what.to_owned());
    }

    /// Prints the summary; true when everything could be measured.
    pub fn end(&self) -> bool {
        let short: Vec<_> = self.done.iter().filter(|f| !f.goal.met(f.ratio())).map(|f| f.name.as_str()).collect();
        println!("\n{} of {} figures pass", self.done.len() - short.len(), self.done.len());
        if !short.is_empty() {
            println!("short: {}", short.join("; "));
        }
        if !self.failed.is_empty() {
            println!("not measured: {}", self.failed.join("; "));
        }
        self.failed.is_empty()
    }
}
