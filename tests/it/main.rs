//! Everything beyond unit tests that needs no root: one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::format_push_string)]

mod archives;
mod canary;
mod cleaning;
mod cli;
mod dashboard;
mod floor;
mod gateway;
mod gc;
mod image;
mod layers;
mod leases;
mod nodes;
mod operating;
mod plan;
mod rig_sshd;
mod routes;
mod secure_registry;
mod sessions;
mod vcl;
mod world;
