//! Everything beyond unit tests that needs no root: one binary.
#![expect(missing_docs, reason = "a test binary has no public items")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cli;
