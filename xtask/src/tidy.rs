//! `cargo xtask tidy`: the map of ARCHITECTURE.md, and the tree's own rules, as a test.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::steps::{root, say};

/// Who may depend on whom. A new arrow is an architecture change: edit this and ARCHITECTURE.md in one commit.
const MAY_USE: &[(&str, &[&str])] = &[
    ("edge-agent", &["cluster-node", "container-engine", "telemetry", "store", "board"]),
    ("cluster-node", &["container-engine", "store", "board"]),
    ("container-engine", &["store", "board"]),
    ("telemetry", &["store", "board"]),
    ("store", &["board"]),
    ("board", &[]),
    ("tests", &["cluster-node", "container-engine", "telemetry", "store", "board"]),
    ("xtask", &[]),
];
/// A file beyond this is more than one idea.
const MAX_LINES: usize = 650;

/// Checks everything; the error lists every fault.
pub fn run() -> Result<()> {
    let mut faults = arrows()?;
    let files = sources()?;
    for path in &files {
        let text = fs::read_to_string(path)?;
        let name = path.strip_prefix(root()).unwrap_or(path).display().to_string();
        faults.extend(file_faults(&name, &text));
    }
    if !faults.is_empty() {
        bail!("the tree is not tidy:\n  {}", faults.join("\n  "));
    }
    say(&format!("   {} files and every arrow are as ARCHITECTURE.md says", files.len()));
    Ok(())
}

fn arrows() -> Result<Vec<String>> {
    let output =
        Command::new("cargo").args(["metadata", "--format-version=1", "--no-deps"]).current_dir(root()).output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    let rooms: BTreeSet<_> = packages.iter().filter_map(|it| it["name"].as_str()).collect();
    let mut faults = Vec::new();
    for package in &packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = MAY_USE.iter().find(|(room, _)| *room == name) else {
            faults.push(format!("{name}: this room is not on the map (xtask/src/tidy.rs, ARCHITECTURE.md)"));
            continue;
        };
        let used = package["dependencies"].as_array().into_iter().flatten().filter_map(|it| it["name"].as_str());
        for used in used.filter(|used| rooms.contains(used) && !allowed.contains(used)) {
            faults.push(format!("{name} uses {used}: no such arrow is on the map"));
        }
    }
    Ok(faults)
}

fn sources() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for room in MAY_USE.iter().map(|(room, _)| *room).chain(["fuzz"]) {
        walk(&root().join(room), &mut found)?;
    }
    Ok(found)
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
            walk(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

fn file_faults(name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_LINES {
        faults.push(format!("{name}: {lines} lines; is it still one idea?"));
    }
    if !text.starts_with("//!") && !text.starts_with("#![no_main]") {
        faults.push(format!("{name}: does not open with what it is for (//!)"));
    }
    // Put together here, so that this file does not hold them itself.
    let needles = [("to", "do!("), ("unimple", "mented!("), ("db", "g!("), ("serde_cb", "or::"), ("un", "safe {")];
    for (first, second) in needles {
        let needle = [first, second].concat();
        let allowed = match first {
            "serde_cb" => name == "telemetry/src/decode/cbor.rs",
            "un" => name.starts_with("board/src/sys/") || name.starts_with("container-engine/src/sys/"),
            _ => false,
        };
        if !allowed && text.contains(&needle) {
            faults.push(format!("{name}: has `{needle}`"));
        }
    }
    faults
}
