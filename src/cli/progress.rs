//! Bars for long work on this machine.

use std::sync::{Arc, Mutex};

use indicatif::ProgressBar;

use super::Printer;
use crate::pack::Watch;

/// One bar at a time, made new for each step.
#[derive(Debug, Clone)]
pub(super) struct Progress {
    out: Printer,
    bar: Arc<Mutex<Option<ProgressBar>>>,
}

impl Progress {
    pub(super) fn new(out: &Printer) -> Self {
        Self { out: out.clone(), bar: Arc::default() }
    }
    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Ok(mut bar) = self.bar.lock()
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
    }
}
impl Watch for Progress {
    fn step(&self, label: &str, bytes: u64) {
        self.finish();
        if let Ok(mut bar) = self.bar.lock() {
            *bar = Some(if bytes > 0 { self.out.bytes_bar(label, bytes) } else { self.out.spinner(label) });
        }
    }
    fn advance(&self, bytes: u64) {
        if let Ok(bar) = self.bar.lock()
            && let Some(bar) = bar.as_ref()
        {
            bar.inc(bytes);
        }
    }
}
