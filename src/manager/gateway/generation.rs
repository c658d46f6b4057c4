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
    /// The applications whose second label the root names.
    pub(super) second: BTreeSet<AppName>,
    pub(super) root: (String, String),
    pub(super) apps: BTreeMap<AppName, (String, String)>,
}

impl Generation {
    pub(super) fn of(table: &RoutingTable, second: &BTreeSet<AppName>) -> Result<Self, VclError> {
        let second: BTreeSet<_> = second.iter().filter(|app| table.apps.contains_key(*app)).cloned().collect();
        let text = vcl::root_naming(table, &second)?;
        let app = |(name, routing)| {
            let text = vcl::app(name, routing)?;
            Ok((name.clone(), (vcl::app_version(name, &text), text)))
        };
        Ok(Self {
            table: Arc::new(table.clone()),
            root: (vcl::root_version(&text), text),
            apps: table.apps.iter().map(app).collect::<Result<_, VclError>>()?,
            second,
        })
    }

    /// Where a release is switched to, what changes together changes in one step: by a root that names the labels which
    /// the running one does not. Else labels move one after the other, which compiles no root.
    pub(super) fn in_one_step(self, before: Option<&RoutingTable>, loaded: &[Loaded]) -> Result<Self, VclError> {
        let changes = |app: &AppName, name: &str| {
            stands_for(loaded, &self.label(app)).is_some_and(|runs| runs != vcl::NOTHING && runs != name)
        };
        let changing = self.apps.iter().filter(|(app, (name, _))| changes(app, name));
        let changing: BTreeSet<_> = changing.map(|(app, _)| app.clone()).collect();
        let same_root = loaded.iter().any(|l| l.active && l.name == self.root.0);
        let switch = before.is_none_or(|before| self.table.switches(before));
        if !switch || changing.len() + usize::from(!same_root) < 2 || changing.is_empty() {
            return Ok(self);
        }
        Self::of(&self.table, &self.second.symmetric_difference(&changing).cloned().collect())
    }

    /// The label under which the root finds an application.
    pub(super) fn label(&self, app: &AppName) -> String {
        vcl::label_in(app, &self.second)
    }

    /// Whether this and nothing else of ours is loaded, labelled and used.
    pub(super) fn runs(&self, loaded: &[Loaded]) -> bool {
        loaded.iter().any(|l| l.active && l.name == self.root.0)
            && self.apps.iter().all(|(app, (name, _))| stands_for(loaded, &self.label(app)) == Some(name))
    }

    pub(super) fn names(&self) -> BTreeSet<String> {
        let labels = self.apps.keys().flat_map(labels);
        let versions = self.apps.values().map(|(name, _)| name.clone());
        labels.chain(versions).chain([self.root.0.clone()]).collect()
    }

    /// All of its VCL: [`vcl::ROOT`], and each application's by its name.
    pub(super) fn texts(&self) -> BTreeMap<String, String> {
        let apps = self.apps.iter().map(|(app, (_, text))| (app.to_string(), text.clone()));
        apps.chain([(vcl::ROOT.to_owned(), self.root.1.clone())]).collect()
    }
}

/// Both labels of an application. The one that the root does not name follows the other: requests may still be in an older
/// root, which names it.
pub(super) fn labels(app: &AppName) -> [String; 2] {
    [vcl::label(app), vcl::second_label(app)]
}

/// The applications whose second label this root names.
pub(super) fn second_in(root: &str, table: &RoutingTable) -> BTreeSet<AppName> {
    let named = |app: &&AppName| root.contains(&format!("vcl({})", vcl::second_label(app)));
    table.apps.keys().filter(named).cloned().collect()
}

pub(super) fn stands_for<'a>(loaded: &'a [Loaded], label: &str) -> Option<&'a str> {
    loaded.iter().find(|l| l.name == label)?.label_of.as_deref()
}
