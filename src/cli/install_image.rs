//! `matrix install-image`.

use super::{Failure, Global, Printer};

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub(super) fn run(_args: Args, _global: &Global, _out: &Printer) -> Result<(), Failure> {
    Err(Failure::failed("not there yet"))
}
