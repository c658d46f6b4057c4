//! `matrix create-image`.

use std::path::PathBuf;

use super::{Exit, Failure, Global, Printer, progress::Progress};
use crate::pack::{self, ImageName};

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image's name: shop, or shop:v2
    name: String,
    /// The application's directory, with an image.toml or a Dockerfile
    directory: PathBuf,
    /// The archive to write [default: NAME.tar in the current directory]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The tag [default: the one in NAME, or latest]
    #[arg(long)]
    tag: Option<String>,
    /// The image below, instead of image.toml's: scratch, an archive, or REPOSITORY:TAG
    #[arg(long)]
    base: Option<String>,
    /// Show what the image would hold; write nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: Args, _global: &Global, out: &Printer) -> Result<(), Failure> {
    let name = image_name(&args.name, args.tag.as_deref())?;
    let output = args.output.unwrap_or_else(|| format!("{}.tar", name.short()).into());
    let request = pack::Request { name, directory: args.directory, output, base: args.base, dry_run: args.dry_run };
    let stop = pack::Stop::default();
    let progress = Progress::new(out);
    let created = super::block_on(async {
        let _guard = stop.guard();
        let (request, progress, stop) = (request.clone(), progress.clone(), stop.clone());
        let work = tokio::task::spawn_blocking(move || pack::create(&request, &progress, &stop));
        work.await.map_err(|e| Failure::failed(e.to_string()))?.map_err(|e| failure(&e))
    })?;
    progress.finish();
    if out.is_json() {
        out.json(&created);
        return Ok(());
    }
    for path in &created.listing {
        out.line(path);
    }
    if args.dry_run {
        out.line(format!("{} would hold {} entries, {} bytes", created.name, created.entries, created.bytes));
    } else if let (Some(digest), Some(archive)) = (&created.digest, &created.archive) {
        let word = if created.unchanged { "unchanged" } else { "created" };
        out.line(format!("{word} {} {digest} in {}", created.name, archive.display()));
    }
    Ok(())
}

/// NAME with the tag it carries or the one given apart.
pub(super) fn image_name(name: &str, tag: Option<&str>) -> Result<ImageName, Failure> {
    let wrong = |e: crate::model::Invalid| Failure::invalid(e.to_string()).hint("as in shop or shop:v2");
    let parsed: ImageName = name.parse().map_err(wrong)?;
    match tag {
        Some(_) if name.contains(':') => {
            Err(Failure::invalid("the tag is there twice").hint("give it in NAME or with --tag"))
        }
        Some(tag) => parsed.with_tag(tag).map_err(wrong),
        None => Ok(parsed),
    }
}

/// A workstation's error as it is shown.
pub(super) fn failure(error: &pack::Error) -> Failure {
    let exit = if error.is_input() { Exit::Invalid } else { Exit::Failed };
    match error {
        pack::Error::Interrupted => Failure::interrupted(),
        pack::Error::Refused { message, hint } => Failure { exit, message: message.clone(), hint: hint.clone() },
        error => Failure::from_error(exit, error),
    }
}
