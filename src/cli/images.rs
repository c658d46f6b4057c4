//! `matrix images` and `matrix images rm`.

use std::{
    collections::BTreeMap,
    io::{BufRead, IsTerminal, Write},
};

use serde::Deserialize;

use super::{
    Client, Failure, Global, Printer,
    create_image::{failure, image_name},
    registry::RegistryArgs,
};
use crate::pack::{self, Listed, Registry};

/// Options.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(flatten)]
    registry: RegistryArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Remove an image from the registry, with all its tags
    Rm(RmArgs),
}

#[derive(Debug, clap::Args)]
struct RmArgs {
    /// The image: shop, or shop:v2
    name: String,
    /// Show what would be removed; remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// One line of the list.
#[derive(serde::Serialize)]
struct Line {
    #[serde(flatten)]
    image: Listed,
    /// Instances that run it, as `shop.1@node25`; none where no manager answers.
    running: Option<Vec<String>>,
}

/// The part of the manager's status that says what runs.
#[derive(Deserialize)]
struct Status {
    applications: BTreeMap<String, Application>,
}
#[derive(Deserialize)]
struct Application {
    image: String,
    instances: Vec<Instance>,
}
#[derive(Deserialize)]
struct Instance {
    #[serde(rename = "instance")]
    id: String,
    node: Option<String>,
    image: Option<String>,
}

pub(super) fn run(args: Args, global: &Global, out: &Printer) -> Result<(), Failure> {
    match args.command {
        None => super::block_on(list(&args.registry, global, out)),
        Some(Command::Rm(rm)) => super::block_on(remove(rm, global, out)),
    }
}

async fn list(options: &RegistryArgs, global: &Global, out: &Printer) -> Result<(), Failure> {
    let registry = options.find(global).await?;
    let (listed, running) = tokio::join!(pack::list(&registry), running(global));
    let listed = listed.map_err(|e| failure(&e))?;
    let lines: Vec<Line> = listed
        .into_iter()
        .map(|image| {
            let running = running.as_ref().map(|r| r.get(image.digest.as_str()).cloned().unwrap_or_default());
            Line { image, running }
        })
        .collect();
    if out.is_json() {
        out.json(&lines);
        return Ok(());
    }
    out.table(
        &["REPOSITORY", "TAG", "DIGEST", "SIZE", "RUNS ON"],
        lines.iter().map(|line| {
            let size = line.image.size.map_or_else(|| "-".to_owned(), |n| bytesize::ByteSize(n).to_string());
            let runs = line.running.as_ref().map_or_else(|| "?".to_owned(), |r| r.join(" "));
            vec![
                line.image.repository.to_string(),
                line.image.tag.clone(),
                line.image.digest.short().to_owned(),
                size,
                runs,
            ]
        }),
    );
    Ok(())
}

/// Instances by their image's digest; none where no manager answers.
async fn running(global: &Global) -> Option<BTreeMap<String, Vec<String>>> {
    let status: Status = Client::new(global).get("/v1/status").await.ok()?;
    let mut by_digest: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut put = |image: &str, what: String| {
        if let Some((_, digest)) = image.split_once('@') {
            by_digest.entry(digest.to_owned()).or_default().push(what);
        }
    };
    for (name, application) in status.applications {
        if application.instances.is_empty() {
            put(&application.image, name);
        }
        for instance in application.instances {
            let place = instance.node.map_or_else(String::new, |node| format!("@{node}"));
            put(instance.image.as_ref().unwrap_or(&application.image), format!("{}{place}", instance.id));
        }
    }
    Some(by_digest)
}

async fn remove(args: RmArgs, global: &Global, out: &Printer) -> Result<(), Failure> {
    let name = image_name(&args.name, None)?;
    let registry: Registry = args.registry.find(global).await?;
    let (digest, tags) = pack::same_image(&registry, &name).await.map_err(|e| failure(&e))?;
    let running = running(global).await;
    let runs = running.as_ref().and_then(|r| r.get(digest.as_str())).cloned().unwrap_or_default();
    if !runs.is_empty() {
        return Err(Failure::invalid(format!("{name} runs as {}", runs.join(", ")))
            .hint("take it out of the plan and deploy first"));
    }
    let what = format!("{}@{} ({})", name.repository, digest, tags.join(", "));
    if args.dry_run {
        out.line(format!("would remove {what} from {}", registry.endpoint()));
    } else {
        if running.is_none() {
            out.warning("no manager answers: nobody can say whether it runs");
        }
        if !args.yes && !confirmed(&format!("remove {what} from {}?", registry.endpoint())).await? {
            return Err(Failure::failed("nothing was removed"));
        }
        pack::remove(&registry, &name.repository, &digest).await.map_err(|e| failure(&e))?;
        out.line(format!("removed {what} from {}", registry.endpoint()));
    }
    if out.is_json() {
        out.json(&serde_json::json!({
            "repository": name.repository, "digest": digest, "tags": tags, "removed": !args.dry_run,
        }));
    }
    Ok(())
}

async fn confirmed(question: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::invalid("nobody is there to be asked").hint("--yes removes without asking"));
    }
    _ = write!(anstream::stderr(), "{} [y/N] ", super::printer::harmless(question));
    let answer = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|_| line)
    });
    let answer = answer.await.map_err(|e| Failure::failed(e.to_string()))?.unwrap_or_default();
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
