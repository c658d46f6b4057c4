//! Why a registry did not do it, and whether it may at the next try.
//!
//! Tries nothing itself.

use std::time::Duration;

use backon::ExponentialBuilder;
use oci_distribution::errors::{OciDistributionError, OciErrorCode};

use super::Registry;
use crate::{image, model::Digest};

/// Why a registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// It does not answer.
    #[error("the registry at {endpoint} does not answer")]
    Unreachable {
        /// Its address.
        endpoint: String,
        /// Why.
        source: OciDistributionError,
    },
    /// It answers, and refuses.
    #[error("the registry at {endpoint} refuses to {doing}: {why}")]
    Refused {
        /// Its address.
        endpoint: String,
        /// What was asked.
        doing: String,
        /// What it says.
        why: String,
    },
    /// It does not have the image.
    #[error("the registry at {endpoint} has no {name}")]
    NotFound {
        /// Its address.
        endpoint: String,
        /// `cloud/shop:v2`
        name: String,
    },
    /// It takes nothing: as while it is being cleaned.
    #[error("the registry at {endpoint} is read-only now")]
    ReadOnly {
        /// Its address.
        endpoint: String,
    },
    /// It began anew meanwhile, and lacks what it was sent before.
    #[error("the registry at {endpoint} lost what it was sent, asked to {doing}: {why}")]
    Lost {
        /// Its address.
        endpoint: String,
        /// What was asked.
        doing: String,
        /// What it says.
        why: String,
    },
    /// The address is none.
    #[error("{0:?} is no registry's address")]
    Address(String),
    /// What was to be sent cannot be read or is damaged.
    #[error("cannot send {what}")]
    Content {
        /// What.
        what: String,
        /// Why.
        source: image::Error,
    },
    /// What came is not what was asked for.
    #[error("the registry at {endpoint} has {what} with the digest {found}, not {wanted}")]
    Digest {
        /// Its address.
        endpoint: String,
        /// What was asked for.
        what: String,
        /// The digest it should have.
        wanted: Digest,
        /// The digest it has.
        found: String,
    },
}

impl RegistryError {
    /// Whether the image is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
    /// Whether its certificate is signed by nobody who is trusted here.
    pub fn is_untrusted(&self) -> bool {
        matches!(self, Self::Unreachable { source, .. } if untrusted(source))
    }
}

impl Registry {
    pub(super) fn error(&self, error: OciDistributionError, doing: &str) -> RegistryError {
        let endpoint = self.endpoint.clone();
        if transient(&error) || untrusted(&error) {
            return RegistryError::Unreachable { endpoint, source: error };
        }
        match &error {
            OciDistributionError::ServerError { code: 405, .. } => return RegistryError::ReadOnly { endpoint },
            OciDistributionError::ServerError { code: 400 | 404, message, .. } if lost(message) => {
                let (doing, why) = (doing.to_owned(), message.chars().take(500).collect());
                return RegistryError::Lost { endpoint, doing, why };
            }
            _ => {}
        }
        let why = match &error {
            OciDistributionError::RegistryError { envelope, .. } => {
                let each = envelope.errors.iter().map(|e| format!("{:?}: {}", e.code, e.message));
                each.collect::<Vec<_>>().join("; ")
            }
            OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
                "it wants another name and password (MATRIX_REGISTRY_USER, MATRIX_REGISTRY_PASSWORD)".to_owned()
            }
            other => other.to_string(),
        };
        RegistryError::Refused { endpoint, doing: doing.to_owned(), why: why.chars().take(500).collect() }
    }
}

/// Whether a push must begin again: a blob that was there was collected, or a restart forgot an upload.
fn lost(message: &str) -> bool {
    ["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID"]
        .iter()
        .any(|code| message.contains(code))
}

/// 0.2 s, 0.4 s, 0.8 s, 1.6 s, each with jitter: a registry that restarts is back by then.
pub(super) fn policy() -> ExponentialBuilder {
    ExponentialBuilder::default().with_min_delay(Duration::from_millis(200)).with_max_times(4).with_jitter()
}

/// Whether a certificate is signed by nobody who is trusted here.
fn untrusted(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return matches!(tls, rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer));
    }
    // `source` of an I/O error leaves out what it wraps.
    match error.downcast_ref::<std::io::Error>() {
        Some(wrapping) => wrapping.get_ref().is_some_and(|inner| untrusted(inner)),
        None => error.source().is_some_and(untrusted),
    }
}

/// Whether it may work at the next try.
pub(super) fn transient(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RequestError(_) | OciDistributionError::IoError(_) => !untrusted(error),
        OciDistributionError::ServerError { code, .. } => *code >= 500 || *code == 429,
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.iter().any(|e| matches!(e.code, OciErrorCode::Toomanyrequests))
        }
        _ => false,
    }
}

/// None where the registry says that there is no such thing.
pub(super) fn found<T>(result: Result<T, OciDistributionError>) -> Result<Option<T>, OciDistributionError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(
            OciDistributionError::ServerError { code: 404, .. } | OciDistributionError::ImageManifestNotFoundError(_),
        ) => Ok(None),
        Err(OciDistributionError::RegistryError { envelope, .. })
            if envelope.errors.iter().any(|e| {
                matches!(e.code, OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::NotFound)
            }) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}
