//! Plans and releases by chance. Every application has instances on at least two nodes: one may go.

use crate::{NODES, dice::Dice};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Replicas(usize),
    Pinned(Vec<&'static str>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    pub name: &'static str,
    tag: &'static str,
    place: Place,
    pub publish: Option<u16>,
    /// How a release replaces it; nothing: as it is where the plan does not say.
    update: String,
    turn: u64,
    /// What makes it fail.
    flaw: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub apps: Vec<App>,
}

/// What goes out.
#[derive(Debug, Clone)]
pub enum Release {
    /// It should go out.
    Good(&'static str, Plan),
    /// It must not.
    Bad(Plan),
    /// The release before, by command.
    Back,
    /// It stops before the switch; then it is made, or thrown away.
    Staged(Plan, bool),
}

impl Release {
    pub fn what(&self) -> &'static str {
        match self {
            Self::Good(what, _) => what,
            Self::Bad(_) => "a bad release",
            Self::Back => "a rollback",
            Self::Staged(_, true) => "a release staged and activated",
            Self::Staged(_, false) => "a release staged and thrown away",
        }
    }
}

const TAGS: [&str; 2] = ["v1", "v2"];
/// Listens where nobody asks; ends at once; answers, but not well.
const FLAWS: [&str; 3] = [
    "environment = { PORT = 9999 }\nhealth = { deadline = \"3s\" }",
    "command = [\"/bin/sh\", \"-c\", \"echo no database; exit 3\"]\nhealth = { deadline = \"8s\" }",
    "health = { path = \"/status?code=500\", deadline = \"3s\" }",
];

/// A canary has to have room beside what runs. Never `recreate`: nobody serves while it is under way, so that what is lost
/// by a fault could not be told from what the plan gives up.
fn update(dice: &mut Dice, room: bool) -> String {
    let batch = dice.between(1, 2);
    let (pause, time) = (dice.between(0, 2), dice.between(2, 4));
    let share = 10 * dice.between(1, 5);
    match dice.between(0, if room { 5 } else { 3 }) {
        0 => String::new(),
        1 => "update = \"staged\"\n".to_owned(),
        2..=3 => format!("update = {{ mode = \"rolling\", batch = {batch}, pause = \"{pause}s\" }}\n"),
        _ => format!("update = {{ mode = \"canary\", share = {share}, time = \"{time}s\" }}\n"),
    }
}

impl App {
    fn random(dice: &mut Dice, name: &'static str, port: u16) -> Self {
        let mut nodes = NODES.to_vec();
        dice.shuffle(&mut nodes);
        let count = usize::try_from(dice.between(2, 3)).unwrap();
        let place = if dice.chance(40) {
            nodes.truncate(count);
            Place::Pinned(nodes)
        } else {
            Place::Replicas(count)
        };
        let publish = dice.chance(40).then_some(port);
        // A fixed port on two nodes of which one is away cannot be replaced without a gap, and is not waited for.
        let place = match place {
            Place::Pinned(_) if publish.is_some() => Place::Pinned(NODES.to_vec()),
            place => place,
        };
        let update = update(dice, publish.is_none());
        Self { name, tag: dice.pick::<&str>(&TAGS), place, publish, update, turn: 0, flaw: "" }
    }

    fn text(&self) -> String {
        let Self { name, tag, update, turn, .. } = self;
        let place = match &self.place {
            Place::Replicas(count) => format!("replicas = {count}"),
            Place::Pinned(nodes) => format!("nodes = {nodes:?}"),
        };
        let publish = self.publish.map(|port| format!("publish = {port}\n")).unwrap_or_default();
        let rest = if self.flaw.is_empty() {
            format!("environment = {{ LEDGER = \"/ledger\", TURN = {turn} }}\nhealth = {{ deadline = \"20s\" }}")
        } else {
            self.flaw.to_owned()
        };
        format!(
            "[apps.{name}]\nimage = \"hello:{tag}\"\n{place}\n{publish}drain_timeout = \"4s\"\nstop_timeout = \"2s\"\n\
             volumes = [\"ledger:/ledger\"]\n{update}{rest}\n"
        )
    }

    /// Another one, of the same places.
    pub fn turn(&mut self) {
        self.turn += 1;
    }

    pub fn count(&self) -> usize {
        match &self.place {
            Place::Replicas(count) => *count,
            Place::Pinned(nodes) => nodes.len(),
        }
    }
}

impl Plan {
    pub fn random(dice: &mut Dice) -> Self {
        let names = [("a", 5051), ("b", 5052), ("c", 5053)];
        let count = usize::try_from(dice.between(2, 3)).unwrap();
        Self { apps: names.iter().take(count).map(|(name, port)| App::random(dice, name, *port)).collect() }
    }

    pub fn text(&self) -> String {
        self.apps.iter().map(App::text).collect()
    }

    pub fn paths(&self) -> Vec<String> {
        self.apps.iter().map(|app| format!("/{}/", app.name)).collect()
    }

    /// The next release.
    pub fn next(&self, dice: &mut Dice) -> Release {
        let mut next = self.clone();
        let at = usize::try_from(dice.next() % self.apps.len() as u64).unwrap();
        let one = &mut next.apps[at];
        one.turn += 1;
        if dice.chance(40) {
            one.update = update(dice, one.publish.is_none());
        }
        match dice.between(0, 11) {
            0..=2 => {
                for app in &mut next.apps {
                    app.tag = if app.tag == "v1" { "v2" } else { "v1" };
                }
                Release::Good("a new image of all", next)
            }
            3..=4 => Release::Good("an environment", next),
            5 => {
                one.turn -= 1;
                match &mut one.place {
                    Place::Replicas(count) => *count = 5 - *count,
                    Place::Pinned(_) => one.turn += 1,
                }
                Release::Good("another size", next)
            }
            6..=7 => {
                one.flaw = dice.pick::<&str>(&FLAWS);
                Release::Bad(next)
            }
            8..=9 => Release::Staged(next, dice.chance(60)),
            _ => Release::Back,
        }
    }
}
