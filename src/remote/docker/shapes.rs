//! Our values as the engine's API writes them, and back. No calls.

use std::collections::{BTreeMap, HashMap};

use bollard::models::{
    ContainerCreateBody, ContainerSummary, ContainerSummaryStateEnum, HostConfig, PortBinding, PortSummaryTypeEnum,
    RestartPolicy, RestartPolicyNameEnum, SystemInfo,
};

use crate::{
    inventory::{Container, ContainerSpec, ContainerState, Engine, Ours},
    model::{Memory, Port, Timestamp},
    plan::{Restart, Volume},
};

pub(super) fn engine(info: SystemInfo) -> Engine {
    let architecture = info.architecture.unwrap_or_default();
    Engine {
        version: info.server_version.unwrap_or_default(),
        cpus: info.ncpu.and_then(|n| u32::try_from(n).ok()).unwrap_or_default(),
        memory: Memory(info.mem_total.and_then(|n| u64::try_from(n).ok()).unwrap_or_default()),
        disk_free: None,
        disk_total: None,
        id: info.id.unwrap_or_default(),
        os: info.os_type.unwrap_or_else(|| "linux".to_owned()),
        architecture: match architecture.as_str() {
            "x86_64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            "i386" | "i686" => "386".to_owned(),
            "armv6l" | "armv7l" => "arm".to_owned(),
            _ => architecture,
        },
    }
}

/// None for a container without an id.
pub(super) fn container(listed: ContainerSummary) -> Option<Container> {
    let labels: BTreeMap<_, _> = listed.labels.unwrap_or_default().into_iter().collect();
    let published = listed
        .ports
        .unwrap_or_default()
        .into_iter()
        .filter(|port| port.typ == Some(PortSummaryTypeEnum::TCP))
        .filter_map(|port| Some((Port::new(port.private_port)?, Port::new(port.public_port?)?)))
        .collect();
    Some(Container {
        id: listed.id?,
        // A linked container has several; its own is the one with a single slash.
        name: listed
            .names
            .unwrap_or_default()
            .iter()
            .filter_map(|name| name.strip_prefix('/'))
            .find(|name| !name.contains('/'))
            .unwrap_or_default()
            .to_owned(),
        ours: Ours::from_labels(&labels),
        image: listed.image.unwrap_or_default(),
        state: match listed.state {
            Some(ContainerSummaryStateEnum::CREATED) => ContainerState::Created,
            Some(ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::STOPPING) => ContainerState::Running,
            Some(ContainerSummaryStateEnum::PAUSED) => ContainerState::Paused,
            Some(ContainerSummaryStateEnum::RESTARTING) => ContainerState::Restarting,
            Some(ContainerSummaryStateEnum::REMOVING) => ContainerState::Removing,
            Some(ContainerSummaryStateEnum::EXITED) => ContainerState::Exited,
            Some(ContainerSummaryStateEnum::DEAD | ContainerSummaryStateEnum::EMPTY) | None => ContainerState::Dead,
        },
        published,
        created: listed.created.and_then(|seconds| Timestamp::from_second(seconds).ok()),
    })
}

/// What the engine is asked to make; why not, where a value cannot be said in its words.
pub(super) fn create_body(wanted: &ContainerSpec) -> Result<ContainerCreateBody, String> {
    let spec = &wanted.spec;
    let port = format!("{}/tcp", spec.port);
    let binding = PortBinding { host_ip: Some("0.0.0.0".to_owned()), host_port: Some(wanted.host_port.to_string()) };
    let mut labels: HashMap<_, _> = spec.labels.clone().into_iter().collect();
    // Last: the user's labels never speak for us.
    labels.extend(wanted.ours.to_labels());
    let name = match spec.restart {
        Restart::Always => RestartPolicyNameEnum::ALWAYS,
        Restart::UnlessStopped => RestartPolicyNameEnum::UNLESS_STOPPED,
        Restart::OnFailure => RestartPolicyNameEnum::ON_FAILURE,
        Restart::No => RestartPolicyNameEnum::NO,
    };
    let memory = spec.memory.map(|m| i64::try_from(m.bytes())).transpose();
    Ok(ContainerCreateBody {
        image: Some(spec.image.to_string()),
        env: Some(spec.environment.iter().map(|(key, value)| format!("{key}={value}")).collect()),
        cmd: spec.command.clone(),
        entrypoint: spec.entrypoint.clone(),
        user: spec.user.clone(),
        working_dir: spec.working_dir.clone(),
        labels: Some(labels),
        exposed_ports: Some(vec![port.clone()]),
        stop_timeout: Some(spec.stop_timeout_seconds.into()),
        host_config: Some(HostConfig {
            port_bindings: Some(HashMap::from([(port, Some(vec![binding]))])),
            binds: Some(spec.volumes.iter().map(bind).collect::<Result<_, _>>()?),
            memory: memory.map_err(|_| "its memory limit is too large".to_owned())?,
            nano_cpus: spec.cpus.map(crate::model::Cpus::nanos),
            restart_policy: Some(RestartPolicy { name: Some(name), maximum_retry_count: None }),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    })
}

/// `SOURCE:TARGET[:ro]`
fn bind(volume: &Volume) -> Result<String, String> {
    let Volume { source, target, read_only } = volume;
    // A colon would be read as the next field: another target, another mode.
    if source.contains(':') || target.contains(':') {
        return Err(format!("the volume {source:?} on {target:?} has a colon in a path"));
    }
    Ok(format!("{source}:{target}{}", if *read_only { ":ro" } else { "" }))
}
