//! A routing table with the VCL that says the same: what varnishd should have loaded. Speaks to nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    model::AppName,
    remote::varnish::Loaded,
    routing::{
        AppRouting, RoutingTable,
        vcl::{self, VclError},
    },
};

/// A table with its VCL: name and text of the root and of every application.
#[derive(Debug)]
pub(super) struct Generation {
    pub(super) table: Arc<RoutingTable>,
    /// What its VCL was made from: may name containers that the table does not. They are taken out by a word each.
    pub(super) made_from: Arc<RoutingTable>,
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
        let table = Arc::new(table.clone());
        Ok(Self {
            made_from: Arc::clone(&table),
            root: (vcl::root_version(&text), text),
            apps: table.apps.iter().map(app).collect::<Result<_, VclError>>()?,
            second,
            table,
        })
    }

    /// With the VCL that runs, of each application of which nothing else is asked than that some of its backends get no
    /// requests, and others do.
    pub(super) fn keeping(mut self, before: Option<&Self>) -> Self {
        let Some(before) = before else { return self };
        let fewer = |made: &AppRouting, now: &AppRouting| {
            let mut rest = made.clone();
            rest.backends.retain(|container, _| now.backends.contains_key(container));
            rest == *now && (rest.backends.len() == made.backends.len() || rest.backends.values().any(|b| b.serving))
        };
        let mut made_from = (*self.made_from).clone();
        for (app, now) in &self.table.apps {
            if let (Some(made), Some(vcl)) = (before.made_from.apps.get(app), before.apps.get(app))
                && fewer(made, now)
            {
                made_from.apps.insert(app.clone(), made.clone());
                self.apps.insert(app.clone(), vcl.clone());
            }
        }
        self.made_from = Arc::new(made_from);
        self
    }

    /// The containers that its VCL names and the table does not, each with its backend's name in that VCL.
    pub(super) fn out(&self) -> BTreeMap<String, String> {
        let of = |(app, made): (&AppName, &AppRouting)| {
            let kept = self.table.apps.get(app).map(|now| &now.backends);
            let gone = made.backends.keys().filter(|name| kept.is_none_or(|kept| !kept.contains_key(*name)));
            let vcl = self.apps.get(app).map(|(vcl, _)| vcl.clone());
            let named = |name: &String| Some((name.clone(), format!("{}.{}", vcl.as_ref()?, vcl::backend_id(name))));
            gone.filter_map(named).collect::<Vec<_>>()
        };
        self.made_from.apps.iter().flat_map(of).collect()
    }

    /// Where a release is switched to, what changes together changes in one step: by a root that names the labels which
    /// the running one does not. Else labels move one after the other, which compiles no root.
    pub(super) fn in_one_step(self, before: Option<&Self>, loaded: &[Loaded]) -> Result<Self, VclError> {
        let changes = |app: &AppName, name: &str| {
            stands_for(loaded, &self.label(app)).is_some_and(|runs| runs != vcl::NOTHING && runs != name)
        };
        let changing = self.apps.iter().filter(|(app, (name, _))| changes(app, name));
        let changing: BTreeSet<_> = changing.map(|(app, _)| app.clone()).collect();
        let same_root = loaded.iter().any(|l| l.active && l.name == self.root.0);
        let switch = before.is_none_or(|before| self.table.switches(&before.table));
        if !switch || changing.len() + usize::from(!same_root) < 2 || changing.is_empty() {
            return Ok(self);
        }
        let second = self.second.symmetric_difference(&changing).cloned().collect();
        Ok(Self::of(&self.table, &second)?.keeping(before))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::Route,
        routing::{AppRouting, Backend},
    };

    fn table(apps: &[(&str, &[u16])]) -> RoutingTable {
        let backend = |name: &str, port: u16| Backend {
            instance: format!("{name}.1").parse().expect("an instance"),
            address: [10, 0, 0, 1].into(),
            port: crate::model::Port::new(port).expect("a port"),
            probe: None,
            serving: true,
        };
        let app = |(name, ports): &(&str, &[u16])| {
            let routing = AppRouting {
                routes: vec![Route { host: None, path: format!("/{name}").parse().expect("a path") }],
                strip_path: false,
                cache_seconds: None,
                idempotent: false,
                backends: ports.iter().map(|port| (format!("{name}-{port}"), backend(name, *port))).collect(),
                canary: None,
            };
            (name.parse().expect("a name"), routing)
        };
        RoutingTable { apps: apps.iter().map(app).collect() }
    }

    /// Which applications have VCL of their own then, and which containers are out.
    fn after(made: &RoutingTable, wanted: &RoutingTable) -> (Vec<String>, Vec<String>) {
        let of = |table| Generation::of(table, &BTreeSet::new()).expect("VCL");
        let (made, next) = (of(made), of(wanted).keeping(Some(&of(made))));
        assert_eq!(*next.table, *wanted);
        let own = next.apps.iter().filter(|(app, vcl)| made.apps.get(app) != Some(vcl)).map(|(app, _)| app.to_string());
        (own.collect(), next.out().into_keys().collect())
    }

    #[test]
    fn only_what_leaves_needs_no_vcl_of_its_own() {
        let made = table(&[("blog", &[1, 2]), ("shop", &[3, 4]), ("void", &[])]);
        let of = |apps: &[(&str, &[u16])]| {
            let (own, out) = after(&made, &table(apps));
            (own.join(" "), out.join(" "))
        };
        let is = |own: &str, out: &str| (own.to_owned(), out.to_owned());
        assert_eq!(of(&[("blog", &[1, 2]), ("shop", &[3, 4]), ("void", &[])]), is("", ""));
        assert_eq!(of(&[("blog", &[2]), ("shop", &[3]), ("void", &[])]), is("", "blog-1 shop-4"));
        // One that comes, also where another leaves; an application that nobody serves any more; one more, or one less.
        assert_eq!(of(&[("blog", &[1, 2, 5]), ("shop", &[3]), ("void", &[])]), is("blog", "shop-4"));
        assert_eq!(of(&[("blog", &[1, 5]), ("shop", &[3, 4]), ("void", &[])]), is("blog", ""));
        assert_eq!(of(&[("blog", &[]), ("shop", &[4]), ("void", &[])]), is("blog", "shop-3"));
        assert_eq!(of(&[("blog", &[1]), ("shop", &[3, 4])]), is("", "blog-2"));
        assert_eq!(of(&[("blog", &[1]), ("shop", &[3, 4]), ("tea", &[]), ("void", &[])]), is("tea", "blog-2"));
        // All else that a table says.
        let mut other = made.clone();
        other.apps.values_mut().for_each(|app| app.idempotent = true);
        assert_eq!(after(&made, &other).0, ["blog", "shop"], "VCL that sends nobody anywhere is the same");
        let mut other = made.clone();
        let shut = |b: &mut Backend| b.serving = false;
        other.apps.values_mut().for_each(|app| app.backends.values_mut().take(1).for_each(shut));
        assert_eq!(after(&made, &other), (vec!["blog".to_owned(), "shop".to_owned()], vec![]));
    }

    #[test]
    fn what_comes_back_needs_none_either() {
        let of = |ports: &[u16]| Generation::of(&table(&[("shop", ports)]), &BTreeSet::new()).expect("VCL");
        let (made, fewer) = (of(&[3, 4, 5]), of(&[3]).keeping(Some(&of(&[3, 4, 5]))));
        let back = of(&[3, 5]).keeping(Some(&fewer));
        assert_eq!(
            (back.texts(), back.out().into_keys().collect::<Vec<_>>()),
            (made.texts(), vec!["shop-4".to_owned()])
        );
    }
}
