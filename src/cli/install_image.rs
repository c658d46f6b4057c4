//! `matrix install-image`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Failure, Global, Printer,
    create_image::{failure, image_name},
    progress::Progress,
    registry::RegistryArgs,
};
use crate::pack::{self, ImageName, Installed, Source};

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An archive, or a name: NAME.tar in the current directory, else a local engine's image
    image: String,
    /// The name in the registry [default: the archive's own, else the file's]
    #[arg(long)]
    name: Option<String>,
    /// The tag [default: the archive's own, else latest]
    #[arg(long)]
    tag: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
}

pub(super) fn run(args: &Args, global: &Global, out: &Printer) -> Result<(), Failure> {
    let progress = Progress::new(out);
    let installed = super::block_on(async {
        let (path, want, _passing) = find(args, &progress).await?;
        let watch = progress.clone();
        let source =
            tokio::task::spawn_blocking(move || Source::open(&path.0, want.as_deref(), &watch).map(|s| (s, path.1)));
        let (source, fallback) = source.await.map_err(|e| Failure::failed(e.to_string()))?.map_err(|e| failure(&e))?;
        let name = name(args, source.name.as_deref(), &fallback)?;
        let registry = args.registry.find(global).await?;
        let watch = Arc::new(progress.clone());
        pack::install(&registry, Arc::new(source), &name, watch).await.map_err(|e| failure(&e))
    })?;
    progress.finish();
    if out.is_json() {
        out.json(&installed);
    } else {
        report(&installed, out);
    }
    Ok(())
}

pub(super) fn report(installed: &Installed, out: &Printer) {
    let Installed { name, registry, digest, sent, mounted, skipped, .. } = installed;
    if installed.unchanged {
        out.line(format!("unchanged {name} {digest} in {registry}"));
    } else {
        out.line(format!(
            "installed {name} {digest} in {registry} ({sent} bytes sent, {mounted} blobs mounted, {skipped} there)"
        ));
    }
}

type Found = ((PathBuf, String), Option<String>, Option<tempfile::TempDir>);

/// The archive meant, the name it would have by its file, and which image in it.
async fn find(args: &Args, progress: &Progress) -> Result<Found, Failure> {
    let given = PathBuf::from(&args.image);
    if given.is_file() {
        let stem = given.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stem = [".tar.gz", ".tgz", ".tar"].iter().find_map(|e| stem.strip_suffix(e)).unwrap_or(&stem).to_owned();
        return Ok(((given, stem), args.tag.clone(), None));
    }
    let looks_like_path = (args.image.contains('/') && given.parent().is_some_and(Path::is_dir))
        || given.extension().is_some_and(|e| e.eq_ignore_ascii_case("tar"));
    let name = match image_name(&args.image, None) {
        Ok(name) if !looks_like_path => name,
        Ok(_) | Err(_) => {
            return Err(Failure::invalid(format!("there is no archive {}", args.image))
                .hint("`matrix create-image NAME DIR` makes one"));
        }
    };
    let archive = PathBuf::from(format!("{}.tar", name.short()));
    if archive.is_file() {
        return Ok(((archive, args.image.clone()), None, None));
    }
    let (file, directory) = pack::save_from_engine(&args.image, progress).await.map_err(|e| failure(&e))?;
    Ok(((file, args.image.clone()), None, Some(directory)))
}

/// The name in the registry.
fn name(args: &Args, own: Option<&str>, fallback: &str) -> Result<ImageName, Failure> {
    if let Some(name) = &args.name {
        return image_name(name, args.tag.as_deref());
    }
    if fallback == args.image && fallback.contains(':') {
        return image_name(fallback, args.tag.as_deref());
    }
    // A registry's own part of the name stays behind; a bare tag is no name.
    let own = own.filter(|n| n.contains([':', '/'])).and_then(|n| n.parse::<crate::model::ImageRef>().ok());
    let parsed = own.and_then(|image| {
        let short = image.repository.as_str().rsplit('/').next().unwrap_or_default().to_owned();
        let repository = match image.repository.as_str().split_once('/') {
            Some((pack::NAMESPACE, _)) => image.repository.to_string(),
            _ => format!("{}/{short}", pack::NAMESPACE),
        };
        format!("{repository}:{}", image.tag_or_latest()).parse::<ImageName>().ok()
    });
    match (parsed, &args.tag) {
        (Some(name), Some(tag)) => image_name(name.repository.as_str(), Some(tag)),
        (Some(name), None) => Ok(name),
        (None, tag) => image_name(fallback, tag.as_deref()).map_err(|e| e.hint("name it with --name NAME[:TAG]")),
    }
}
