//! matrix, a private-cloud manager for VirtualBox and other on-prem machines.
//!
//! ```text
//!  applications.plan ─▶ plan ─▶ release ─┐
//!                                        ├─▶ schedule ─▶ reconcile ─▶ actions ─▶ manager ─▶ remote ─▶ nodes, registry, Varnish
//!  leases, Docker, probes ─▶ inventory ──┘                  │                      │
//!                                                           └▶ routing ─▶ VCL      └▶ store, events ─▶ api ─▶ cli, dashboard
//! ```
//!
//! Left of `remote` nothing touches the world. ARCHITECTURE.md says who may import whom; `tests/it/layers.rs` holds it.

pub mod api;
pub mod clean;
pub mod cli;
pub mod dashboard;
pub mod image;
pub mod inventory;
pub mod lab;
pub mod manager;
pub mod model;
pub mod pack;
pub mod plan;
pub mod reconcile;
pub mod release;
pub mod remote;
pub mod routing;
pub mod schedule;
pub mod store;
