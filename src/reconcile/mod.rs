//! What must change, in which order, and why. Never how: no I/O, no clock, no async.

mod action;
mod diff;
mod report;

pub use action::{Action, Decision, Reason};
pub use diff::{Hold, World, diff};
pub use report::{Change, Sign, changes};
