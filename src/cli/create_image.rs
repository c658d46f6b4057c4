//! `matrix create-image`.

use std::{path::PathBuf, sync::Arc};

use super::{Exit, Failure, Global, Printer, progress::Progress, registry::RegistryArgs};
use crate::{
    image::Composed,
    model::ImageRef,
    pack::{self, Created, ImageName, Installed, Outside, Registry, Request, Source, Stop},
};

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
    /// Put it into the registry (and into an archive only where --output says so)
    #[arg(long)]
    push: bool,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Show what the image would hold; write nothing
    #[arg(long, conflicts_with = "init")]
    dry_run: bool,
    /// Look at the directory and write an image.toml to begin with
    #[arg(long, conflicts_with = "push")]
    init: bool,
}

#[derive(serde::Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    created: &'a Created,
    #[serde(skip_serializing_if = "Option::is_none")]
    installed: Option<&'a Installed>,
}

pub(super) fn run(args: Args, global: &Global, out: &Printer) -> Result<(), Failure> {
    let name = image_name(&args.name, args.tag.as_deref())?;
    if args.init {
        let path = pack::init(&args.directory, name.short()).map_err(|e| failure(&e))?;
        out.line(format!(
            "wrote {}: read it, then `matrix create-image {} {}`",
            path.display(),
            args.name,
            args.directory.display()
        ));
        if out.is_json() {
            out.json(&serde_json::json!({ "wrote": path }));
        }
        return Ok(());
    }
    // Kept until the push is over.
    let passing = match (&args.output, args.push) {
        (None, true) => Some(pack::passing_directory().map_err(|e| failure(&e))?),
        _ => None,
    };
    let output = match (args.output, &passing) {
        (Some(output), _) => output,
        (None, Some(directory)) => directory.path().join("image.tar"),
        (None, None) => format!("{}.tar", name.short()).into(),
    };
    let push = args.push && !args.dry_run;
    let request =
        Request { name: name.clone(), directory: args.directory, output, base: args.base, dry_run: args.dry_run };
    let progress = Progress::new(out);
    let (created, installed) =
        super::block_on(make(request, push, args.registry, global.clone(), progress.clone(), passing.is_none()))?;
    progress.finish();
    report(&created, installed.as_ref(), args.dry_run, out);
    Ok(())
}

async fn make(
    request: Request,
    push: bool,
    options: RegistryArgs,
    global: Global,
    progress: Progress,
    archive: bool,
) -> Result<(Created, Option<Installed>), Failure> {
    let registry = if push { Some(options.find(&global).await?) } else { None };
    let stop = Stop::default();
    let _guard = stop.guard();
    let network = Network {
        runtime: tokio::runtime::Handle::current(),
        wanted: registry.clone().filter(|_| !archive).map(|r| (r, request.name.clone())),
        options,
        global,
    };
    let name = request.name.clone();
    let watch = progress.clone();
    let output = request.output.clone();
    let mut created = if pack::wants_builder(&request.directory) && !request.dry_run {
        pack::create_with_builder(&request, &watch).await.map_err(|e| failure(&e))?
    } else {
        let work = tokio::task::spawn_blocking(move || pack::create(&request, &network, &watch, &stop));
        work.await.map_err(|e| Failure::failed(e.to_string()))?.map_err(|e| failure(&e))?
    };
    let Some(registry) = registry else { return Ok((created, None)) };
    let source = match (&created.archive, &created.image) {
        (None, Some(image)) => Source::known(image.clone()),
        _ => Source::open(&output, None, &progress).map_err(|e| failure(&e))?,
    };
    let installed =
        pack::install(&registry, Arc::new(source), &name, Arc::new(progress)).await.map_err(|e| failure(&e))?;
    if !archive {
        created.archive = None;
    }
    Ok((created, Some(installed)))
}

/// What the build asks of registries, from its own thread.
struct Network {
    runtime: tokio::runtime::Handle,
    /// Where the image is to be pushed, when no archive is wanted.
    wanted: Option<(Registry, ImageName)>,
    options: RegistryArgs,
    global: Global,
}
impl Outside for Network {
    fn base(&self, image: &ImageRef) -> Result<Source, pack::Error> {
        self.runtime.block_on(async {
            let registry = match &image.registry {
                Some(host) => RegistryArgs::foreign(host)?,
                None => self.options.find(&self.global).await.map_err(|f| pack::Error::Refused {
                    message: format!("the base {image}: {}", f.message),
                    hint: f.hint,
                })?,
            };
            let mut image = image.clone();
            if image.registry.is_none() && !image.repository.as_str().contains('/') {
                let text = format!("{}/{}", pack::NAMESPACE, image.repository);
                image.repository = text
                    .try_into()
                    .map_err(|e: crate::model::Invalid| pack::Error::Refused { message: e.to_string(), hint: None })?;
            }
            let tag = image.digest.as_ref().map_or_else(|| image.tag_or_latest(), |d| d.as_str());
            Source::pull(&registry, &image.repository, tag).await
        })
    }
    fn has(&self, image: &Composed) -> bool {
        let Some((registry, name)) = &self.wanted else { return false };
        self.runtime.block_on(pack::is_complete(registry, name, image))
    }
}

fn report(created: &Created, installed: Option<&Installed>, dry_run: bool, out: &Printer) {
    if out.is_json() {
        return out.json(&Report { created, installed });
    }
    for path in &created.listing {
        out.line(path);
    }
    if dry_run {
        out.line(format!("{} would hold {} entries, {} bytes", created.name, created.entries, created.bytes));
    } else if let (Some(digest), Some(archive)) = (&created.digest, &created.archive) {
        let word = if created.unchanged { "unchanged" } else { "created" };
        out.line(format!("{word} {} {digest} in {}", created.name, archive.display()));
    }
    if let Some(installed) = installed {
        super::install_image::report(installed, out);
    }
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
    if matches!(error, pack::Error::Interrupted) {
        return Failure::interrupted();
    }
    let exit = if error.is_input() { Exit::Invalid } else { Exit::Failed };
    Failure { hint: error.hint(), ..Failure::from_error(exit, error) }
}
