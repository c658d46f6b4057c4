//! An engine's API over a unix socket: the forwarded one of a node, or a local one.
//!
//! Decides nothing and retries nothing. What lacks the given cloud's id is neither stopped nor removed here.

mod clean;
mod error;
mod shapes;

use std::{collections::HashMap, path::Path, time::Duration};

use bollard::{
    Docker,
    container::LogOutput,
    models::{ContainerInspectResponse, EventMessage},
    query_parameters as query,
};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};

use crate::{
    inventory::{Container, ContainerSpec, Engine, Ours},
    model::{CloudId, ImageRef, NodeName},
};

use error::Doing;
pub use error::EngineError;

/// For one answer. Creating on a busy disk takes seconds; pulls and waits have no limit but the session's life.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// One node's engine. Cheap to clone; every call opens a connection of its own.
#[derive(Debug, Clone)]
pub struct EngineClient {
    node: NodeName,
    docker: Docker,
}

/// How far a pull is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullProgress {
    /// The layer, or the tag or digest itself.
    pub layer: String,
    /// The engine's word: `Downloading`, `Extracting`, `Pull complete`.
    pub status: String,
    /// Bytes so far.
    pub current: Option<u64>,
    /// All bytes.
    pub total: Option<u64>,
}

/// Something happened to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerEvent {
    /// The container's id.
    pub id: String,
    /// The engine's word: `start`, `die`, `destroy`, `health_status: healthy`.
    pub action: String,
}

impl EngineClient {
    /// The engine behind `socket`, which must be there.
    ///
    /// # Errors
    /// When there is no socket.
    pub fn open(node: NodeName, socket: &Path) -> Result<Self, EngineError> {
        let docker =
            Docker::connect_with_unix(&socket.to_string_lossy(), ANSWER_WITHIN.as_secs(), bollard::API_DEFAULT_VERSION)
                .map_err(|e| Doing::new(&node, "reach the engine").error(e))?;
        Ok(Self { node, docker })
    }

    /// Whose engine this is.
    pub fn node(&self) -> &NodeName {
        &self.node
    }

    /// Whether the engine answers within `patience`.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self, patience: Duration) -> Result<(), EngineError> {
        self.within(patience, "ask whether the engine lives", async { self.docker.ping().await.map(drop) }).await
    }

    /// What the engine says of itself; the disk is not among it.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn info(&self) -> Result<Engine, EngineError> {
        let info = self.docker.info().await.map_err(self.doing("ask about the engine"))?;
        Ok(shapes::engine(info))
    }

    /// Where the engine keeps its images and containers.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn root_dir(&self) -> Result<Option<String>, EngineError> {
        Ok(self.docker.info().await.map_err(self.doing("ask about the engine"))?.docker_root_dir)
    }

    /// All containers, running or not, ours or not; sorted by name.
    ///
    /// # Errors
    /// When the engine does not answer within `patience`.
    pub async fn containers(&self, patience: Duration) -> Result<Vec<Container>, EngineError> {
        let options = query::ListContainersOptionsBuilder::new().all(true).build();
        let listed = self.within(patience, "list containers", self.docker.list_containers(Some(options))).await?;
        let mut containers: Vec<_> = listed.into_iter().filter_map(shapes::container).collect();
        containers.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Ok(containers)
    }

    /// Whether an image is on the node.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn has_image(&self, image: &str) -> Result<bool, EngineError> {
        match self.docker.inspect_image(image).await {
            Ok(_) => Ok(true),
            Err(error) if error::is_missing(&error) => Ok(false),
            Err(error) => Err(self.doing("look for an image")(error)),
        }
    }

    /// Brings an image to the node; `progress` is called for each step.
    ///
    /// # Errors
    /// When the registry has no such image or cannot be reached, the disk is full, or the engine goes away.
    pub async fn pull(
        &self,
        image: &ImageRef,
        mut progress: impl FnMut(PullProgress) + Send,
    ) -> Result<(), EngineError> {
        let mut name = image.clone();
        let version = match name.digest.take() {
            Some(digest) => digest.to_string(),
            None => image.tag_or_latest().to_owned(),
        };
        name.tag = None;
        let options = query::CreateImageOptionsBuilder::new().from_image(&name.to_string()).tag(&version).build();
        let mut steps = std::pin::pin!(self.docker.create_image(Some(options), None, None));
        while let Some(step) = steps.next().await {
            let step = step.map_err(|e| error::pull(&self.node, image, e))?;
            let count = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
            let detail = step.progress_detail.unwrap_or_default();
            progress(PullProgress {
                layer: step.id.unwrap_or_default(),
                status: step.status.unwrap_or_default(),
                current: count(detail.current),
                total: count(detail.total).filter(|n| *n > 0),
            });
        }
        Ok(())
    }

    /// Makes a container, not yet started, and returns its id. Made already: the same id.
    ///
    /// # Errors
    /// When the image is missing, the name belongs to a container that is not this one, or the engine refuses.
    pub async fn create(&self, spec: &ContainerSpec) -> Result<String, EngineError> {
        let body = shapes::create_body(spec).map_err(|reason| EngineError::Refused {
            node: self.node.clone(),
            doing: format!("create {}", spec.name),
            reason,
        })?;
        let options = query::CreateContainerOptionsBuilder::new().name(&spec.name).build();
        match self.docker.create_container(Some(options), body).await {
            Ok(made) => Ok(made.id),
            Err(error) if error::status(&error) == Some(409) => self.same_container(spec).await,
            Err(error) => Err(self.doing(format!("create {}", spec.name))(error)),
        }
    }

    /// The id of the container of this name, if it was made from the same spec for the same instance.
    async fn same_container(&self, spec: &ContainerSpec) -> Result<String, EngineError> {
        let found = self.inspect(&spec.name).await?;
        let same = found.as_ref().and_then(ours).is_some_and(|ours| {
            ours.cloud == spec.ours.cloud && ours.instance == spec.ours.instance && ours.spec == spec.ours.spec
        });
        match found.and_then(|c| c.id) {
            Some(id) if same => Ok(id),
            _ => Err(EngineError::NameTaken { node: self.node.clone(), name: spec.name.clone() }),
        }
    }

    /// Starts a container; nothing where it runs.
    ///
    /// # Errors
    /// When its port is taken, its program is missing, or the engine refuses otherwise.
    pub async fn start(&self, container: &str) -> Result<(), EngineError> {
        self.docker
            .start_container(container, None::<query::StartContainerOptions>)
            .await
            .map_err(self.doing(format!("start {}", short(container))))
    }

    /// Stops a container of `cloud`: SIGTERM, after `seconds` SIGKILL. Nothing where it is stopped or gone.
    ///
    /// # Errors
    /// When it belongs to somebody else, or the engine does not answer.
    pub async fn stop(&self, cloud: &CloudId, container: &str, seconds: u32) -> Result<(), EngineError> {
        if !self.belongs(cloud, container, "stop").await? {
            return Ok(());
        }
        let seconds = i32::try_from(seconds).unwrap_or(i32::MAX);
        let options = query::StopContainerOptionsBuilder::new().t(seconds).build();
        // The engine answers when the process has ended.
        let patient =
            self.docker.clone().with_timeout(ANSWER_WITHIN + Duration::from_secs(seconds.unsigned_abs().into()));
        gone_is_fine(patient.stop_container(container, Some(options)).await)
            .map_err(self.doing(format!("stop {}", short(container))))
    }

    /// Removes a container of `cloud` and its anonymous volumes, killing it where it still runs. Nothing where it is
    /// gone.
    ///
    /// # Errors
    /// When it belongs to somebody else, or the engine does not answer.
    pub async fn remove(&self, cloud: &CloudId, container: &str) -> Result<(), EngineError> {
        if !self.belongs(cloud, container, "remove").await? {
            return Ok(());
        }
        let options = query::RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        match self.docker.remove_container(container, Some(options)).await {
            // Somebody else's removal of the same is under way.
            Err(error) if error::status(&error) == Some(409) => Ok(()),
            result => gone_is_fine(result).map_err(self.doing(format!("remove {}", short(container)))),
        }
    }

    /// The last `lines` lines a container wrote, both streams, in the engine's order.
    ///
    /// # Errors
    /// When the container is gone or the engine does not answer.
    pub async fn logs_tail(&self, container: &str, lines: u32) -> Result<Vec<String>, EngineError> {
        let options = query::LogsOptionsBuilder::new().stdout(true).stderr(true).tail(&lines.to_string()).build();
        let pieces: Vec<LogOutput> =
            self.within(ANSWER_WITHIN, "read logs", self.docker.logs(container, Some(options)).try_collect()).await?;
        let text: Vec<u8> = pieces.into_iter().flat_map(LogOutput::into_bytes).collect();
        Ok(String::from_utf8_lossy(&text).lines().map(str::to_owned).collect())
    }

    /// What happens to containers from now on. Ends with an error when the engine or the session goes away.
    pub fn events(&self) -> impl Stream<Item = Result<ContainerEvent, EngineError>> + Send + use<> {
        // Not exec: a health check makes three of them each time.
        let actions = ["start", "die", "pause", "unpause", "destroy", "health_status"];
        let filters = HashMap::from([
            ("type".to_owned(), vec!["container".to_owned()]),
            ("event".to_owned(), actions.map(str::to_owned).to_vec()),
        ]);
        let options = query::EventsOptionsBuilder::new().filters(&filters).build();
        let node = self.node.clone();
        // The stream owns its client: it outlives this one.
        self.docker
            .clone()
            .events(Some(options))
            .map_err(move |e| Doing::new(&node, "follow its events").error(e))
            .try_filter_map(|event: EventMessage| async move {
                let id = event.actor.and_then(|actor| actor.id);
                Ok(id.zip(event.action).map(|(id, action)| ContainerEvent { id, action }))
            })
    }

    async fn inspect(&self, container: &str) -> Result<Option<ContainerInspectResponse>, EngineError> {
        match self.docker.inspect_container(container, None::<query::InspectContainerOptions>).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error::is_missing(&error) => Ok(None),
            Err(error) => Err(self.doing(format!("look at {}", short(container)))(error)),
        }
    }

    /// Whether the container is there; refused where it is not of `cloud`.
    async fn belongs(&self, cloud: &CloudId, container: &str, verb: &'static str) -> Result<bool, EngineError> {
        let Some(found) = self.inspect(container).await? else { return Ok(false) };
        if ours(&found).is_some_and(|ours| ours.cloud == *cloud) {
            Ok(true)
        } else {
            Err(EngineError::Foreign { node: self.node.clone(), container: short(container).to_owned(), verb })
        }
    }

    /// That it did not answer in time.
    pub fn silent(&self, what: &str) -> EngineError {
        self.doing(what)(bollard::errors::Error::RequestTimeoutError)
    }

    fn doing(&self, what: impl Into<String>) -> impl FnOnce(bollard::errors::Error) -> EngineError {
        let doing = Doing::new(&self.node, what);
        move |e| doing.error(e)
    }

    async fn within<T>(
        &self,
        patience: Duration,
        what: &'static str,
        call: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, EngineError> {
        let answer = tokio::time::timeout(patience, call).await;
        answer.unwrap_or(Err(bollard::errors::Error::RequestTimeoutError)).map_err(self.doing(what))
    }
}

/// An id as engines show it to people; a name as it is.
fn short(container: &str) -> &str {
    let is_id = container.len() == 64 && container.bytes().all(|b| b.is_ascii_hexdigit());
    if is_id { &container[..12] } else { container }
}

fn ours(found: &ContainerInspectResponse) -> Option<Ours> {
    let labels = found.config.as_ref()?.labels.clone()?;
    Ours::from_labels(&labels.into_iter().collect())
}

fn gone_is_fine(result: Result<(), bollard::errors::Error>) -> Result<(), bollard::errors::Error> {
    match result {
        Err(error) if error::is_missing(&error) => Ok(()),
        result => result,
    }
}
