//! Where the world is touched: one world each.
//!
//! Decides nothing: what to do, in which order and why comes from elsewhere.

pub mod connections;
pub mod docker;
pub mod leases;
pub mod probe;
pub mod registry;
pub mod ssh;
pub mod varnish;
pub mod varnish_log;
