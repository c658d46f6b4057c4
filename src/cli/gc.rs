//! `matrix gc`: what nobody needs any more goes from nodes and registry.

use bytesize::ByteSize;
use http::Method;

use crate::{
    api::{GcLine, GcRequest},
    clean::Forecast,
    manager::gc::Cleaned,
};

use super::{Client, Failure, Global, Printer, block_on};

/// Options of `matrix gc`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show what would go and what that frees, and change nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: Args, global: &Global, out: &Printer) -> Result<(), Failure> {
    let client = Client::new(global);
    block_on(async {
        let mut lines = client.stream(Method::POST, "/v1/gc", &GcRequest { dry_run: args.dry_run }).await?;
        while let Some(line) = lines.next::<GcLine>().await? {
            if out.is_json() {
                out.json_line(&line);
            }
            match line {
                GcLine::Forecast(forecast) => {
                    show(&forecast, args.dry_run, out);
                    if args.dry_run {
                        return Ok(());
                    }
                }
                GcLine::Event(event) => {
                    let place = event.node.map(|node| format!("{node}: ")).unwrap_or_default();
                    out.line(format!("  {place}{}", event.text));
                }
                GcLine::End(cleaned) => return report(&cleaned, out),
            }
        }
        Err(Failure::failed("the manager stopped before all was cleaned")
            .hint("nothing is lost; clean again when the manager is back"))
    })
}

fn show(forecast: &Forecast, dry_run: bool, out: &Printer) {
    if dry_run {
        forecast.notes.iter().for_each(|note| out.warning(note));
    }
    let kept: Vec<_> = forecast.kept.iter().map(ToString::to_string).collect();
    out.line(match kept.len() {
        0 => "no release yet".to_owned(),
        _ => format!("releases kept: {}", kept.join(" ")),
    });
    if forecast.items.is_empty() {
        out.line("nothing to clean");
        return;
    }
    let rows = forecast.items.iter().map(|item| {
        let thing = &item.thing;
        let bytes = ByteSize(item.bytes).to_string();
        vec![item.place.to_string(), thing.word().to_owned(), thing.to_string(), bytes, item.why.clone()]
    });
    out.table(&["WHERE", "WHAT", "NAME", "FREES", "WHY"], rows);
    let places: Vec<_> =
        forecast.by_place().into_iter().map(|(place, bytes)| format!("{place} {}", ByteSize(bytes))).collect();
    let (count, all) = (forecast.items.len(), ByteSize(forecast.bytes()));
    let end = if dry_run { "; nothing was changed" } else { "" };
    out.line(format!("{count} things, {all} to be freed ({}){end}", places.join(", ")));
}

fn report(cleaned: &Cleaned, out: &Printer) -> Result<(), Failure> {
    cleaned.notes.iter().for_each(|note| out.warning(note));
    #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
    let seconds = cleaned.millis as f64 / 1000.0;
    let text = format!("{} of {} things in {seconds:.1} s", ByteSize(cleaned.freed), cleaned.removed);
    if cleaned.errors.is_empty() {
        out.line(format!("freed {text}"));
        return Ok(());
    }
    Err(Failure::failed(format!("not all was cleaned:\n{}", cleaned.errors.join("\n")))
        .hint(format!("freed {text}; what failed is tried again by the next cleaning")))
}
