//! Everything beyond unit tests that needs no root: one binary.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cli;
mod gateway;
mod layers;
mod nodes;
mod plan;
mod rig_sshd;
mod sessions;
mod vcl;
