//! manager
pub mod config;
