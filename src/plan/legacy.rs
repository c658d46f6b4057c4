//! The original plan: four columns, `APP NODE EXT-PORT INT-PORT`, split by any mix of blanks and tabs.
//!
//! No keys, no defaults of its own: what a row does not say is as in a TOML plan that does not say it.

use std::collections::BTreeMap;

use toml::Spanned;

use super::{
    check::{Draft, Settings, plural},
    diagnostic::{Notes, Source, Span},
};
use crate::model::{AppName, Invalid, NodeName, Port};

const COLUMNS: &str = "a line is APP NODE EXTERNAL-PORT INTERNAL-PORT, as in: shop node25 5050 8080";

struct Row {
    app: Spanned<AppName>,
    node: Spanned<NodeName>,
    external: Spanned<Port>,
    internal: Spanned<Port>,
}

/// The applications of a four-column text, as far as it can be read.
pub(super) fn read(source: &Source, found: &mut Notes) -> Vec<Draft> {
    let mut rows = Vec::new();
    let mut start = 0;
    for line in source.text().split_inclusive('\n') {
        let content = line.split('#').next().unwrap_or(line);
        let columns: Vec<(&str, Span)> = content
            .split(|c: char| c.is_ascii_whitespace())
            .filter(|word| !word.is_empty())
            .map(|word| {
                let at = start + (word.as_ptr().addr() - line.as_ptr().addr());
                (word, at..at + word.len())
            })
            .collect();
        start += line.len();
        if !columns.is_empty() {
            rows.extend(row(&columns, found));
        }
    }
    if rows.is_empty() && !found.has_errors() {
        found.error(0..0, "the plan names no application").hint(COLUMNS);
    }
    drafts(rows, source, found)
}

fn row(columns: &[(&str, Span)], found: &mut Notes) -> Option<Row> {
    let [app, node, external, internal] = columns else {
        let whole = columns[0].1.start..columns[columns.len() - 1].1.end;
        found.error(whole, format!("{} instead of 4", plural(columns.len(), "column"))).hint(COLUMNS);
        return None;
    };
    let app = cell::<AppName>(app, found);
    let port_missing = |(text, _): &(&str, Span)| text.parse::<Port>().is_err();
    let name = node.0.split_once('.').filter(|(short, _)| short.parse::<NodeName>().is_ok());
    let node = match (name, cell::<NodeName>(node, found)) {
        (Some((short, _)), None) => {
            found.hint_last(format!("write {short}, without its domain"));
            None
        }
        (_, node) => node,
    };
    let (first, second) = (port_missing(external), port_missing(internal));
    let (external, internal) = (cell::<Port>(external, found), cell::<Port>(internal, found));
    if first || second {
        found.hint_last(COLUMNS);
    }
    Some(Row { app: app?, node: node?, external: external?, internal: internal? })
}

fn cell<T: std::str::FromStr<Err = Invalid>>((text, span): &(&str, Span), found: &mut Notes) -> Option<Spanned<T>> {
    match text.parse() {
        Ok(value) => Some(Spanned::new(span.clone(), value)),
        Err(error) => {
            found.error(span.clone(), error.to_string());
            None
        }
    }
}

fn drafts(rows: Vec<Row>, source: &Source, found: &mut Notes) -> Vec<Draft> {
    let mut apps: BTreeMap<AppName, Vec<Row>> = BTreeMap::new();
    for row in rows {
        apps.entry(row.app.get_ref().clone()).or_default().push(row);
    }
    let mut drafts: Vec<Draft> = apps
        .into_iter()
        .map(|(name, rows)| {
            let first = &rows[0];
            for row in &rows[1..] {
                if row.internal.get_ref() != first.internal.get_ref() {
                    let line = source.line(first.internal.span().start);
                    found
                        .error(
                            row.internal.span(),
                            format!(
                                "{name} listens on {} here and on {} in line {line}",
                                row.internal.get_ref(),
                                first.internal.get_ref()
                            ),
                        )
                        .hint("one application has one internal port; the external ones may differ");
                }
            }
            let span = first.app.span();
            let port = Some(*first.internal.get_ref());
            let nodes: Vec<_> = rows
                .into_iter()
                .map(|row| Spanned::new(row.node.span(), (row.node.into_inner(), Some(row.external.into_inner()))))
                .collect();
            let nodes = Some(Spanned::new(span.clone(), nodes));
            Draft::new(name, span, Settings { nodes, port, ..Settings::default() })
        })
        .collect();
    drafts.sort_by_key(|draft| draft.span.start);
    drafts
}
