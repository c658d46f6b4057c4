//! What varnishd loads, labels, uses and forgets, in which order: at any moment what runs is whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::PoisonError,
    time::{Duration, Instant},
};

use tokio::time::timeout;

use super::{
    Applied, GatewayError, Inner, LOOK,
    generation::{Generation, labels, second_in, stands_for},
};
use crate::{
    manager::pace::{self, Turn},
    model::{AppName, Port},
    remote::{
        connections,
        varnish::{Varnish, VarnishError},
    },
    routing::{RoutingTable, vcl},
};

/// How long what was compiled ahead waits for a table that wants it.
const PREPARED: Duration = Duration::from_secs(20);
/// After so long, varnishd does not say anything since it waits for somebody.
const SILENT: Duration = Duration::from_secs(2);
/// So long after nobody holds it any more, a backend is forgotten.
const FORGOTTEN: Duration = Duration::from_secs(90);

impl Inner {
    pub(super) async fn prepare(&self, table: &RoutingTable, turn: Option<&Turn>) {
        let Some(varnish) = &self.varnish else { return };
        let next = {
            let wanted = self.wanted.lock().await;
            self.next(varnish, wanted.as_deref(), table).await
        };
        let Ok(generation) = next else { return };
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = generation.names();
        *self.preparing.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let Ok(loaded) = varnish.list().await else { return };
        for (name, text) in generation.apps.values().filter(|(name, _)| !loaded.iter().any(|l| l.name == *name)) {
            if !pace::in_turn(turn, self.prepare_app(varnish, name, text)).await {
                return;
            }
        }
        _ = self.prepare_root(varnish, &generation).await;
    }

    /// Whether varnishd can be asked for the next one.
    async fn prepare_app(&self, varnish: &Varnish, name: &str, text: &str) -> bool {
        // One at a time: what has to run now goes first.
        let _one = self.wanted.lock().await;
        let Ok(loaded) = varnish.list().await else { return false };
        let path = self.folder.join(format!("{name}.vcl"));
        if !loaded.iter().any(|l| l.name == name) && write(&path, text).is_ok() {
            _ = varnish.load_cold(name, &path).await;
        }
        true
    }

    /// The root names labels, which have to be there: new ones stand for nothing until the table is applied.
    async fn prepare_root(&self, varnish: &Varnish, generation: &Generation) -> Result<(), GatewayError> {
        let _one = self.wanted.lock().await;
        let loaded = varnish.list().await?;
        let (root, text) = &generation.root;
        let there = |name: &str| loaded.iter().any(|l| l.name == name);
        if there(root) {
            return Ok(());
        }
        if !there(vcl::NOTHING) {
            self.load_nothing(varnish).await?;
        }
        for label in generation.apps.keys().map(|app| generation.label(app)).filter(|label| !there(label)) {
            varnish.label(&label, vcl::NOTHING).await?;
        }
        self.load(varnish, "the routes", root, text, &mut Applied::default()).await
    }

    async fn load_nothing(&self, varnish: &Varnish) -> Result<(), GatewayError> {
        let text = include_str!("../../../templates/empty.vcl");
        self.load(varnish, "no routes", vcl::NOTHING, text, &mut Applied::default()).await
    }

    /// A table's VCL, with the labels that let it follow what runs.
    pub(super) async fn next(
        &self,
        varnish: &Varnish,
        before: Option<&Generation>,
        table: &RoutingTable,
    ) -> Result<Generation, GatewayError> {
        let Ok(loaded) = varnish.list().await else {
            return Ok(Generation::of(table, &before.map(|before| before.second.clone()).unwrap_or_default())?);
        };
        let second = match before {
            Some(before) => before.second.clone(),
            // What an earlier manager has left says which labels are in use.
            None => loaded.iter().find(|l| l.active).map(|root| self.second_of(&root.name, table)).unwrap_or_default(),
        };
        Ok(Generation::of(table, &second)?.keeping(before).in_one_step(before, &loaded)?)
    }

    fn second_of(&self, root: &str, table: &RoutingTable) -> BTreeSet<AppName> {
        let text = std::fs::read_to_string(self.folder.join(format!("{root}.vcl"))).unwrap_or_default();
        second_in(&text, table)
    }

    /// Loads what is missing, moves labels, uses the root, forgets the rest. At any moment what runs is whole.
    pub(super) async fn install(&self, varnish: &Varnish, generation: &Generation) -> Result<Applied, GatewayError> {
        let mut applied = Applied::default();
        let loaded = varnish.list().await?;
        let names: BTreeSet<&str> = loaded.iter().map(|l| l.name.as_str()).collect();
        for (app, (name, text)) in &generation.apps {
            if !names.contains(name.as_str()) {
                self.load(varnish, app.as_str(), name, text, &mut applied).await?;
            }
        }
        let mut fresh = applied.loaded.clone();
        for cold in loaded.iter().filter(|l| l.cold && generation.apps.values().any(|(name, _)| *name == l.name)) {
            varnish.warm(&cold.name).await?;
            fresh.push(cold.name.clone());
        }
        self.tell_overruled(varnish, generation, &fresh).await;
        let moved: Vec<_> = generation
            .apps
            .iter()
            .filter(|(app, (name, _))| stands_for(&loaded, &generation.label(app)) != Some(name))
            .collect();
        // A label that is new must be there before the root that names it; one that moves must wait until the root is
        // known to compile.
        let (root, text) = &generation.root;
        for (app, (name, _)) in moved.iter().filter(|(app, _)| !names.contains(generation.label(app).as_str())) {
            varnish.label(&generation.label(app), name).await?;
        }
        if !names.contains(root.as_str()) {
            self.load(varnish, "the routes", root, text, &mut applied).await?;
        }
        for (app, (name, _)) in moved.iter().filter(|(app, _)| names.contains(generation.label(app).as_str())) {
            varnish.label(&generation.label(app), name).await?;
        }
        applied.labels = moved.len();
        if !loaded.iter().any(|l| l.active && l.name == *root) {
            varnish.use_vcl(root).await?;
            applied.root = true;
        }
        for (app, (name, _)) in &generation.apps {
            let behind = |label: &String| stands_for(&loaded, label).is_some_and(|version| version != name);
            for label in labels(app).iter().filter(|l| **l != generation.label(app)).filter(|l| behind(l)) {
                varnish.label(label, name).await?;
            }
        }
        if !varnish.running().await? {
            varnish.start().await?;
            // Before, nobody was there to be told.
            self.tell_overruled(varnish, generation, &fresh).await;
        }
        applied.discarded = self.tidy(varnish, &generation.names()).await?;
        Ok(applied)
    }

    async fn load(
        &self,
        varnish: &Varnish,
        what: &str,
        name: &str,
        text: &str,
        applied: &mut Applied,
    ) -> Result<(), GatewayError> {
        let path = self.folder.join(format!("{name}.vcl"));
        write(&path, text).map_err(|source| GatewayError::File { path: path.clone(), source })?;
        match varnish.load(name, &path).await {
            Ok(()) => {
                applied.loaded.push(name.to_owned());
                Ok(())
            }
            Err(error) => {
                // What this table has brought must not stay behind: it would be probing for nobody.
                _ = varnish.discard(&applied.loaded).await;
                match error {
                    VarnishError::Refused { message, .. } => {
                        Err(GatewayError::Compile { what: what.to_owned(), message })
                    }
                    error => Err(error.into()),
                }
            }
        }
    }

    /// Forgets what is ours and not kept, loaded or on disk. What is busy ends by itself.
    async fn tidy(&self, varnish: &Varnish, keep: &BTreeSet<String>) -> Result<Vec<String>, GatewayError> {
        let loaded = varnish.list().await?;
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut keep: BTreeSet<String> = keep.union(&prepared).cloned().collect();
        keep.insert(vcl::NOTHING.to_owned());
        let mut old: Vec<_> = loaded
            .into_iter()
            .filter(|l| l.name.starts_with(vcl::PREFIX) && !keep.contains(&l.name) && !l.active)
            .map(|l| l.name)
            .collect();
        // A root before the labels it names, a label before what it stands for.
        let rank = |name: &String| match name.strip_prefix(vcl::PREFIX) {
            Some(rest) if rest.starts_with("root_") => 0,
            Some(rest) if rest.starts_with("vcl_") => 2,
            _ => 1,
        };
        old.sort_by_key(|name| (rank(name), name.clone()));
        for name in &old {
            varnish.discard(std::slice::from_ref(name)).await?;
        }
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let file = entry.file_name();
            let name = file.to_str().and_then(|f| f.strip_suffix(".vcl"));
            if name.is_some_and(|n| n.starts_with(vcl::PREFIX) && !keep.contains(n)) {
                _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(old)
    }

    /// Has what labels stand for at first compiled before anybody waits for it.
    pub(super) async fn stand_by(&self, varnish: &Varnish) {
        let _one = self.wanted.lock().await;
        if varnish.list().await.is_ok_and(|loaded| !loaded.iter().any(|l| l.name == vcl::NOTHING)) {
            _ = self.load_nothing(varnish).await;
        }
    }

    /// A worker of varnishd holds what it used last until it works again, so backends are forgotten at any time later; and
    /// then varnishd says nothing more, and is ended by its own supervisor a minute later.
    pub(super) async fn end_left(&self) {
        let Some(varnish) = &self.varnish else { return };
        loop {
            tokio::time::sleep(LOOK).await;
            let left: BTreeMap<_, _> = self.left.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if left.is_empty() {
                continue;
            }
            match timeout(SILENT, varnish.forgets()).await {
                Ok(Ok(true) | Err(VarnishError::Down { .. })) => {}
                Ok(Ok(false)) => {
                    let forgotten = |since: &Instant| since.elapsed() > FORGOTTEN;
                    let mut all = self.left.lock().unwrap_or_else(PoisonError::into_inner);
                    all.retain(|backend, since| !left.contains_key(backend) || !forgotten(since));
                }
                Ok(Err(_)) | Err(_) => end_each(&left.into_keys().collect()).await,
            }
        }
    }

    /// Remembers where nothing is served from any more.
    pub(super) fn leave(&self, left: &BTreeSet<(IpAddr, Port)>, table: &RoutingTable) {
        let used = backends(table);
        let mut all = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|backend, _| !used.contains(backend));
        all.extend(left.iter().map(|backend| (*backend, Instant::now())));
    }

    /// A table that was expected and never came leaves nothing behind.
    pub(super) async fn forget_prepared(&self, varnish: &Varnish, generation: &Generation) {
        {
            let mut since = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
            if since.is_none_or(|since| since.elapsed() < PREPARED) {
                return;
            }
            *since = None;
        }
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).clear();
        _ = self.tidy(varnish, &generation.names()).await;
    }
}

/// Where nothing is served from any more.
pub(super) fn left(before: &RoutingTable, now: &RoutingTable) -> BTreeSet<(IpAddr, Port)> {
    backends(before).difference(&backends(now)).copied().collect()
}

fn backends(table: &RoutingTable) -> BTreeSet<(IpAddr, Port)> {
    table.apps.values().flat_map(|app| app.backends.values()).map(|b| (b.address, b.port)).collect()
}

/// While varnishd forgets these backends: it closes a connection in its pool and waits for the other side to do so too.
pub(super) async fn end_shut(left: BTreeSet<(IpAddr, Port)>) {
    for pause in [300, 700, 2000] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        end_each(&left).await;
    }
}

async fn end_each(left: &BTreeSet<(IpAddr, Port)>) {
    let left: Vec<_> = left.iter().map(|(address, port)| (*address, port.get())).collect();
    if let Err(error) = connections::end_shut(&left).await {
        tracing::debug!(?left, %error, "connections that were shut stay until the other side ends them");
    }
}

/// Writes a file whole, readable for varnishd's compiler. Nothing in it is secret: addresses and paths.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))?;
    let part = path.with_extension("part");
    std::fs::write(&part, text)?;
    std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o644))?;
    std::fs::rename(part, path)
}
