//! Names and values everybody shares. Each is parsed once; whoever holds one need not check again.
//!
//! No I/O, no clock, no knowledge of plans, nodes' states or engines.

mod image_ref;
mod name;
mod net;
mod route;
mod size;
mod text;

pub use image_ref::{Digest, ImageRef, Repository};
pub use name::{AppName, CloudId, InstanceId, NodeName};
pub use net::{MacAddr, Port};
pub use route::{HostName, PathPrefix, Route};
pub use size::{Cpus, Memory};
pub use text::harmless;

/// A moment, UTC. Pure rooms are handed one; they never ask a clock.
pub type Timestamp = jiff::Timestamp;

/// Why a text is not the value it should be. Lowercase, names the text, states the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} {rule}")]
pub struct Invalid {
    /// What was to be read: `application name`, `image reference`.
    pub what: &'static str,
    /// The text as it came, cut at 100 characters.
    pub text: String,
    /// The rule it breaks: `may hold only a-z, 0-9, - and _`.
    pub rule: &'static str,
}

impl Invalid {
    pub(crate) fn new(what: &'static str, text: &str, rule: &'static str) -> Self {
        Self { what, text: text.chars().take(100).collect(), rule }
    }
}

/// Gives a parsed type its text side: `Display`, `TryFrom<&str>`, and serde as a string.
macro_rules! text_value {
    ($type:ty) => {
        impl TryFrom<&str> for $type {
            type Error = $crate::model::Invalid;
            fn try_from(text: &str) -> Result<Self, Self::Error> {
                text.parse()
            }
        }
        impl TryFrom<String> for $type {
            type Error = $crate::model::Invalid;
            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    };
}
pub(crate) use text_value;
