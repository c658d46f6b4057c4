//! End to end on a lab: real dnsmasq, sshd, dockerd, registry, Varnish, manager. Root; one at a time
//! (`cargo test --test lab -- --test-threads=1`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::format_push_string, missing_docs, dead_code)]

mod canary;
mod cleaning;
mod clocks;
mod cloud;
mod deploys;
mod failures;
mod foreign_tools;
mod healing;
mod hostile;
mod lab;
#[path = "../load/mod.rs"]
mod load;
mod nodes;
mod operating;
mod original_plan;
mod pains;
mod releases;
mod rig;
mod skewed_engine;
mod state;
