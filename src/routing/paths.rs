//! Which request belongs to which application, as a sequence of tests on its host and path.
//!
//! Exact hosts come before wildcards, the longest wildcard first, and routes for any host come last; among equals the
//! longest path wins. Many routes become a tree of tests, so that a request meets few of them. Knows nothing of VCL's
//! grammar but its regular expressions.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use serde::Serialize;

use super::{RoutingTable, vcl};
use crate::model::{AppName, PathPrefix, Route};

/// Host and path as one text.
const KEY: &str = "req.http.X-Matrix-Key";
/// The path with query.
const URL: &str = "req.url";
/// More routes than this are split before they are tested one by one.
const CHAIN: usize = 6;

/// A step of the root's search.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Step {
    /// What follows is looked at only where the pattern fits.
    Open { depth: usize, subject: &'static str, pattern: String },
    /// Where the pattern fits, the application is found.
    Go { depth: usize, subject: &'static str, pattern: String, label: String },
    /// The end of what the last open step began.
    Close { depth: usize },
}

impl Step {
    pub(super) fn by_host(&self) -> bool {
        matches!(self, Self::Open { subject, .. } | Self::Go { subject, .. } if *subject == KEY)
    }
}

/// A route whose path is cut off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Cut {
    subject: &'static str,
    pattern: String,
    prefix: Option<String>,
    remove: String,
}

impl Cut {
    pub(super) fn by_host(&self) -> bool {
        self.subject == KEY
    }
}

/// The text as a regular expression that fits it alone. Of a regular expression's signs, hosts and paths know only the dot.
fn literal(text: &str) -> String {
    text.replace('.', r"\.")
}

/// What follows a path that fits: its end, a query or a further segment.
fn path_pattern(path: &PathPrefix) -> String {
    if path.is_root() { "/".to_owned() } else { format!("{}(?:[/?]|$)", literal(path.as_str())) }
}

/// Subject and pattern of a route.
fn test(route: &Route) -> (&'static str, String) {
    let path = path_pattern(&route.path);
    match &route.host {
        None => (URL, format!("^{path}")),
        Some(host) => match host.wildcard_suffix() {
            None => (KEY, format!("^{}{path}", literal(host.as_str()))),
            Some(suffix) => (KEY, format!(r"^[^/]+\.{}{path}", literal(suffix))),
        },
    }
}

/// Which of two routes is looked at first.
fn order(route: &Route) -> impl Ord + use<> {
    let wildcard = route.host.as_ref().and_then(|h| h.wildcard_suffix().map(str::len));
    let class = match (&route.host, wildcard) {
        (Some(_), None) => 0,
        (Some(_), Some(_)) => 1,
        (None, _) => 2,
    };
    (class, Reverse(wildcard), route.host.clone(), Reverse(route.path.as_str().len()), route.path.clone())
}

/// The root's search. Of two applications with one route, the first by name has it.
pub(super) fn steps(table: &RoutingTable, second: &BTreeSet<AppName>) -> Vec<Step> {
    let mut owner: BTreeMap<&Route, String> = BTreeMap::new();
    for (app, routing) in &table.apps {
        for route in &routing.routes {
            owner.entry(route).or_insert_with(|| vcl::label_in(app, second));
        }
    }
    let entry = |(route, label): (&&Route, &String)| {
        let host = route.host.as_ref().map_or("", |h| h.as_str());
        let (subject, pattern) = test(route);
        Entry { text: format!("{host}{}", route.path), subject, pattern, label: label.clone() }
    };
    let of = |wanted: fn(&Route) -> bool| -> Vec<Entry> {
        owner.iter().filter(|(route, _)| wanted(route)).map(entry).collect()
    };
    let mut steps = Vec::new();
    split(of(|r| r.host.as_ref().is_some_and(|h| h.wildcard_suffix().is_none())), 1, &mut steps);
    let mut wild: Vec<_> =
        owner.iter().filter(|(r, _)| r.host.as_ref().is_some_and(|h| h.wildcard_suffix().is_some())).collect();
    wild.sort_by_key(|(route, _)| order(route));
    steps.extend(wild.into_iter().map(|(route, label)| entry((route, label)).go(1)));
    split(of(|r| r.host.is_none()), 1, &mut steps);
    steps
}

/// One route on its way into the tree: its host and path as they are compared, and its test.
struct Entry {
    text: String,
    subject: &'static str,
    pattern: String,
    label: String,
}

impl Entry {
    fn go(self, depth: usize) -> Step {
        Step::Go { depth, subject: self.subject, pattern: self.pattern, label: self.label }
    }
}

/// Few routes one by one, the longest first; more in two halves by the first character in which they differ.
fn split(mut entries: Vec<Entry>, depth: usize, steps: &mut Vec<Step>) {
    if entries.len() <= CHAIN {
        entries.sort_by(|a, b| (Reverse(a.text.len()), &a.text).cmp(&(Reverse(b.text.len()), &b.text)));
        steps.extend(entries.into_iter().map(|entry| entry.go(depth)));
        return;
    }
    entries.sort_by(|a, b| a.text.cmp(&b.text));
    let common = entries.iter().skip(1).fold(entries[0].text.len(), |n, e| {
        entries[0].text.bytes().zip(e.text.bytes()).take(n).take_while(|(a, b)| a == b).count()
    });
    let prefix = entries[0].text[..common].to_owned();
    let subject = entries[0].subject;
    // Sorted: a text that ends where the others go on is the first, and the last to be tried.
    let shortest = (entries[0].text.len() == common).then(|| entries.remove(0));
    let next = |entry: &Entry| entry.text.as_bytes()[common];
    let middle = next(&entries[entries.len() / 2]);
    let first = next(&entries[0]);
    let boundary = if middle == first { first + 1 } else { middle };
    let upper = entries.split_off(entries.partition_point(|e| next(e) < boundary));
    if upper.is_empty() {
        split(entries, depth, steps);
    } else {
        for half in [entries, upper] {
            let class = class(half.iter().map(next));
            steps.push(Step::Open { depth, subject, pattern: format!("^{}[{class}]", literal(&prefix)) });
            split(half, depth + 1, steps);
            steps.push(Step::Close { depth });
        }
    }
    steps.extend(shortest.map(|entry| entry.go(depth)));
}

/// The characters of a regular expression's class, sorted, each once.
fn class(bytes: impl Iterator<Item = u8>) -> String {
    let set: std::collections::BTreeSet<u8> = bytes.collect();
    set.into_iter().map(|b| if b == b'-' { r"\-".to_owned() } else { char::from(b).to_string() }).collect()
}

/// What is cut off which request, first fit first.
pub(super) fn cuts(routes: &[Route]) -> Vec<Cut> {
    let mut routes: Vec<&Route> = routes.iter().collect();
    routes.sort_by_key(|route| order(route));
    routes.dedup();
    let cut = |route: &Route| {
        let (subject, pattern) = test(route);
        let prefix = (!route.path.is_root()).then(|| route.path.to_string());
        Cut { subject, pattern, prefix, remove: format!("^{}/?", literal(route.path.as_str())) }
    };
    routes.into_iter().map(cut).collect()
}
