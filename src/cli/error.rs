//! What a command failed with: a message, a hint, an exit code.

use std::process::ExitCode;

/// The exit codes. 0 is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 1: it was tried and failed.
    Failed,
    /// 2: the input or the usage is wrong; nothing was changed.
    Invalid,
    /// 3: the manager cannot be reached.
    Unreachable,
    /// 130: stopped by Ctrl-C.
    Interrupted,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Failed => 1,
            Exit::Invalid => 2,
            Exit::Unreachable => 3,
            Exit::Interrupted => 130,
        })
    }
}

/// A failure as it is shown: `error: …`, then `hint: …`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// What happened, lowercase. Several lines where several things are wrong; printed as they are, escaped.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Failure {
    /// It was tried and failed.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, message: message.into(), hint: None }
    }
    /// The input is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self { exit: Exit::Invalid, message: message.into(), hint: None }
    }
    /// The manager cannot be reached.
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self { exit: Exit::Unreachable, message: message.into(), hint: None }
    }
    /// Stopped by Ctrl-C.
    pub fn interrupted() -> Self {
        Self { exit: Exit::Interrupted, message: "interrupted".to_owned(), hint: None }
    }
    /// The same with what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// A failure with an error and all its sources: `cannot read x: permission denied`.
    pub fn from_error(exit: Exit, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            message.push_str(": ");
            message.push_str(&inner.to_string());
            source = inner.source();
        }
        Self { exit, message, hint: None }
    }
}
