//! Lists in Docker's forms: a table, a template a line, ids alone, JSON.

use serde_json::Value;

use super::template::{Template, TemplateError};
use crate::cli::out;

/// Fields of a list and their headings, in the order of the usual table; those after `usual` are for templates alone.
#[derive(Debug, Clone, Copy)]
pub struct Columns {
    /// Field and heading.
    pub all: &'static [(&'static str, &'static str)],
    /// How many are in the usual table.
    pub usual: usize,
}

/// How a list is printed.
#[derive(Debug)]
pub enum Listing {
    /// Aligned, with headings.
    Table(Template),
    /// A template for each row.
    Rows(Template),
    /// One JSON object a line.
    Json,
    /// The ids alone.
    Quiet,
}

impl Listing {
    /// From `--format`, `--json` and `--quiet`.
    pub fn new(format: Option<&str>, json: bool, quiet: bool, columns: Columns) -> Result<Self, TemplateError> {
        let usual = || {
            let fields = columns.all.iter().take(columns.usual);
            fields.map(|(field, _)| format!("{{{{.{field}}}}}")).collect::<Vec<_>>().join("\t")
        };
        Ok(match format.map(str::trim) {
            _ if json => Self::Json,
            Some("json") => Self::Json,
            None | Some("table" | "") if quiet => Self::Quiet,
            None | Some("table" | "") => Self::Table(Template::parse(&usual())?),
            Some(text) => match text.strip_prefix("table ").or_else(|| text.strip_prefix("table\\t")) {
                Some(text) => Self::Table(Template::parse(text.trim_start())?),
                None => Self::Rows(Template::parse(text)?),
            },
        })
    }

    /// Prints all rows; each is an object with the columns' fields, `id` being what `--quiet` prints.
    pub fn print(&self, columns: Columns, rows: &[Value], id: &str) -> Result<(), TemplateError> {
        match self {
            Self::Json => rows.iter().for_each(out),
            Self::Quiet => rows.iter().filter_map(|row| row[id].as_str()).for_each(out),
            Self::Rows(template) => {
                for row in rows {
                    out(template.render(row)?);
                }
            }
            Self::Table(template) => {
                let heading = |(field, heading): &(&str, &str)| ((*field).to_owned(), Value::from(*heading));
                let headings = Value::Object(columns.all.iter().map(heading).collect());
                let mut lines = vec![template.render(&headings)?];
                for row in rows {
                    lines.push(template.render(row)?);
                }
                align(&lines).iter().for_each(out);
            }
        }
        Ok(())
    }
}

/// Cells between tabs get the width of their column, three spaces apart; the last of a line is left as it is.
pub fn align(lines: &[String]) -> Vec<String> {
    const GAP: usize = 3;
    const LEAST: usize = 10;
    let rows: Vec<Vec<String>> = lines.iter().map(|line| line.split('\t').map(one_line).collect()).collect();
    let mut widths = Vec::<usize>::new();
    for row in &rows {
        for (at, cell) in row.iter().take(row.len().saturating_sub(1)).enumerate() {
            let width = (cell.chars().count() + GAP).max(LEAST);
            match widths.get_mut(at) {
                Some(known) => *known = (*known).max(width),
                None => widths.push(width),
            }
        }
    }
    let line = |row: &Vec<String>| {
        let (last, cells) = row.split_last().map_or(("", &[][..]), |(last, cells)| (last.as_str(), cells));
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width));
        padded.chain([last.to_owned()]).collect::<String>().trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// Names and commands come from outside: control characters would let them write over the table.
fn one_line(cell: &str) -> String {
    cell.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_as_dockers() {
        let lines = ["CONTAINER ID\tIMAGE\tNAMES", "0123456789ab\tbusybox\tweb", "x\ta/very/long/name:tag\t"];
        let lines: Vec<_> = lines.iter().map(|it| (*it).to_owned()).collect();
        assert_eq!(
            align(&lines),
            [
                "CONTAINER ID   IMAGE                  NAMES",
                "0123456789ab   busybox                web",
                "x              a/very/long/name:tag"
            ]
        );
        assert_eq!(align(&["a\u{1b}[2Jb".to_owned()]), ["a [2Jb"]);
    }

    #[test]
    fn forms() {
        const COLUMNS: Columns = Columns { all: &[("ID", "ID"), ("Name", "NAME"), ("More", "MORE")], usual: 2 };
        let of = |format: Option<&str>, json, quiet| Listing::new(format, json, quiet, COLUMNS).unwrap();
        assert!(matches!(of(None, false, false), Listing::Table(_)));
        assert!(matches!(of(None, false, true), Listing::Quiet));
        assert!(matches!(of(None, true, false), Listing::Json));
        assert!(matches!(of(Some("json"), false, false), Listing::Json));
        assert!(matches!(of(Some("table {{.ID}}"), false, false), Listing::Table(_)));
        assert!(matches!(of(Some("{{.ID}}"), false, true), Listing::Rows(_)));
        assert!(Listing::new(Some("{{"), false, false, COLUMNS).is_err());
    }
}
