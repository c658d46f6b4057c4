//! `matrix vcl`: what the gateway runs; `matrix vcl PLAN`: what it would.

use std::{collections::BTreeMap, path::PathBuf};

use super::{Client, Exit, Failure, Global, Printer, block_on, plan};
use crate::{
    api::vcl::VclView,
    model::AppName,
    routing::{RoutingTable, vcl},
};

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A plan whose VCL is wanted, over the instances that run now; - reads standard input. Without: what runs
    #[arg(value_name = "PLAN")]
    file: Option<PathBuf>,
    /// Only this application's part
    #[arg(long, value_name = "NAME", value_parser = |text: &str| text.parse::<AppName>())]
    app: Option<AppName>,
}

pub(super) fn run(args: Args, global: &Global, out: &Printer) -> Result<(), Failure> {
    let Args { file, app } = args;
    let client = Client::new(global);
    let running = || block_on(async { client.get::<VclView>("/v1/vcl").await });
    let mut texts = match file {
        None => {
            let view = running()?;
            if let Some(error) = &view.error {
                out.warning(error);
            } else if !view.up && !view.vcl.is_empty() {
                out.warning("the gateway's varnishd is down: this is what it will run");
            }
            view.vcl
        }
        Some(file) => {
            let checked = plan::load_checked(&file, out)?;
            let active = match running() {
                Ok(view) => view.table,
                Err(failure) if failure.exit == Exit::Unreachable => {
                    out.warning("the manager cannot be reached: shown without any instance");
                    RoutingTable::default()
                }
                Err(failure) => return Err(failure),
            };
            vcl::all(&RoutingTable::planned(&checked.plan, &active))
                .map_err(|error| Failure::from_error(Exit::Invalid, &error))?
        }
    };
    if let Some(app) = app {
        let text = texts.remove(app.as_str()).ok_or_else(|| {
            let known: Vec<_> = texts.keys().filter(|name| *name != vcl::ROOT).map(String::as_str).collect();
            Failure::invalid(format!("{app} has no route")).hint(match known.as_slice() {
                [] => "no application has".to_owned(),
                known => format!("these have: {}", known.join(", ")),
            })
        })?;
        texts = BTreeMap::from([(app.to_string(), text)]);
    }
    if out.is_json() {
        out.json(&texts);
        return Ok(());
    }
    if texts.is_empty() {
        out.line("nothing is routed");
    }
    for (at, (name, text)) in texts.iter().enumerate() {
        let gap = if at == 0 { "" } else { "\n" };
        out.result(&format!("{gap}# ---- {name}\n{text}"));
    }
    Ok(())
}
