//! A workstation's work: a directory becomes an image, an image goes to the registry.
//!
//! Needs no manager, no engine and no root. Prints nothing: whoever calls shows progress and errors.

mod base;
mod cache;
mod create;
mod engine;
mod images;
mod init;
mod install;
mod source;
mod walk;

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

pub use base::{BaseRequest, create_base};
pub use create::{Created, Outside, Request, create, create_with_builder, wants_builder};
pub use engine::{build_dockerfile, passing_directory, save_from_engine};
pub use images::{Listed, list, remove, same_image};
pub use init::init;
pub use install::{Installed, install, is_complete};
pub use source::Source;

use crate::{
    image,
    model::{AppName, Invalid, Repository},
    plan::Diagnostic,
    remote::registry::RegistryError,
};

/// A registry, for those who may not see `remote`.
pub use crate::remote::registry::{Credentials, Registry};

/// Where an application's images live in the registry: `cloud/NAME`.
pub const NAMESPACE: &str = "cloud";

/// Why a workstation's work was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file the user wrote is wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Input(Vec<Diagnostic>),
    /// What was given cannot be used.
    #[error("{message}")]
    Refused {
        /// What and why.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// An image or archive is wrong.
    #[error("{}", .path.display())]
    Image {
        /// The archive or directory.
        path: PathBuf,
        /// What is wrong.
        source: image::Error,
    },
    /// A file or directory cannot be used.
    #[error("cannot {doing} {}", .path.display())]
    File {
        /// `read`, `write`
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {output}")]
    Program {
        /// Which.
        program: String,
        /// The end of what it said.
        output: String,
    },
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Stopped by the user.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// What was given cannot be used, and what to do.
    pub fn refused(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused { message: message.into(), hint: Some(hint.into()) }
    }
    /// Whether the input is at fault, not the attempt.
    pub fn is_input(&self) -> bool {
        match self {
            Self::Input(_)
            | Self::Refused { .. }
            | Self::Registry(RegistryError::Address(_) | RegistryError::Content { .. }) => true,
            Self::Image { source, .. } => !matches!(source, image::Error::Write { .. }),
            Self::Registry(_) | Self::File { .. } | Self::Program { .. } | Self::Interrupted => false,
        }
    }
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { hint, .. } => hint.clone(),
            Self::Registry(error) if error.is_untrusted() => Some(
                "--registry-ca (or MATRIX_REGISTRY_CA) names a file with the certificates of the authority that signed it"
                    .to_owned(),
            ),
            Self::Registry(RegistryError::Unreachable { .. }) => Some(
                "is it running, and is this its address? Name another with --registry or MATRIX_REGISTRY".to_owned(),
            ),
            Self::Registry(RegistryError::Address(_)) => {
                Some("as in 10.10.10.1:5000 or https://registry.example.org".to_owned())
            }
            Self::Registry(RegistryError::Content { .. }) => {
                Some("nothing was tagged; make the archive anew".to_owned())
            }
            _ => None,
        }
    }
    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }
    pub(crate) fn image(path: &Path) -> impl FnOnce(image::Error) -> Self {
        let path = path.to_owned();
        move |source| match source {
            image::Error::Read { source, .. } | image::Error::Write { source, .. } if source.kind() == STOPPED => {
                Self::Interrupted
            }
            source => Self::Image { path, source },
        }
    }
}

/// An image's name on the workstation: `shop`, `shop:v2`, `cloud/shop:v2`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName {
    /// `cloud/shop`
    pub repository: Repository,
    /// `v2`; `latest` where none is given.
    pub tag: String,
}

impl ImageName {
    /// The repository's last part.
    pub fn short(&self) -> &str {
        self.repository.as_str().rsplit('/').next().unwrap_or_default()
    }
    /// The same with another tag.
    ///
    /// # Errors
    /// A tag that is none.
    pub fn with_tag(&self, tag: &str) -> Result<Self, Invalid> {
        format!("{}:{tag}", self.repository).parse()
    }
}
impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{}:{}", self.repository, self.tag))
    }
}
impl FromStr for ImageName {
    type Err = Invalid;
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (name, tag) = text.rsplit_once(':').unwrap_or((text, "latest"));
        let repository =
            if name.contains('/') { name.to_owned() } else { format!("{NAMESPACE}/{}", AppName::try_from(name)?) };
        let image = crate::model::ImageRef::try_from(format!("{repository}:{tag}"))?;
        match image {
            crate::model::ImageRef { registry: None, digest: None, repository, tag: Some(tag) } => {
                Ok(Self { repository, tag })
            }
            _ => Err(Invalid::new("image name", text, "is NAME or NAME:TAG, without a registry")),
        }
    }
}

/// Where progress is shown.
pub trait Watch: Send + Sync {
    /// A step begins; of so many bytes, where that is known.
    fn step(&self, label: &str, bytes: u64);
    /// So many bytes more are done.
    fn advance(&self, bytes: u64);
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;
impl Watch for Unwatched {
    fn step(&self, _label: &str, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
}

/// What a stopped reader fails with: `Interrupted` would be tried again.
const STOPPED: std::io::ErrorKind = std::io::ErrorKind::ConnectionAborted;

/// Ends work on other threads when it is dropped, so that no half-written file stays behind.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);
impl Stop {
    /// Stops when the guard is dropped.
    pub fn guard(&self) -> StopGuard {
        StopGuard(self.clone())
    }
    pub(crate) fn check(&self) -> std::io::Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(STOPPED.into()) } else { Ok(()) }
    }
}
/// Stops the work when it is dropped.
#[derive(Debug)]
pub struct StopGuard(Stop);
impl Drop for StopGuard {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let name: ImageName = "shop:v2".parse().expect("a name");
        assert_eq!((name.to_string().as_str(), name.short()), ("cloud/shop:v2", "shop"));
        assert_eq!("shop".parse::<ImageName>().map(|n| n.to_string()).as_deref(), Ok("cloud/shop:latest"));
        assert_eq!("team/shop".parse::<ImageName>().map(|n| n.to_string()).as_deref(), Ok("team/shop:latest"));
        for bad in ["", "Shop", "a b", "shop:", "shop:a b", "reg.example:5000/shop", "../shop", "$(id)"] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad:?}");
        }
        assert!(name.with_tag("x y").is_err());
    }
}
