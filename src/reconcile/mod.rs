//! What must change, in which order, and why. Never how: no I/O, no clock, no async.

mod action;
pub mod canary;
mod diff;
mod report;
pub mod rollout;
mod stage;

pub use action::{Action, Decision, Reason};
pub use diff::{Hold, Staged, World, diff};
pub use report::{Change, Sign, changes};
pub use stage::{Cramped, Input as StageInput, Stage, stage, waited_for};
