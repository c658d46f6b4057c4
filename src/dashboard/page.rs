//! The page's text from what is shown: whole, or in parts.
//!
//! No I/O and no clock: the same values give the same bytes. What the values say never becomes markup.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Serialize;
use tera::{Context, Tera};

use crate::model::harmless;

use super::view::{Shown, View};

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the page")]
pub struct PageError(#[from] tera::Error);

/// The page's parts that move, each by the id of its element.
pub type Parts = BTreeMap<&'static str, String>;

const PARTS: [(&str, &str); 7] = [
    ("overall", "overall.html"),
    ("top", "top.html"),
    ("problems", "problems.html"),
    ("applications", "applications.html"),
    ("nodes", "nodes.html"),
    ("routes", "routes.html"),
    ("events", "events.html"),
];

static TEMPLATES: LazyLock<Tera> = LazyLock::new(|| {
    let mut tera = Tera::default();
    tera.autoescape_on([".html"]);
    tera.add_raw_templates([
        ("page.html", include_str!("../../web/page.html")),
        ("overall.html", include_str!("../../web/overall.html")),
        ("top.html", include_str!("../../web/top.html")),
        ("problems.html", include_str!("../../web/problems.html")),
        ("applications.html", include_str!("../../web/applications.html")),
        ("nodes.html", include_str!("../../web/nodes.html")),
        ("routes.html", include_str!("../../web/routes.html")),
        ("events.html", include_str!("../../web/events.html")),
    ])
    .unwrap_or_else(|e| unreachable!("the templates are part of the program: {e}"));
    tera
});

#[derive(Serialize)]
struct Whole<'a> {
    version: &'a str,
    #[serde(flatten)]
    view: View,
}

/// The whole page; `version` is that of its script and style.
///
/// # Errors
/// When a template fails: a mistake of ours.
pub fn page(shown: &Shown, version: &str) -> Result<String, PageError> {
    let context = Context::from_serialize(&Whole { version, view: View::new(shown) })?;
    render("page.html", &context)
}

/// The parts that move.
///
/// # Errors
/// When a template fails: a mistake of ours.
pub fn parts(shown: &Shown) -> Result<Parts, PageError> {
    let context = Context::from_serialize(&View::new(shown))?;
    PARTS.iter().map(|(id, template)| Ok((*id, render(template, &context)?))).collect()
}

/// Control characters and those that turn the reading direction are shown as numbers, wherever they came from.
fn render(template: &str, context: &Context) -> Result<String, PageError> {
    Ok(harmless(&TEMPLATES.render(template, context)?).into_owned())
}
