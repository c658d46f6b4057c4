//! What cleaning asks of an engine: images with their layers, listed and removed name by name; stopped containers.
//!
//! Forces nothing: an image that a container is made from is left by the engine itself.

use std::collections::{BTreeMap, BTreeSet};

use bollard::query_parameters as query;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{ANSWER_WITHIN, EngineClient, EngineError, error, shapes};
use crate::{
    inventory::{NodeImage, NodeStock},
    model::CloudId,
};

/// How many images are looked at at a time.
const AT_ONCE: usize = 8;

impl EngineClient {
    /// Every image and every container on the node, whoever's they are.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub async fn stock(&self) -> Result<NodeStock, EngineError> {
        let options = query::ListImagesOptionsBuilder::new().build();
        let listed = self.within(ANSWER_WITHIN, "list images", self.docker.list_images(Some(options))).await?;
        let images = stream::iter(listed).map(|image| async move {
            let names: BTreeSet<String> =
                image.repo_tags.into_iter().chain(image.repo_digests).filter(|name| !name.contains("<none>")).collect();
            let bytes = u64::try_from(image.size).unwrap_or(0);
            let layers = self.layers(&image.id, bytes).await?;
            Ok::<_, EngineError>(layers.map(|layers| NodeImage { id: image.id, names, layers }))
        });
        let images: Vec<_> = images.buffered(AT_ONCE).try_collect().await?;
        // After the images: a container that came meanwhile holds its own.
        let options = query::ListContainersOptionsBuilder::new().all(true).build();
        let listed = self.within(ANSWER_WITHIN, "list containers", self.docker.list_containers(Some(options))).await?;
        let containers = listed
            .into_iter()
            .filter_map(|listed| {
                let image = listed.image_id.clone().unwrap_or_default();
                Some((shapes::container(listed)?, image))
            })
            .collect();
        Ok(NodeStock { images: images.into_iter().flatten().collect(), containers })
    }

    /// An image's layers with their bytes; none where it is gone.
    async fn layers(&self, id: &str, bytes: u64) -> Result<Option<BTreeMap<String, u64>>, EngineError> {
        let history = match self.docker.image_history(id).await {
            Ok(history) => history,
            Err(error) if error::is_missing(&error) => return Ok(None),
            Err(error) => return Err(self.doing("look at an image")(error)),
        };
        let found = match self.docker.inspect_image(id).await {
            Ok(found) => found,
            Err(error) if error::is_missing(&error) => return Ok(None),
            Err(error) => return Err(self.doing("look at an image")(error)),
        };
        let layers = found.root_fs.and_then(|root| root.layers).unwrap_or_default();
        // The oldest first; steps that changed no file have no layer.
        let sizes: Vec<u64> =
            history.iter().rev().filter_map(|s| u64::try_from(s.size).ok().filter(|n| *n > 0)).collect();
        if layers.len() != sizes.len() {
            return Ok(Some(BTreeMap::from([(id.to_owned(), bytes)])));
        }
        // A layer is kept once for all that lies below it: the same on other ground is kept again.
        let mut ground = String::new();
        let named = layers.into_iter().map(|layer| {
            ground = format!("{ground}/{}", layer.trim_start_matches("sha256:").get(..16).unwrap_or(&layer));
            ground.clone()
        });
        Ok(Some(named.zip(sizes).collect()))
    }

    /// Takes one name off an image; with its last name the image goes. Says whether it did: not where a container is
    /// made from it.
    ///
    /// # Errors
    /// When the engine does not answer or refuses for another reason.
    pub async fn remove_image(&self, name: &str) -> Result<bool, EngineError> {
        // Parents without a name may be steps of somebody's build.
        let options = query::RemoveImageOptionsBuilder::new().noprune(true).build();
        match self.docker.remove_image(name, Some(options), None).await {
            Ok(_) => Ok(true),
            Err(error) if error::is_missing(&error) => Ok(true),
            Err(error) if error::status(&error) == Some(409) => Ok(false),
            Err(error) => Err(self.doing(format!("remove the image {name}"))(error)),
        }
    }

    /// Removes a container of `cloud` that does not run, with its anonymous volumes. Says whether it is gone: not where
    /// it runs.
    ///
    /// # Errors
    /// When it belongs to somebody else, or the engine does not answer.
    pub async fn remove_stopped(&self, cloud: &CloudId, container: &str) -> Result<bool, EngineError> {
        if !self.belongs(cloud, container, "remove").await? {
            return Ok(true);
        }
        let options = query::RemoveContainerOptionsBuilder::new().v(true).build();
        match self.docker.remove_container(container, Some(options)).await {
            Err(error) if error::status(&error) == Some(409) => Ok(false),
            result => {
                super::gone_is_fine(result).map_err(self.doing(format!("remove {}", super::short(container))))?;
                Ok(true)
            }
        }
    }
}
