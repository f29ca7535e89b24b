//! What the benchmarks share: tables in Markdown, and what a process takes.

use std::fmt::Write;

mod measure;

pub use measure::*;

/// One table of the report.
pub struct Table {
    title: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
    notes: Vec<String>,
}

impl Table {
    /// With no rows yet.
    pub fn new(title: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|it| (*it).to_owned()).collect();
        Self { title: title.to_owned(), columns, rows: Vec::new(), notes: Vec::new() }
    }

    /// One line.
    pub fn row(&mut self, cells: &[String]) {
        self.rows.push(cells.to_vec());
    }

    /// A paragraph below it.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// As it is written to the report.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("## {}\n\n{}", self.title, line(&self.columns));
        text.push_str(&line(&self.columns.iter().map(|_| "---".to_owned()).collect::<Vec<_>>()));
        self.rows.iter().for_each(|row| text.push_str(&line(row)));
        if !self.notes.is_empty() {
            let _ = write!(text, "\n{}\n", self.notes.join("\n"));
        }
        text
    }
}
