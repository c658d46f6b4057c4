//! Builders and engines that are on this machine: docker, podman, buildah.
//!
//! Used only where there is no other way: a Dockerfile, or an image that is in an engine's own store.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use super::{Error, ImageName, Watch, source::scratch};

/// How much of a program's last words is shown.
const LAST_WORDS: usize = 2000;

/// A directory for passing files, removed when it is dropped.
///
/// # Errors
/// The disk's.
pub fn passing_directory() -> Result<tempfile::TempDir, Error> {
    let directory = scratch()?;
    tempfile::tempdir_in(&directory).map_err(Error::file("write", &directory))
}

/// Where a program is.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|d| d.join(name)).find(|p| p.is_file())
}

/// Runs a program to its end; what it says is kept for its error.
pub(super) async fn run(program: &str, command: &mut Command) -> Result<(), Error> {
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| Error::Program { program: program.to_owned(), output: e.to_string() })?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).trim().to_owned()).join("\n");
    let from = said.char_indices().rev().nth(LAST_WORDS).map_or(0, |(at, _)| at);
    Err(Error::Program { program: program.to_owned(), output: said[from..].trim().to_owned() })
}

/// Whether it is an engine whose daemon answers; buildah and podman have none.
async fn works(name: &str) -> bool {
    if find_program(name).is_none() {
        return false;
    }
    name != "docker" || run(name, Command::new(name).args(["version", "--format", "{{.Server.Version}}"])).await.is_ok()
}

/// The first of these that works.
async fn first(names: &[&'static str]) -> Option<&'static str> {
    for name in names {
        if works(name).await {
            return Some(name);
        }
    }
    None
}

/// Builds a Dockerfile with what is there; gives an archive and the directory that holds it.
///
/// # Errors
/// No builder; the builder's own.
pub async fn build_dockerfile(
    directory: &Path,
    name: &ImageName,
    watch: &dyn Watch,
) -> Result<(PathBuf, tempfile::TempDir), Error> {
    let Some(builder) = first(&["docker", "podman", "buildah"]).await else {
        let message = format!("{} has a Dockerfile, and no docker, podman or buildah works here", directory.display());
        return Err(Error::refused(
            message,
            "`apt install buildah` needs no daemon; or write an image.toml (--init), which needs no engine at all",
        ));
    };
    watch.step(&format!("{builder} build {name}"), 0);
    let passing = passing_directory()?;
    let file = passing.path().join("image.tar");
    let tag = name.to_string();
    let plain = is_root();
    match builder {
        "docker" => {
            run(builder, Command::new(builder).args(["build", "-t", &tag]).arg(directory)).await?;
            run(builder, Command::new(builder).args(["save", "-o"]).arg(&file).arg(&tag)).await?;
        }
        "podman" => {
            run(builder, Command::new(builder).args(["build", "-t", &tag]).arg(directory)).await?;
            run(builder, Command::new(builder).args(["save", "--format", "oci-archive", "-o"]).arg(&file).arg(&tag))
                .await?;
        }
        _ => {
            // In a container buildah has neither an overlay nor namespaces to spare.
            let store = passing.path().join("store");
            let options = |sub: &str| {
                let mut command = Command::new(builder);
                if plain {
                    command.args(["--storage-driver", "vfs"]);
                    command.arg("--root").arg(&store).arg("--runroot").arg(store.join("run"));
                }
                command.arg(sub);
                command
            };
            let mut build = options("build");
            build.args(["--isolation", "chroot", "--format", "oci", "-t", &tag]).arg(directory);
            run(builder, &mut build).await?;
            let mut push = options("push");
            push.arg(&tag).arg(format!("oci-archive:{}:{tag}", file.display()));
            run(builder, &mut push).await?;
        }
    }
    Ok((file, passing))
}

/// Whether this is root, whose buildah store is nobody else's business.
fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

/// An image of a local engine as an archive, and the directory that holds it.
///
/// # Errors
/// No engine, or none that has it.
pub async fn save_from_engine(name: &str, watch: &dyn Watch) -> Result<(PathBuf, tempfile::TempDir), Error> {
    let passing = passing_directory()?;
    let file = passing.path().join("image.tar");
    let mut said = Vec::new();
    for engine in ["docker", "podman"] {
        if !works(engine).await {
            continue;
        }
        watch.step(&format!("{engine} save {name}"), 0);
        let mut command = Command::new(engine);
        command.args(["save", "-o"]).arg(&file).args(["--", name]);
        match run(engine, &mut command).await {
            Ok(()) => return Ok((file, passing)),
            Err(error) => said.push(error.to_string()),
        }
    }
    let message = format!("there is no {name}.tar here, and no local engine has an image {name}");
    let message = std::iter::once(message).chain(said).collect::<Vec<_>>().join("\n");
    Err(Error::refused(message, format!("`matrix create-image {name} DIR` makes one")))
}
