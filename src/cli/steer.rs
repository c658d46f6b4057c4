//! `matrix scale` and `matrix restart`: the release that runs, with other numbers, or with containers made anew.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    manager::{Again, Scale},
    model::AppName,
    plan::MAX_REPLICAS,
};

use super::{
    Failure, Global, Printer,
    deploy::{follow, user},
};

/// Options of `matrix scale`.
#[derive(Debug, clap::Args)]
pub struct ScaleArgs {
    /// Applications and how many instances each is to have
    #[arg(required = true, value_name = "APP=N")]
    counts: Vec<String>,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// What to say of this release
    #[arg(long, short)]
    message: Option<String>,
}

/// Options of `matrix restart`.
#[derive(Debug, clap::Args)]
pub struct RestartArgs {
    /// Applications
    #[arg(required = true, value_name = "APP")]
    applications: Vec<AppName>,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// What to say of this release
    #[arg(long, short)]
    message: Option<String>,
}

pub(super) fn scale(args: ScaleArgs, global: &Global, out: &Printer) -> Result<(), Failure> {
    let (mut counts, mut wrong) = (BTreeMap::new(), Vec::new());
    for word in &args.counts {
        match count(word) {
            Ok((name, number)) if counts.insert(name.clone(), number).is_none() => {}
            Ok((name, _)) => wrong.push(format!("{name} is there twice")),
            Err(why) => wrong.push(why),
        }
    }
    if !wrong.is_empty() {
        return Err(Failure::invalid(wrong.join("\n")).hint("as in: matrix scale shop=3"));
    }
    let scale = Scale { counts, by: user(), message: args.message, dry_run: args.dry_run };
    follow(global, "/v1/scale", &scale, args.dry_run, out)
}

/// `shop=3`
fn count(word: &str) -> Result<(AppName, u32), String> {
    let (name, number) = word.split_once('=').ok_or_else(|| format!("{word:?} is not APP=N"))?;
    let name = name.parse::<AppName>().map_err(|e| format!("{word:?}: {e}"))?;
    match number.parse::<u32>() {
        Ok(number) if number <= MAX_REPLICAS => Ok((name, number)),
        _ => Err(format!("{word:?}: an application has from 0 to {MAX_REPLICAS} instances")),
    }
}

pub(super) fn restart(args: RestartArgs, global: &Global, out: &Printer) -> Result<(), Failure> {
    let applications = BTreeSet::from_iter(args.applications);
    let again = Again { applications, by: user(), message: args.message, dry_run: args.dry_run };
    follow(global, "/v1/restart", &again, args.dry_run, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_a_name_and_a_number() {
        assert_eq!(count("shop=3").expect("good"), ("shop".parse().expect("a name"), 3));
        for bad in ["shop", "shop=", "shop=-1", "shop=1.5", "shop=1001", "=3", "Shop=3", "shop=99999999999"] {
            let why = count(bad).expect_err(bad);
            assert!(why.contains(bad), "{why}");
        }
    }
}
