//! Whether a registry takes images.
//!
//! Puts nothing there.

use super::Registry;

/// What a registry takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everything.
    Writable,
    /// Nothing: it only gives.
    ReadOnly,
}

impl Registry {
    /// Whether it takes images now; none: it does not answer.
    pub async fn mode(&self) -> Option<Mode> {
        // No manifest at all: one that would take it says that it is invalid, a read-only one that it takes none.
        let url = format!("{}/v2/matrix/mode/manifests/probe", self.endpoint);
        let mut request = self.http.put(url).body("none");
        if let Some(c) = &self.credentials {
            request = request.basic_auth(&c.user, Some(&c.password));
        }
        match request.send().await.ok()?.status() {
            http::StatusCode::METHOD_NOT_ALLOWED => Some(Mode::ReadOnly),
            status if status.is_server_error() => None,
            _ => Some(Mode::Writable),
        }
    }
}
