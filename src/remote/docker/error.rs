//! What an engine's refusal means. Reads the engine's own words, since its status codes tell too little.

use bollard::errors::Error;

use crate::model::{ImageRef, NodeName};

/// Why an engine did not do it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No space is left where the engine keeps its images and containers.
    #[error("cannot {doing} on {node}: its disk is full")]
    DiskFull {
        /// The node.
        node: NodeName,
        /// What was tried.
        doing: String,
    },
    /// Something else on the node listens on the host port.
    #[error("cannot {doing} on {node}: a port is already in use there ({reason})")]
    PortTaken {
        /// The node.
        node: NodeName,
        /// What was tried.
        doing: String,
        /// The engine's words.
        reason: String,
    },
    /// The registry has no such image.
    #[error("cannot pull {image} on {node}: the registry has no such image")]
    NoSuchImage {
        /// The node.
        node: NodeName,
        /// The image.
        image: String,
    },
    /// The node does not reach the registry.
    #[error("cannot pull {image} on {node}: it does not reach the registry ({reason})")]
    Registry {
        /// The node.
        node: NodeName,
        /// The image.
        image: String,
        /// The engine's words.
        reason: String,
    },
    /// The name is held by a container that was made from something else.
    #[error("cannot create {name} on {node}: another container has this name")]
    NameTaken {
        /// The node.
        node: NodeName,
        /// The name.
        name: String,
    },
    /// The container is not of this cloud.
    #[error("will not {verb} {container} on {node}: it is not of this cloud")]
    Foreign {
        /// The node.
        node: NodeName,
        /// The container.
        container: String,
        /// `stop`, `remove`.
        verb: &'static str,
    },
    /// The engine says no, for another reason.
    #[error("cannot {doing} on {node}: {reason}")]
    Refused {
        /// The node.
        node: NodeName,
        /// What was tried.
        doing: String,
        /// The engine's words.
        reason: String,
    },
    /// No answer: the session is gone, the engine is down, or it took too long.
    #[error("cannot {doing} on {node}: its engine does not answer")]
    Silent {
        /// The node.
        node: NodeName,
        /// What was tried.
        doing: String,
        /// What the connection said.
        #[source]
        source: Box<Error>,
    },
}

impl EngineError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::DiskFull { node, .. } => {
                format!("free space on {node} (`docker system df` there shows what takes it), or give it a larger disk")
            }
            Self::PortTaken { node, .. } => {
                format!("find who listens on {node} (`ss -ltnp` there), or choose another port in the plan")
            }
            Self::NoSuchImage { image, .. } => format!("install it first: matrix install-image {}", last_part(image)),
            Self::Registry { node, .. } => {
                format!("the registry must run, resolve on {node}, and be among its engine's insecure-registries")
            }
            Self::NameTaken { name, node } => format!("rename or remove {name} on {node}; matrix did not make it"),
            Self::Foreign { .. } | Self::Refused { .. } => return None,
            Self::Silent { node, .. } => format!("matrix tries again when {node} answers; see matrix nodes"),
        })
    }

    /// Whether the same may well work a little later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Silent { .. } | Self::Registry { .. })
    }

    /// How often to try again before it is taken for an answer; none: until the engine says something.
    pub fn tries(&self) -> Option<u32> {
        match self {
            Self::Silent { .. } => None,
            Self::Registry { .. } => Some(3),
            Self::PortTaken { .. } => Some(2),
            Self::DiskFull { .. }
            | Self::NoSuchImage { .. }
            | Self::NameTaken { .. }
            | Self::Foreign { .. }
            | Self::Refused { .. } => Some(0),
        }
    }

    /// Whose engine it was.
    pub fn node(&self) -> &NodeName {
        match self {
            Self::DiskFull { node, .. }
            | Self::PortTaken { node, .. }
            | Self::NoSuchImage { node, .. }
            | Self::Registry { node, .. }
            | Self::NameTaken { node, .. }
            | Self::Foreign { node, .. }
            | Self::Refused { node, .. }
            | Self::Silent { node, .. } => node,
        }
    }
}

/// What was being done where, while it failed.
pub(super) struct Doing {
    node: NodeName,
    what: String,
}

impl Doing {
    pub(super) fn new(node: &NodeName, what: impl Into<String>) -> Self {
        Self { node: node.clone(), what: what.into() }
    }

    pub(super) fn error(self, error: Error) -> EngineError {
        let Self { node, what: doing } = self;
        let Some(reason) = words(&error) else {
            return EngineError::Silent { node, doing, source: Box::new(error) };
        };
        if is_full(reason) {
            EngineError::DiskFull { node, doing }
        } else if ["port is already allocated", "address already in use"].iter().any(|w| reason.contains(w)) {
            EngineError::PortTaken { node, doing, reason: reason.to_owned() }
        } else {
            EngineError::Refused { node, doing, reason: reason.to_owned() }
        }
    }
}

/// Why a pull failed.
pub(super) fn pull(node: &NodeName, image: &ImageRef, error: Error) -> EngineError {
    let missing = ["manifest unknown", "not found", "repository does not exist", "name unknown"];
    let unreachable = [
        "connection refused",
        "no such host",
        "no route to host",
        "i/o timeout",
        "network is unreachable",
        "server gave HTTP response to HTTPS client",
        "Client.Timeout",
        "EOF",
        "server misbehaving",
        "502",
        "503",
    ];
    let (node, image) = (node.clone(), image.to_string());
    match words(&error) {
        Some(reason) if is_full(reason) => EngineError::DiskFull { node, doing: format!("pull {image}") },
        Some(reason) if unreachable.iter().any(|w| reason.contains(w)) => {
            EngineError::Registry { node, reason: reason.to_owned(), image }
        }
        Some(reason) if missing.iter().any(|w| reason.contains(w)) => EngineError::NoSuchImage { node, image },
        _ => Doing::new(&node, format!("pull {image}")).error(error),
    }
}

fn is_full(reason: &str) -> bool {
    ["no space left on device", "disk quota exceeded"].iter().any(|w| reason.contains(w))
}

/// The engine's own words; none where it said nothing.
fn words(error: &Error) -> Option<&str> {
    match error {
        Error::DockerResponseServerError { message, .. } => Some(message.trim()),
        Error::DockerStreamError { error } => Some(error.trim()),
        _ => None,
    }
}

pub(super) fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

pub(super) fn is_missing(error: &Error) -> bool {
    status(error) == Some(404)
}

fn last_part(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    let name = name.rsplit('/').next().unwrap_or(name);
    name.split(':').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(text: &str) -> Error {
        Error::DockerStreamError { error: text.to_owned() }
    }
    fn answer(status_code: u16, message: &str) -> Error {
        Error::DockerResponseServerError { status_code, message: message.to_owned() }
    }

    /// The words of Docker 20.10.
    #[test]
    fn an_engines_words_are_told_apart() {
        let node: NodeName = "node25".parse().expect("a name");
        let image: ImageRef = "reg:5000/cloud/shop:v1".parse().expect("an image");
        let full = "write /var/lib/docker/tmp/GetImageBlob1: no space left on device";
        assert!(matches!(pull(&node, &image, stream(full)), EngineError::DiskFull { .. }));
        let missing = "manifest for reg:5000/cloud/shop:v1 not found: manifest unknown: manifest unknown";
        let error = pull(&node, &image, answer(404, missing));
        assert!(matches!(error, EngineError::NoSuchImage { .. }), "{error}");
        assert_eq!(error.hint().as_deref(), Some("install it first: matrix install-image shop"));
        let down = "Get \"http://reg:5000/v2/\": dial tcp 10.10.10.1:5000: connect: connection refused";
        assert!(matches!(pull(&node, &image, answer(500, down)), EngineError::Registry { .. }));
        let port = "driver failed programming external connectivity on endpoint x: Bind for 0.0.0.0:80 failed: port is already allocated";
        let error = Doing::new(&node, "start shop.1").error(answer(500, port));
        assert!(matches!(error, EngineError::PortTaken { .. }), "{error}");
        let error = Doing::new(&node, "list containers").error(Error::RequestTimeoutError);
        assert!(error.is_transient());
        assert_eq!(error.to_string(), "cannot list containers on node25: its engine does not answer");
    }
}
