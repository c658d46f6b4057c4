//! Images of a plan in their registries: names become digests, and what is pinned is still there.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;

use crate::{
    model::{AppName, ImageRef},
    plan::Plan,
    release::{Naming, Release},
    remote::registry::{Registry, RegistryError},
};

use super::{Manager, execute::chain, refused::SubmitError};

impl Manager {
    /// Every application's image with its digest.
    pub(super) async fn pin(&self, plan: &Plan) -> Result<BTreeMap<AppName, ImageRef>, SubmitError> {
        let config = self.config();
        let naming = Naming { registry: &config.registry.name, namespace: &config.registry.namespace };
        let wanted: BTreeSet<&ImageRef> = plan.apps.values().map(|app| &app.image).collect();
        let looked_up = join_all(wanted.into_iter().map(async |image| {
            let full = naming.full(image).map_err(|e| SubmitError::Images(vec![e.to_string()]))?;
            Ok::<_, SubmitError>((image, self.look_up(full).await))
        }))
        .await;
        let mut pinned = BTreeMap::new();
        let mut missing = Vec::new();
        for found in looked_up {
            match found? {
                (image, Ok(full)) => _ = pinned.insert(image, full),
                (image, Err(error)) if error.is_not_found() => {
                    let apps: Vec<_> =
                        plan.apps.iter().filter(|(_, app)| app.image == *image).map(|(n, _)| n.as_str()).collect();
                    missing.push(format!(
                        "image {image} of {} is not in the registry ({})",
                        apps.join(", "),
                        chain(&error)
                    ));
                }
                (_, Err(error)) => return Err(SubmitError::Registry(error)),
            }
        }
        if !missing.is_empty() {
            return Err(SubmitError::Images(missing));
        }
        Ok(plan.apps.iter().filter_map(|(name, app)| Some((name.clone(), pinned.get(&app.image)?.clone()))).collect())
    }

    async fn look_up(&self, full: ImageRef) -> Result<ImageRef, RegistryError> {
        let registry_name = full.registry.clone().unwrap_or_default();
        if let Some(digest) = full.digest.clone() {
            return Ok(full.pinned(&registry_name, digest));
        }
        let registry = self.registry_of(&registry_name)?;
        let digest = registry.resolve(&full.repository, full.tag_or_latest()).await?;
        Ok(full.pinned(&registry_name, digest))
    }

    /// The registry of this name: the private one, where it is that.
    pub(super) fn registry_of(&self, name: &str) -> Result<Registry, RegistryError> {
        if name == self.config().registry.name { Ok(self.0.registry.clone()) } else { Registry::new(name) }
    }

    /// That every image of a release can still be pulled.
    pub(super) async fn still_there(&self, release: &Release) -> Result<(), SubmitError> {
        let mut gone = Vec::new();
        for (name, image) in &release.images {
            let Some(digest) = &image.digest else { continue };
            let registry = image.registry.clone().unwrap_or_default();
            match self
                .registry_of(&registry)
                .map_err(SubmitError::Registry)?
                .find(&image.repository, digest.as_str())
                .await
            {
                Ok(Some(_)) => {}
                Ok(None) => gone.push(format!("image {image} of {name} is not in the registry any more")),
                Err(error) => return Err(SubmitError::Registry(error)),
            }
        }
        if gone.is_empty() { Ok(()) } else { Err(SubmitError::Images(gone)) }
    }
}
