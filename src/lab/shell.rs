//! A command on one of the lab's machines. Becomes that command: its exit code and signals are the caller's.

use std::{
    ffi::{OsStr, OsString},
    os::unix::{ffi::OsStrExt, process::CommandExt},
    process::{Command, Stdio},
};

use crate::model::NodeName;

use super::{Lab, LabError, program};

/// A machine of the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The gateway.
    Gateway,
    /// The machine on the inside network that is no node.
    Client,
    /// A node, as this user.
    Node(NodeName, String),
}

impl Lab {
    /// Becomes the command, or a shell where there is none. Returns only when that fails.
    pub fn shell(&self, target: &Target, command: &[OsString]) -> Result<std::convert::Infallible, LabError> {
        let mut become_it = self.command(target, command)?;
        let error = become_it.exec();
        Err(LabError::Program { program: "sh".to_owned(), message: error.to_string() })
    }

    /// The command that runs a command there.
    pub fn command(&self, target: &Target, command: &[OsString]) -> Result<Command, LabError> {
        self.must_exist()?;
        let group = self.cgroups.make_leaf(&self.name, "shell")?;
        let mut run = program::command("sh");
        run.stdin(Stdio::inherit()).arg(self.places.glue().join("enter.sh")).arg(group);
        let (netns, host) = match target {
            Target::Client => (self.name.client(), "client"),
            Target::Gateway | Target::Node(..) => (self.name.gateway(), "matrix-manager"),
        };
        run.arg(netns).arg(host).arg(self.places.resolv_conf()).arg("once");
        match target {
            Target::Gateway | Target::Client if command.is_empty() => {
                run.arg(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into()));
            }
            Target::Gateway | Target::Client => {
                run.args(command);
            }
            Target::Node(node, user) => {
                self.must_have(node)?;
                let machine = self.machine(node);
                if !machine.is_on() {
                    return Err(LabError::Off(node.to_string()));
                }
                let address = machine.address().unwrap_or_else(|| node.to_string());
                run.args(["ssh", "-F"]).arg(self.places.ssh_config()).args(["-l", user, "--", &address]);
                // ssh joins its words with blanks and the node's shell parts them again: quoted, they arrive as they are.
                run.args(command.iter().map(|word| quoted(word)));
            }
        }
        Ok(run)
    }
}

/// A word as a POSIX shell reads it back unchanged.
fn quoted(word: &OsStr) -> OsString {
    let mut quoted = vec![b'\''];
    for byte in word.as_bytes() {
        if *byte == b'\'' {
            quoted.extend_from_slice(b"'\\''");
        } else {
            quoted.push(*byte);
        }
    }
    quoted.push(b'\'');
    OsStr::from_bytes(&quoted).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_through_a_shell_unchanged() {
        for word in ["plain", "two words", "it's", "$(reboot)", "a\nb", "", "'", "`x`;|&"] {
            let script = format!("printf %s {}", quoted(OsStr::new(word)).to_str().expect("text"));
            let out = Command::new("sh").args(["-c", &script]).output().expect("sh");
            assert_eq!(out.stdout, word.as_bytes());
        }
    }
}
