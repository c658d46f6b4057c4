//! This machine's TCP connections to another one: ended when that one is lost.
//!
//! A machine that lost its power refuses nothing: what was sent to it waits for an answer until a timeout of a minute,
//! and a gateway tries the request elsewhere only then. Never touches ssh's connections: those are a session's own matter.

use std::{io, net::IpAddr, process::Stdio};

use tokio::process::Command;

/// How many places one `ss` is asked about: starting it costs more than looking.
const AT_ONCE: usize = 64;

/// Ends every connection of this network namespace to `address`, but for those to `ssh`'s port. Needs root, and a
/// kernel with `CONFIG_INET_DIAG_DESTROY`; without it nothing happens.
///
/// # Errors
/// `ss` cannot be run, or said what went wrong.
pub async fn cut(address: IpAddr, ssh: u16) -> io::Result<()> {
    kill(&["dst", &address.to_string(), "and", "dport", "!=", &ssh.to_string()]).await
}

/// Ends connections to these addresses and ports that this side has ended and the other has not. varnishd 7.1 waits for
/// that, without a limit and with its lock held, when it forgets a backend: one frozen process would stop every change.
///
/// # Errors
/// As [`cut`].
pub async fn end_shut(places: &[(IpAddr, u16)]) -> io::Result<()> {
    for places in places.chunks(AT_ONCE) {
        let mut filter: Vec<String> = ["state", "fin-wait-1", "state", "fin-wait-2", "("].map(Into::into).into();
        for (at, (address, port)) in places.iter().enumerate() {
            filter.extend((at > 0).then(|| "or".into()));
            filter.extend(["(", "dst"].map(Into::into));
            filter.push(address.to_string());
            filter.extend(["and", "dport", "="].map(Into::into));
            filter.extend([port.to_string(), ")".into()]);
        }
        filter.push(")".into());
        kill(&filter.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    }
    Ok(())
}

async fn kill(filter: &[&str]) -> io::Result<()> {
    let output = Command::new("ss")
        .args(["--no-header", "--kill", "--tcp"])
        .args(filter)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output()
        .await?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_machine_with_no_connection_is_cut_off_without_a_word() {
        // An address for documentation: nobody has a connection to it.
        assert!(cut(IpAddr::from([192, 0, 2, 1]), 22).await.is_ok());
        let places: Vec<_> = (1..100).map(|last| (IpAddr::from([192, 0, 2, last]), 80)).collect();
        end_shut(&places).await.expect("said to ss as it reads it");
    }
}
