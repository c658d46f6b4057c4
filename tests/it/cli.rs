//! The command line as a user meets it.

use assert_cmd::Command;

#[test]
fn help_names_every_command() {
    let help = Command::cargo_bin("matrix").unwrap().arg("--help").output().unwrap();
    let text = String::from_utf8(help.stdout).unwrap();
    for command in ["create-image", "install-image", "nodes", "plan", "deploy", "status", "vcl", "serve", "lab"] {
        assert!(text.contains(command), "{command} is missing in\n{text}");
    }
}
