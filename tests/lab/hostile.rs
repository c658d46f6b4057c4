//! Values that want to be more than values: they arrive as they are, and nothing obeys them.

use std::fs;

use crate::{
    load::request,
    rig::{Lab, eventually},
};

/// What a container's first process was given, read from the node's kernel: words and variables.
fn given(lab: &Lab, container: &str) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let pid = lab.on("node1", &["docker", "inspect", "-f", "{{.State.Pid}}", container]).ok();
    let read = |file: &str| {
        let path = format!("/proc/{}/{file}", pid.trim());
        let text = lab.on("node1", &["od", "-An", "-v", "-tx1", &path]).ok();
        let bytes: Vec<u8> = text.split_whitespace().map(|h| u8::from_str_radix(h, 16).unwrap()).collect();
        let words = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
        words.split(|b| *b == 0).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    (read("cmdline"), read("environ"))
}

#[test]
fn hostile_values_of_a_plan_arrive_byte_for_byte_and_nothing_obeys_them() {
    let lab = Lab::up(&["node1"]);
    lab.ready(&["node1"]);
    lab.hello("hello:v1", &[("APP", "v1")]);
    let values = [
        "plain",
        "with 'single' and \"double\" quotes",
        "$(touch /tmp/obeyed) `touch /tmp/obeyed` ${HOME} $HOME",
        "; touch /tmp/obeyed & | && || > /tmp/obeyed",
        "two\nlines\tand a tab",
        "back\\slash \\n \\0 %s %n {{ name }} {% raw %}",
        "äöü 漢字 \u{202e}txt",
        "-v /:/host --privileged",
        "\"};\nbackend evil { .host = \"10.0.0.1\"; }\n",
        "",
    ];
    let mut plan = "[apps.hostile]\nimage = \"hello:v1\"\nentrypoint = [\"/hello\"]\n".to_owned();
    let toml = |text: &str| toml_edit::Value::from(text).to_string();
    plan += &format!("command = [{}]\n", values.map(toml).join(", "));
    plan += "health = { path = \"/hostile/;$(reboot)%22\", host = \"a.example\" }\n";
    plan += "[apps.hostile.environment]\n";
    for (number, value) in values.iter().enumerate() {
        plan += &format!("V{number} = {}\n", toml(value));
    }
    // Labels hold no control characters: the plan says so.
    plan += "[apps.hostile.labels]\n";
    for (number, value) in values.iter().filter(|v| !v.contains(char::is_control)).enumerate() {
        plan += &format!("\"example.{number}\" = {}\n", toml(value));
    }
    lab.deploy(&plan).ok();
    let container = lab.containers_of("hostile", &["node1"]).first().unwrap().clone();
    let (words, variables) = given(&lab, &container);
    assert_eq!(words[0], b"/hello");
    assert_eq!(words[1..].len(), values.len());
    for (number, value) in values.iter().enumerate() {
        assert_eq!(String::from_utf8_lossy(&words[number + 1]), *value);
        let variable = format!("V{number}={value}");
        assert!(variables.contains(&variable.clone().into_bytes()), "{variable:?} in {variables:?}");
    }
    let labels = lab.on("node1", &["docker", "inspect", "-f", "{{json .Config.Labels}}", &container]).json();
    for (number, value) in values.iter().filter(|v| !v.contains(char::is_control)).enumerate() {
        assert_eq!(labels[format!("example.{number}")], **value);
    }
    for machine in ["node1", "gateway"] {
        assert_ne!(lab.on(machine, &["test", "-e", "/tmp/obeyed"]).code, 0, "{machine} obeyed");
    }
    assert_eq!(request(lab.varnish(), "GET /hostile/ HTTP/1.1").unwrap().status, 200);
    assert!(lab.deploy(&plan).ok().contains("nothing to change"));

    let escape = "[apps.hostile]\nimage = \"hello:v1\"\nlabels = { a = \"\\u001b[31mred\" }\n";
    let ran = lab.deploy(escape);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(!ran.err.contains('\u{1b}'), "{}", ran.err);
}

#[test]
fn what_leases_and_containers_call_themselves_is_shown_and_never_obeyed() {
    let lab = Lab::up(&["node1"]);
    lab.ready(&["node1"]);
    lab.hello("hello:v1", &[("APP", "v1")]);
    lab.deploy("[apps.good]\nimage = \"hello:v1\"\n").ok();
    let nodes = || {
        let view = lab.matrix(&["nodes", "--json"]).json();
        let all = view["nodes"].as_array().cloned().unwrap_or_default();
        all.iter().map(|n| n["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(nodes(), ["node1"]);

    // Somebody on the node's engine pretends to be of this cloud.
    let escape = "\u{1b}]0;owned\u{7}\u{1b}[2J\u{1b}[31mred";
    let cloud = format!("matrix.cloud={}", lab.name);
    let image = "matrix-manager.matrix:5000/cloud/hello:v1";
    for (name, app, instance) in
        [("stranger1", escape, "1"), ("stranger2", "good", escape), ("stranger3", "../../etc", "$(reboot)")]
    {
        let (app, instance) = (format!("matrix.app={app}"), format!("matrix.instance={instance}"));
        let words = ["docker", "run", "-d", "--name", name, "--label", &cloud, "--label", &app, "--label", &instance];
        let mut words = words.to_vec();
        let spec = format!("matrix.spec={escape}");
        words.extend(["--label", "matrix.release=1", "--label", &spec, image]);
        lab.on("node1", &words).ok();
    }
    // A machine asks for an address under a hostile name, and one writes what no client can send.
    let leases = lab.state_dir().join("leases/dnsmasq.leases");
    let good = fs::read_to_string(&leases).unwrap();
    let mut text = good.clone();
    for (number, name) in [
        "$(reboot)",
        "a;b",
        "../../x",
        "\u{1b}[31mred",
        "-oProxyCommand=reboot",
        "node1\u{0}",
        "x\"};",
        "NODE1",
        "node1",
    ]
    .iter()
    .enumerate()
    {
        text += &format!("1999999999 52:54:00:00:01:{number:02x} 10.10.10.{} {name} *\n", 60 + number);
    }
    text += "1999999999 52:54:00:00:02:01 10.10.10.99 fresh *\n";
    fs::write(&leases, &text).unwrap();
    eventually("the file was read to its end", 10, || nodes().contains(&"fresh".to_owned()));
    let names = nodes();
    assert!(
        names.iter().all(|n| n.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')),
        "{names:?}"
    );
    for args in [&["status"][..], &["nodes"], &["status", "--json"], &["nodes", "--json"]] {
        let ran = lab.matrix(args);
        assert_eq!(ran.code, 0, "{}", ran.err);
        for text in [&ran.out, &ran.err] {
            assert!(!text.contains(['\u{1b}', '\u{7}']), "{text:?}");
        }
    }
    fs::write(&leases, good).unwrap();
    eventually("the node is as before", 15, || {
        nodes().contains(&"node1".to_owned()) && lab.matrix(&["status", "--wait", "1"]).code == 0
    });
    assert_eq!(request(lab.varnish(), "GET /good/ HTTP/1.1").unwrap().status, 200);
    // Labels are a claim: what they say is no name of ours is left alone.
    for name in ["stranger1", "stranger3"] {
        assert_eq!(lab.on("node1", &["docker", "inspect", "-f", "{{.State.Running}}", name]).ok().trim(), "true");
    }
}
