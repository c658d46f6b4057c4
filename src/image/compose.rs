//! An image's configuration and manifest from its settings, its layers and what lies below.
//!
//! No random order: JSON is written with sorted keys, so that equal images are equal bytes.

use oci_spec::image::{DescriptorBuilder, ImageConfiguration, ImageManifest, ImageManifestBuilder, MediaType};
use serde_json::{Map, Value, json};

use super::{Blob, CONFIG, Error, HealthCheck, LAYER_GZIP, LayerSum, Settings, canonical, digest_of};
use crate::model::{Digest, Timestamp};

/// The machine an image is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `amd64`
    pub architecture: String,
}

impl Platform {
    /// The platform this program was built for, in OCI's words.
    pub fn here() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Self { architecture: architecture.to_owned() }
    }
}

/// An image to build upon.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Its configuration, with what no specification knows.
    pub config: Value,
    /// Its layers, lowest first.
    pub layers: Vec<Blob>,
}

/// An image's small parts, ready to be written or pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Composed {
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The manifest's digest: the image's.
    pub digest: Digest,
    /// The configuration's bytes.
    pub config_bytes: Vec<u8>,
    /// The configuration.
    pub config: Blob,
    /// The layers, lowest first.
    pub layers: Vec<Blob>,
}

/// Reads an image's manifest and configuration as a base.
///
/// # Errors
/// [`Error::Base`]
pub fn base_of(manifest: &[u8], config: &[u8]) -> Result<Part, Error> {
    let wrong = |e: &dyn std::fmt::Display| Error::Base(e.to_string());
    let manifest: ImageManifest = serde_json::from_slice(manifest).map_err(|e| wrong(&e))?;
    let config: Value = serde_json::from_slice(config).map_err(|e| wrong(&e))?;
    let typed: ImageConfiguration = serde_json::from_value(config.clone()).map_err(|e| wrong(&e))?;
    if typed.rootfs().diff_ids().len() != manifest.layers().len() {
        return Err(Error::Base("its configuration and its manifest disagree about the layers".to_owned()));
    }
    if typed.os().to_string() != "linux" {
        return Err(Error::Base(format!("it is for {}, not for linux", typed.os())));
    }
    let layers = manifest.layers().iter().map(blob).collect::<Result<_, _>>()?;
    Ok(Part { config, layers })
}

fn blob(descriptor: &oci_spec::image::Descriptor) -> Result<Blob, Error> {
    let media_type = match descriptor.media_type().to_string().as_str() {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => LAYER_GZIP.to_owned(),
        "application/vnd.docker.image.rootfs.diff.tar" => "application/vnd.oci.image.layer.v1.tar".to_owned(),
        other if other.starts_with("application/vnd.oci.image.layer.v1.tar") => other.to_owned(),
        other => return Err(Error::Base(format!("a layer is {other:?}, which no engine here can unpack"))),
    };
    let digest = descriptor.digest().to_string().parse().map_err(|e| Error::Base(format!("{e}")))?;
    Ok(Blob { media_type, digest, size: descriptor.size() })
}

/// The image of these settings: the base's layers, then `layers`; `created` stands in its history.
///
/// # Errors
/// A base whose configuration has a shape that cannot be added to.
pub fn compose(
    base: Option<&Part>,
    platform: &Platform,
    settings: &Settings,
    layers: &[LayerSum],
    created: Timestamp,
) -> Result<Composed, Error> {
    let (mut config, below) = match base {
        Some(part) => (part.config.clone(), part.layers.clone()),
        None => (json!({ "architecture": platform.architecture, "os": "linux" }), Vec::new()),
    };
    let created = created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let root = config.as_object_mut().ok_or_else(|| Error::Base("its configuration is no object".to_owned()))?;
    root.insert("created".to_owned(), json!(created));
    for key in ["container", "container_config", "docker_version", "id", "parent", "throwaway"] {
        root.remove(key);
    }
    let diff_ids = list(object(root, "rootfs")?, "diff_ids")?;
    diff_ids.extend(layers.iter().map(|l| json!(l.diff_id)));
    object(root, "rootfs")?.insert("type".to_owned(), json!("layers"));
    let history = list(root, "history")?;
    history.extend(layers.iter().map(|_| json!({ "created": created, "created_by": "matrix create-image" })));
    apply(object(root, "config")?, settings)?;
    serde_json::from_value::<ImageConfiguration>(config.clone()).map_err(|e| Error::Base(e.to_string()))?;
    let config_bytes = canonical(config);
    let added =
        layers.iter().map(|l| Blob { media_type: LAYER_GZIP.to_owned(), digest: l.digest.clone(), size: l.size });
    manifest_for(config_bytes, below.into_iter().chain(added).collect())
}

/// The image of a configuration as it is and these layers: what becomes of a docker-save archive.
///
/// # Errors
/// None in practice: the parts are well-formed.
pub fn docker_manifest(config: Vec<u8>, layers: Vec<Blob>) -> Result<Composed, Error> {
    manifest_for(config, layers)
}

fn manifest_for(config_bytes: Vec<u8>, layers: Vec<Blob>) -> Result<Composed, Error> {
    let wrong = |e: oci_spec::OciSpecError| Error::Format(e.to_string());
    let descriptor = |blob: &Blob| {
        DescriptorBuilder::default()
            .media_type(MediaType::from(blob.media_type.as_str()))
            .digest(blob.digest.as_str().parse::<oci_spec::image::Digest>().map_err(wrong)?)
            .size(blob.size)
            .build()
            .map_err(wrong)
    };
    let config =
        Blob { media_type: CONFIG.to_owned(), digest: digest_of(&config_bytes), size: config_bytes.len() as u64 };
    let manifest = ImageManifestBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageManifest)
        .config(descriptor(&config)?)
        .layers(layers.iter().map(descriptor).collect::<Result<Vec<_>, _>>()?)
        .build()
        .map_err(wrong)?;
    let manifest = canonical(serde_json::to_value(manifest).map_err(|e| Error::Format(e.to_string()))?);
    Ok(Composed { digest: digest_of(&manifest), manifest, config_bytes, config, layers })
}

/// The settings over what the base says.
fn apply(config: &mut Map<String, Value>, settings: &Settings) -> Result<(), Error> {
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            config.insert(key.to_owned(), value);
        }
    };
    // As in a Dockerfile: a new entry point takes the base's command away.
    if settings.entrypoint.is_some() {
        put("Cmd", Some(Value::Null));
    }
    put("Entrypoint", settings.entrypoint.as_ref().map(|e| if e.is_empty() { Value::Null } else { json!(e) }));
    put("Cmd", settings.command.as_ref().map(|c| json!(c)));
    put("User", settings.user.as_ref().map(|u| json!(u)));
    put("WorkingDir", settings.working_dir.as_ref().map(|d| json!(d)));
    put("StopSignal", settings.stop_signal.as_ref().map(|s| json!(s)));
    put("Healthcheck", settings.health.as_ref().map(health));
    config.retain(|_, value| !value.is_null());
    if let Some(port) = settings.port {
        object(config, "ExposedPorts")?.insert(format!("{port}/tcp"), json!({}));
    }
    if !settings.labels.is_empty() {
        object(config, "Labels")?.extend(settings.labels.iter().map(|(k, v)| (k.clone(), json!(v))));
    }
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let env = list(config, "Env")?;
    if !env.iter().any(|e| e.as_str().is_some_and(|e| e.starts_with("PATH="))) {
        env.insert(0, json!(path));
    }
    for (name, value) in &settings.environment {
        let line = json!(format!("{name}={value}"));
        let begin = format!("{name}=");
        match env.iter_mut().find(|e| e.as_str().is_some_and(|e| e.starts_with(&begin))) {
            Some(there) => *there = line,
            None => env.push(line),
        }
    }
    Ok(())
}

/// Docker's own addition to the configuration; times in nanoseconds.
fn health(check: &HealthCheck) -> Value {
    let mut test = vec!["CMD".to_owned()];
    test.extend(check.command.iter().cloned());
    let mut value = json!({ "Test": test });
    let times = [("Interval", check.interval), ("Timeout", check.timeout), ("StartPeriod", check.start_period)];
    for (key, time) in times {
        if let Some(ms) = time {
            value[key] = json!(ms * 1_000_000);
        }
    }
    if let Some(retries) = check.retries {
        value["Retries"] = json!(retries);
    }
    value
}

fn object<'a>(parent: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Map<String, Value>, Error> {
    let value = parent.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut().ok_or_else(|| Error::Base(format!("{key} in its configuration is no object")))
}

fn list<'a>(parent: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Vec<Value>, Error> {
    let value = parent.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut().ok_or_else(|| Error::Base(format!("{key} in its configuration is no list")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        Settings::parse("image.toml", text).expect("settings")
    }
    fn sum(seed: &str) -> LayerSum {
        LayerSum { digest: digest_of(seed.as_bytes()), size: 3, diff_id: digest_of(b"tar"), unpacked: 9 }
    }

    #[test]
    fn a_base_is_added_to() {
        let below = settings("base = \"scratch\"\ncommand = [\"a\"]\nport = 80\n[environment]\nA = \"1\"\nB = \"2\"");
        let here = Platform { architecture: "amd64".to_owned() };
        let base = compose(None, &here, &below, &[sum("below")], Timestamp::UNIX_EPOCH).expect("a base");
        let part = base_of(&base.manifest, &base.config_bytes).expect("a part");
        let above = settings(
            "base = \"b.tar\"\nentrypoint = [\"e\"]\nuser = \"7\"\n[environment]\nB = \"3\"\n[health]\ncommand = \"x\"\ninterval = \"2s\"",
        );
        let image = compose(Some(&part), &here, &above, &[sum("above")], Timestamp::UNIX_EPOCH).expect("an image");
        assert_eq!(image.layers.len(), 2);
        let config: Value = serde_json::from_slice(&image.config_bytes).expect("JSON");
        assert_eq!(config["config"]["Env"][1], "A=1");
        assert_eq!(config["config"]["Env"][2], "B=3");
        assert_eq!(config["config"]["Cmd"], Value::Null, "a new entry point takes the command away");
        assert_eq!(config["config"]["ExposedPorts"], json!({ "80/tcp": {} }));
        assert_eq!(config["config"]["Healthcheck"], json!({ "Test": ["CMD", "x"], "Interval": 2_000_000_000u64 }));
        assert_eq!(config["created"], "1970-01-01T00:00:00Z");
        assert_eq!(config["rootfs"]["diff_ids"].as_array().map(Vec::len), Some(2));
        assert_eq!(config["history"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn bases_that_lie_are_refused() {
        let here = Platform { architecture: "amd64".to_owned() };
        let scratch = settings("base = \"scratch\"");
        let image = compose(None, &here, &scratch, &[sum("a")], Timestamp::UNIX_EPOCH).expect("an image");
        let mut config: Value = serde_json::from_slice(&image.config_bytes).expect("JSON");
        config["rootfs"]["diff_ids"] = json!([]);
        assert!(base_of(&image.manifest, &canonical(config.clone())).is_err());
        config["rootfs"]["diff_ids"] = json!([digest_of(b"tar")]);
        config["os"] = json!("windows");
        assert!(base_of(&image.manifest, &canonical(config)).is_err());
        assert!(base_of(b"{}", b"{}").is_err() && base_of(b"", b"").is_err());
    }
}
