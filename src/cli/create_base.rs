//! `matrix create-base`.

use std::{path::PathBuf, sync::Arc};

use super::{
    Failure, Global, Printer,
    create_image::{failure, image_name},
    progress::Progress,
};
use crate::pack::{self, BaseRequest};

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image's name: web-base
    name: String,
    /// The packages, beside the smallest system
    #[arg(long, value_delimiter = ',', required = true)]
    packages: Vec<String>,
    /// The distribution's release
    #[arg(long, default_value = "bookworm")]
    suite: String,
    /// The mirror [default: this machine's own sources]
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// The archive to write [default: NAME.tar in the current directory]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(args: Args, _global: &Global, out: &Printer) -> Result<(), Failure> {
    let name = image_name(&args.name, None)?;
    let output = args.output.unwrap_or_else(|| format!("{}.tar", name.short()).into());
    let request = BaseRequest { name, packages: args.packages, suite: args.suite, mirror: args.mirror, output };
    let progress = Progress::new(out);
    let watch = Arc::new(progress.clone());
    let created = super::block_on(async { pack::create_base(request, watch).await.map_err(|e| failure(&e)) })?;
    progress.finish();
    if out.is_json() {
        out.json(&created);
    } else if let (Some(digest), Some(archive)) = (&created.digest, &created.archive) {
        out.line(format!("created {} {digest} in {}", created.name, archive.display()));
    }
    Ok(())
}
