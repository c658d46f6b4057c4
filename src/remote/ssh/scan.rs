//! Which host key a machine offers. Proves nothing: the key is only believed once somebody admits it.

use std::{io::ErrorKind, net::IpAddr, process::Stdio, time::Duration};

use base64::{Engine as _, engine::general_purpose};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpStream, process::Command, time::timeout};

use crate::{
    inventory::HostKey,
    model::{NodeName, Port},
};

use super::{HANDSHAKES, SshError};

/// The ed25519 host key that `address` offers now.
///
/// # Errors
/// When it does not answer, refuses, or has no such key.
pub async fn scan(node: &NodeName, address: IpAddr, port: Port) -> Result<HostKey, SshError> {
    let _permit = HANDSHAKES.acquire().await.ok();
    let unreachable = || SshError::Unreachable { node: node.clone(), address };
    let look = Command::new("ssh-keyscan")
        .args(["-T", "3", "-t", "ed25519", "-p", &port.to_string(), "--", &address.to_string()])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(Duration::from_secs(6), look).await.map_err(|_| unreachable())?;
    let output = output.map_err(|e| SshError::local("run ssh-keyscan", e))?;
    if let Some(key) = String::from_utf8_lossy(&output.stdout).lines().find_map(read_line) {
        return Ok(key);
    }
    // ssh-keyscan says nothing about why.
    match timeout(Duration::from_secs(3), TcpStream::connect((address, port.get()))).await {
        Ok(Ok(_)) => Err(SshError::UnknownKey { node: node.clone(), algorithm: "ssh-ed25519".to_owned() }),
        Ok(Err(e)) if e.kind() == ErrorKind::ConnectionRefused => {
            Err(SshError::Refused { node: node.clone(), address })
        }
        Ok(Err(_)) | Err(_) => Err(unreachable()),
    }
}

/// `HOST ssh-ed25519 KEY`
fn read_line(line: &str) -> Option<HostKey> {
    let mut words = line.split_whitespace().skip(1);
    let (algorithm, key) = (words.next()?, words.next()?);
    let fingerprint = fingerprint(key).filter(|_| algorithm == "ssh-ed25519")?;
    Some(HostKey { algorithm: algorithm.to_owned(), key: key.to_owned(), fingerprint })
}

/// `SHA256:…` of a key in base64; none where it is not base64.
pub fn fingerprint(key: &str) -> Option<String> {
    let bytes = general_purpose::STANDARD.decode(key).ok()?;
    Some(format!("SHA256:{}", general_purpose::STANDARD_NO_PAD.encode(Sha256::digest(bytes))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A public service's key and its published fingerprint.
    #[test]
    fn fingerprints_are_those_of_ssh_keygen() {
        let line = "10.10.10.25 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl";
        let key = read_line(line).expect("a key");
        assert_eq!(key.fingerprint, "SHA256:+DiY3wvvV6TuJJhbpZisF/zLDA0zPMSvHdkr4UvCOqU");
        for bad in ["", "host", "host ssh-ed25519", "host ssh-ed25519 %%%", "host ssh-rsa AAAA", "# comment line"] {
            assert_eq!(read_line(bad), None, "{bad}");
        }
    }
}
