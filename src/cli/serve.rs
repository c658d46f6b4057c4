//! `matrix serve`: the manager, until it is told to end.

use std::{io::IsTerminal, path::PathBuf};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    api, dashboard,
    manager::{Manager, config::Config},
};

use super::{Exit, Failure, Global, Printer};

/// Options of `matrix serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration
    #[arg(long, short, value_name = "FILE", default_value = "/etc/matrix/matrix.toml")]
    config: PathBuf,
    /// Only check the configuration
    #[arg(long)]
    check: bool,
}

pub(super) fn run(args: Args, _global: &Global, out: &Printer) -> Result<(), Failure> {
    let file = args.config.display().to_string();
    let text = std::fs::read_to_string(&args.config).map_err(|e| {
        Failure::invalid(format!("cannot read {file}: {e}"))
            .hint("templates/matrix.toml shows every key; --config names another file")
    })?;
    let config = Config::read(&file, &text).map_err(|found| {
        out.diagnostics(&found);
        Failure::invalid(format!("{file} is not a configuration matrix can use"))
    })?;
    if args.check {
        out.line(format!("{file} is sound"));
        return Ok(());
    }
    let filter = tracing_subscriber::EnvFilter::try_from_env("MATRIX_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("matrix=info,warn"));
    // A second start in one process keeps the first's log.
    let colours = std::io::stderr().is_terminal();
    _ = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).try_init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start the runtime: {e}")))?;
    let result = runtime.block_on(serve(config));
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

async fn serve(config: Config) -> Result<(), Failure> {
    let stop = CancellationToken::new();
    let told = stop.clone();
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
        return Err(Failure::failed("cannot listen for signals"));
    };
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    let manager = Manager::start(config, stop).await.map_err(|error| {
        let failure = Failure::from_error(Exit::Failed, &error);
        error.hint().into_iter().fold(failure, Failure::hint)
    })?;
    let pages = dashboard::router(manager.clone());
    let ready = || {
        // Not run by systemd: nobody to tell.
        _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    };
    let nodes = manager.nodes().clone();
    api::serve(manager, pages, ready).await.map_err(|e| Failure::from_error(Exit::Failed, &e))?;
    nodes.finished().await;
    Ok(())
}
