//! What runs on the gateway: dnsmasq, the registry, Varnish, the manager; each kept running by a supervisor of a few lines.

use std::{
    ffi::OsStr,
    fs,
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::routing::vcl;

use super::{LabError, LabName, Leg, Places, cgroup, cgroup::Cgroups, program};

/// The services, in the order they start; the last is the manager.
pub const SERVICES: [&str; 4] = ["dnsmasq", "registry", "varnish", "matrix"];

const FILES: [(&str, &str); 4] = [
    ("machine.sh", include_str!("../../vm/lab/machine.sh")),
    ("enter.sh", include_str!("../../vm/lab/enter.sh")),
    ("node-init", include_str!("../../vm/lab/node-init")),
    ("node-restart", include_str!("../../vm/lab/node-restart")),
];

/// A template with its `{{ name }}` places filled, as the provisioning scripts fill them with sed.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(&format!("{{{{ {name} }}}}"), value))
}

/// The manager's configuration.
fn manager_config(name: &LabName, places: &Places, leg: Leg, binary: &Path) -> String {
    // Its supervisor starts it again.
    let binary = binary.display().to_string();
    let restart = [binary.as_str(), "lab", "--name", name.as_str(), "service", "crash", "registry"];
    let path = |p: &Path| p.display().to_string();
    fill(
        include_str!("../../templates/gateway.toml"),
        &[
            ("cloud", name.as_str()),
            ("state", &path(&places.state.join("matrix"))),
            ("run", &path(&places.run)),
            ("listen", &format!("\"10.10.10.1:8080\", \"{}:8080\"", leg.gateway())),
            // Reached from this machine, the gateway and the client alike: commands ask the manager for it.
            ("registry", &format!("http://{}:5000", leg.gateway())),
            ("leases", &path(&places.leases())),
            ("identity", &path(&places.identity())),
            ("varnish", &path(&places.varnish())),
            ("storage", &path(&places.state.join("registry"))),
            ("registry_config", &path(&places.run.join("registry.yml"))),
            ("restart", &restart.map(|word| format!("{word:?}")).join(", ")),
        ],
    )
}

fn ssh_config(places: &Places) -> String {
    format!(
        "Host *\n  IdentityFile {}\n  IdentitiesOnly yes\n  BatchMode yes\n  ConnectTimeout 3\n  LogLevel ERROR\n  \
         GSSAPIAuthentication no\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  \
         GlobalKnownHostsFile /dev/null\n",
        places.identity().display()
    )
}

fn write(path: &Path, text: &str) -> Result<(), LabError> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(LabError::file("create", parent))?;
    }
    fs::write(path, text).map_err(LabError::file("write", path))
}

/// Writes everything nodes and services read.
pub fn write_files(name: &LabName, places: &Places, leg: Leg, binary: &Path) -> Result<(), LabError> {
    for (file, text) in FILES {
        write(&places.glue().join(file), text)?;
    }
    let path = |p: &Path| p.display().to_string();
    let leases = places.leases();
    let dnsmasq = fill(include_str!("../../templates/dnsmasq.conf"), &[("inside", "eth1"), ("leases", &path(&leases))]);
    // Debian's own user for it belongs to another package than the program's.
    let pid = places.run.join("dnsmasq.pid");
    let own = format!("user=root\nlog-facility=-\nlog-dhcp\npid-file={}\n", pid.display());
    write(&places.run.join("dnsmasq.conf"), &(dnsmasq + &own))?;
    let storage = places.state.join("registry");
    let registry = fill(include_str!("../../templates/registry.yml"), &[("storage", &path(&storage))]);
    write(&places.run.join("registry.yml"), &registry)?;
    write(&places.state.join("empty.vcl"), include_str!("../../templates/empty.vcl"))?;
    write(&places.resolv_conf(), "search matrix\nnameserver 10.10.10.1\n")?;
    write(&places.ssh_config(), &ssh_config(places))?;
    write(&places.config(), &manager_config(name, places, leg, binary))?;
    for directory in
        [places.state.join("log"), places.state.join("leases"), places.state.join("matrix"), places.varnish()]
    {
        fs::create_dir_all(&directory).map_err(LabError::file("create", directory))?;
    }
    // varnishd reads its VCL as a user of its own.
    for directory in [&places.base, &places.state, &places.run] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).map_err(LabError::file("open", directory))?;
    }
    if !places.identity().exists() {
        let file = places.identity();
        program::run(
            "ssh-keygen",
            ["-q", "-t", "ed25519", "-N", "", "-C", "matrix-lab", "-f"]
                .map(OsStr::new)
                .into_iter()
                .chain([file.as_os_str()]),
        )?;
    }
    Ok(())
}

/// Whether a service (or its supervisor, about to start it again) is there.
pub fn is_running(name: &LabName, cgroups: &Cgroups, service: &str) -> bool {
    !cgroup::processes(&cgroups.leaf(name, &format!("svc-{service}"))).is_empty()
}

/// Starts a service that is not there; `binary` is the matrix that the manager is to be.
pub fn start(name: &LabName, places: &Places, cgroups: &Cgroups, service: &str, binary: &Path) -> Result<(), LabError> {
    if is_running(name, cgroups, service) {
        return Ok(());
    }
    let path = |p: &Path| p.as_os_str().to_owned();
    let text = |s: &str| OsStr::new(s).to_owned();
    let run = |file: &str| path(&places.run.join(file));
    let command = match service {
        "dnsmasq" => {
            _ = fs::remove_file(places.run.join("dnsmasq.pid"));
            vec![text("dnsmasq"), text("--keep-in-foreground"), text("-C"), run("dnsmasq.conf")]
        }
        // While the manager cleans, its file makes the registry read-only.
        "registry" => {
            let script = "[ ! -f \"$1\" ] || { . \"$1\" && export REGISTRY_STORAGE_MAINTENANCE_READONLY; }; \
                          exec docker-registry serve \"$2\"";
            vec![text("sh"), text("-c"), text(script), text("registry"), run("registry.env"), run("registry.yml")]
        }
        "varnish" => {
            let words = ["varnishd", "-F", "-a", ":6081", "-s", "malloc,64m"];
            let mut command: Vec<_> = words.into_iter().chain(vcl::varnishd_parameters()).map(text).collect();
            command.extend([text("-n"), path(&places.varnish()), text("-f"), path(&places.state.join("empty.vcl"))]);
            command
        }
        _ => vec![path(binary), text("serve"), text("--config"), path(&places.config())],
    };
    let group = cgroups.make_leaf(name, &format!("svc-{service}"))?;
    let mut args =
        vec![path(&group), text(&name.gateway()), text("matrix-manager"), path(&places.resolv_conf()), text("keep")];
    args.extend(command);
    let args: Vec<&OsStr> = args.iter().map(AsRef::as_ref).collect();
    program::detach(
        &places.glue().join("enter.sh"),
        &args,
        &[("PATH", OsStr::new(&program::search_path())), ("NO_COLOR", OsStr::new("1"))],
        &places.log(service),
    )
}

/// Ends a service and its supervisor.
pub fn stop(name: &LabName, cgroups: &Cgroups, service: &str) -> Result<(), LabError> {
    cgroup::end(name, &cgroups.leaf(name, &format!("svc-{service}")))
}

/// Kills a service as a crash would; its supervisor starts it again.
pub fn crash(name: &LabName, cgroups: &Cgroups, service: &str) {
    cgroup::crash(&cgroups.leaf(name, &format!("svc-{service}")));
}

/// Waits until dnsmasq listens: a machine's first question lost costs it three seconds.
pub fn wait_for_dnsmasq(places: &Places) -> Result<(), LabError> {
    let pid = places.run.join("dnsmasq.pid");
    wait("dnsmasq", 5, &places.log("dnsmasq"), || fs::read_to_string(&pid).is_ok_and(|text| !text.trim().is_empty()))
}

/// Waits until the manager answers on its socket.
pub fn wait_for_manager(places: &Places) -> Result<(), LabError> {
    wait("the manager's first answer", 15, &places.log("matrix"), || manager_answers(&places.socket()))
}

/// Whether something speaks HTTP on the manager's socket.
pub fn manager_answers(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    let limit = Some(Duration::from_secs(2));
    let mut head = [0u8; 5];
    stream.set_read_timeout(limit).is_ok()
        && stream.set_write_timeout(limit).is_ok()
        && stream.write_all(b"GET / HTTP/1.1\r\nHost: matrix\r\nConnection: close\r\n\r\n").is_ok()
        && stream.read_exact(&mut head).is_ok()
        && &head == b"HTTP/"
}

/// Waits for something; after the time allowed, the end of a log says why not.
pub fn wait(what: &str, seconds: u64, log: &Path, mut done: impl FnMut() -> bool) -> Result<(), LabError> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !done() {
        if Instant::now() > deadline {
            let text = fs::read_to_string(log).unwrap_or_default();
            let last: Vec<_> = text.lines().rev().take(5).collect();
            let last = last.into_iter().rev().collect::<Vec<_>>().join("\n  ");
            let detail = format!("; {} ends with\n  {last}", log.display());
            return Err(LabError::TooSlow { what: what.to_owned(), seconds, detail });
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::config::{AdmissionPolicy, Config};

    #[test]
    fn the_manager_can_read_its_configuration() {
        let name: LabName = "t1".parse().expect("name");
        let places = Places::new(&name, None).expect("places");
        let leg: Leg = "10.10.9.0/30".parse().expect("leg");
        let text = manager_config(&name, &places, leg, Path::new("/opt/matrix"));
        assert!(!text.contains("{{"), "{text}");
        let config: Config = toml::from_str(&text).expect("a configuration");
        assert_eq!(config.cloud.as_str(), "t1");
        assert_eq!(config.run.join("matrix.sock"), places.socket());
        assert_eq!(config.listen[1].to_string(), "10.10.9.2:8080");
        assert_eq!(config.registry.endpoint, "http://10.10.9.2:5000");
        assert_eq!(config.leases, Some(places.leases()));
        assert!(matches!(config.admission, AdmissionPolicy::FirstUse));
        assert_eq!(config.gc.restart.first().map(String::as_str), Some("/opt/matrix"));
        assert_eq!(config.varnish.map(|v| v.workdir), Some(places.varnish()));
    }

    #[test]
    fn every_place_of_a_template_is_filled() {
        let dnsmasq = fill(include_str!("../../templates/dnsmasq.conf"), &[("inside", "eth1"), ("leases", "/l")]);
        let registry = fill(include_str!("../../templates/registry.yml"), &[("storage", "/s")]);
        assert!(!dnsmasq.contains("{{") && !registry.contains("{{"));
        assert!(dnsmasq.contains("interface=eth1\n") && registry.contains("rootdirectory: /s\n"));
    }
}
