//! A routing table with the VCL that says the same: what varnishd should have loaded. Speaks to nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    model::AppName,
    remote::varnish::Loaded,
    routing::{
        RoutingTable,
        vcl::{self, VclError},
    },
};

/// A table with its VCL: name and text of the root and of every application.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) table: Arc<RoutingTable>,
    pub(super) root: (String, String),
    pub(super) apps: BTreeMap<AppName, (String, String)>,
}

impl Generation {
    pub(super) fn of(table: &RoutingTable) -> Result<Self, VclError> {
        let text = vcl::root(table)?;
        let app = |(name, routing)| {
            let text = vcl::app(name, routing)?;
            Ok((name.clone(), (vcl::app_version(name, &text), text)))
        };
        Ok(Self {
            table: Arc::new(table.clone()),
            root: (vcl::root_version(&text), text),
            apps: table.apps.iter().map(app).collect::<Result<_, VclError>>()?,
        })
    }

    /// Whether this and nothing else of ours is loaded, labelled and used.
    pub(super) fn runs(&self, loaded: &[Loaded]) -> bool {
        loaded.iter().any(|l| l.active && l.name == self.root.0)
            && self.apps.iter().all(|(app, (name, _))| stands_for(loaded, &vcl::label(app)) == Some(name))
    }

    pub(super) fn names(&self) -> BTreeSet<String> {
        let labels = self.apps.keys().map(vcl::label);
        let versions = self.apps.values().map(|(name, _)| name.clone());
        labels.chain(versions).chain([self.root.0.clone()]).collect()
    }

    /// All of its VCL: [`vcl::ROOT`], and each application's by its name.
    pub(super) fn texts(&self) -> BTreeMap<String, String> {
        let apps = self.apps.iter().map(|(app, (_, text))| (app.to_string(), text.clone()));
        apps.chain([(vcl::ROOT.to_owned(), self.root.1.clone())]).collect()
    }
}

pub(super) fn stands_for<'a>(loaded: &'a [Loaded], label: &str) -> Option<&'a str> {
    loaded.iter().find(|l| l.name == label)?.label_of.as_deref()
}
