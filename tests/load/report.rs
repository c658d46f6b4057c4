//! What came of a load: counts, times, and each loss with its reason.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use super::Answer;

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Get,
    /// A GET whose answer is asked to take so many milliseconds.
    Slow(u32),
    Post,
}

/// One request of a load.
#[derive(Debug)]
pub struct Asked {
    /// Since the load's begin.
    pub due: Duration,
    /// From when it was due to the answer's last byte.
    pub took: Duration,
    /// Its place among the load's paths.
    pub path: usize,
    pub kind: Kind,
    /// Whether it had a connection of its own.
    pub fresh: bool,
    /// A POST's.
    pub id: Option<String>,
    pub answer: Result<Answer, String>,
}

impl Asked {
    pub fn is_good(&self) -> bool {
        self.answer.as_ref().is_ok_and(|a| a.status == 200)
    }
    /// Without what it was asked to take.
    pub fn waited(&self) -> Duration {
        match self.kind {
            Kind::Slow(ms) => self.took.saturating_sub(Duration::from_millis(ms.into())),
            Kind::Get | Kind::Post => self.took,
        }
    }
    /// Why it is lost.
    pub fn why(&self) -> String {
        match &self.answer {
            Ok(answer) => format!("{} {}", answer.status, title(&answer.body)),
            Err(error) => error.clone(),
        }
    }
    pub fn ended(&self) -> Duration {
        self.due + self.took
    }
}

/// What a page calls itself, or its first line.
fn title(body: &str) -> &str {
    let heading = body.split_once("<h1>").and_then(|(_, rest)| rest.split_once("</h1>"));
    heading.map_or_else(|| body.lines().next().unwrap_or_default(), |(heading, _)| heading)
}

/// What came of the websockets.
#[derive(Debug, Default)]
pub struct Sockets {
    pub opened: usize,
    pub sent: usize,
    pub echoed: usize,
    /// By the server, with a word.
    pub closed: usize,
    /// Without a word, or not opened: when, and why.
    pub broken: Vec<(Duration, String)>,
}

/// What came of a load.
#[derive(Debug)]
pub struct Report {
    pub asked: Vec<Asked>,
    pub paths: Vec<String>,
    pub sockets: Sockets,
    /// When the load began.
    pub began: Instant,
}

impl Report {
    pub(super) fn new(asked: Vec<Asked>, paths: Vec<String>, sockets: Sockets, began: Instant) -> Self {
        Self { asked, paths, sockets, began }
    }
    pub fn total(&self) -> usize {
        self.asked.len()
    }
    /// Requests that got no 200.
    pub fn losses(&self) -> impl Iterator<Item = &Asked> {
        self.asked.iter().filter(|a| !a.is_good())
    }
    pub fn lost(&self) -> usize {
        self.losses().count()
    }
    /// POSTs that got no 200.
    pub fn lost_posts(&self) -> usize {
        self.losses().filter(|a| a.kind == Kind::Post).count()
    }
    /// Every request was answered by 200, and there were enough to say so.
    #[track_caller]
    pub fn none_lost(&self) {
        assert!(self.total() > 200, "too few requests to say anything: {self}");
        assert_eq!(self.lost(), 0, "{self}");
    }
    /// From the first to the last request that ended so; no status: without an answer.
    pub fn span_of(&self, so: impl Fn(Option<u16>) -> bool) -> Duration {
        let status = |a: &Asked| a.answer.as_ref().ok().map(|a| a.status);
        let mut such = self.asked.iter().filter(|a| so(status(a))).map(|a| a.due);
        let first = such.next().unwrap_or_default();
        such.next_back().unwrap_or(first).saturating_sub(first)
    }
    /// How many requests to a path each instance answered.
    pub fn by_instance(&self, path: &str) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for asked in self.asked.iter().filter(|a| self.paths[a.path] == path) {
            if let Some(id) = asked.answer.as_ref().ok().and_then(Answer::instance) {
                *counts.entry(id.to_owned()).or_default() += 1;
            }
        }
        counts
    }
    /// Answers by status, and losses without one by reason.
    pub fn by_end(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for asked in &self.asked {
            let end = match &asked.answer {
                Ok(answer) => answer.status.to_string(),
                Err(why) => why.clone(),
            };
            *counts.entry(end).or_default() += 1;
        }
        counts
    }
    /// Losses by the second in which they were due.
    pub fn series(&self) -> BTreeMap<u64, usize> {
        let mut counts = BTreeMap::new();
        self.losses().for_each(|a| *counts.entry(a.due.as_secs()).or_default() += 1);
        counts
    }
    /// How long so many in a hundred took at most, without what they were asked to take; 100: the longest.
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut all: Vec<_> = self.asked.iter().map(Asked::waited).collect();
        all.sort_unstable();
        all.get((all.len() * percent / 100).min(all.len().saturating_sub(1))).copied().unwrap_or_default()
    }
    pub fn max(&self) -> Duration {
        self.asked.iter().map(Asked::waited).max().unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |p: usize| self.percentile(p).as_secs_f64() * 1000.0;
        let (total, lost) = (self.total(), self.lost());
        write!(f, "{total} requests, {lost} lost, p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", ms(50), ms(99), ms(100))?;
        if lost > 0 {
            let ends: Vec<_> = self.by_end().into_iter().map(|(end, count)| format!("{count} × {end}")).collect();
            let series: Vec<_> = self.series().into_iter().map(|(at, count)| format!("{at} s: {count}")).collect();
            write!(f, "\n    ended: {}\n    lost by second: {}", ends.join(", "), series.join(", "))?;
        }
        for asked in self.losses().take(12) {
            let kind = match asked.kind {
                Kind::Get => "GET",
                Kind::Slow(_) => "slow GET",
                Kind::Post => "POST",
            };
            let (due, ms, path) = (asked.due.as_secs_f64(), asked.took.as_millis(), &self.paths[asked.path]);
            write!(f, "\n    at {due:.3} s {kind} {path} after {ms} ms: {}", asked.why())?;
        }
        let sockets = &self.sockets;
        if sockets.opened > 0 || !sockets.broken.is_empty() {
            let (opened, closed, echoed, sent) = (sockets.opened, sockets.closed, sockets.echoed, sockets.sent);
            write!(f, "\n    websockets: {opened} opened, {closed} closed with a word, {echoed} of {sent} echoed")?;
            for (at, why) in sockets.broken.iter().take(6) {
                write!(f, "\n    at {:.3} s websocket {why}", at.as_secs_f64())?;
            }
        }
        Ok(())
    }
}
