//! `container ls`.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context, bail};
use clap::Args;
use container_engine::container::{ListFilter, Status, Summary};
use serde_json::Value;

use super::shape;
use crate::cli::{
    engine::Output,
    format::{Columns, Listing, human},
    out, parse,
};

const COLUMNS: Columns = Columns {
    all: &[
        ("ID", "CONTAINER ID"),
        ("Image", "IMAGE"),
        ("Command", "COMMAND"),
        ("RunningFor", "CREATED"),
        ("Status", "STATUS"),
        ("Ports", "PORTS"),
        ("Names", "NAMES"),
        ("CreatedAt", "CREATED AT"),
        ("State", "STATE"),
        ("Labels", "LABELS"),
        ("Mounts", "MOUNTS"),
        ("Networks", "NETWORKS"),
        ("LocalVolumes", "LOCAL VOLUMES"),
        ("Owner", "OWNER"),
        ("ImageID", "IMAGE ID"),
        ("ExitCode", "EXIT CODE"),
    ],
    usual: 7,
};

#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // Each is a flag that people type.
pub struct List {
    /// Those that do not run too
    #[arg(long, short)]
    all: bool,
    /// Ids alone
    #[arg(long, short)]
    quiet: bool,
    /// Ids and commands in full
    #[arg(long)]
    no_trunc: bool,
    /// The last N created, running or not
    #[arg(long, short = 'n', value_name = "N")]
    last: Option<usize>,
    /// The last one created
    #[arg(long, short)]
    latest: bool,
    /// Everybody's, not only the owner's
    #[arg(long)]
    all_owners: bool,
    /// table, json, or a Go template
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// KEY=VALUE
    #[arg(long, short, value_name = "FILTER")]
    filter: Vec<String>,
}

impl List {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let listing = Listing::new(self.format.as_deref(), false, self.quiet, COLUMNS)?;
        let known = ["id", "name", "label", "status", "ancestor", "network", "volume", "exited"];
        let filters = parse::filters(&self.filter, &known).map_err(anyhow::Error::msg)?;
        let last = if self.latest { Some(1) } else { self.last };
        let mut filter = filter_of(&filters)?;
        if filter.statuses.is_empty() && !self.all && last.is_none() && filter.exit_codes.is_empty() {
            filter.statuses = vec![Status::Running, Status::Paused];
        }
        let pairs = [("filter", Some(serde_json::to_string(&filter)?))];
        let everybodys = || format!("/v1/containers{}", crate::control::query(&pairs));
        let url = if self.all_owners { everybodys() } else { to.url("/v1/containers", &pairs) };
        let mut list: Vec<Summary> = to.engine.get(&url).await?;
        let empty = Vec::new();
        let names = filters.get("name").unwrap_or(&empty);
        list.retain(|it| names.is_empty() || names.iter().any(|pattern| is_named(pattern, &it.name)));
        list.truncate(last.unwrap_or(usize::MAX));
        if to.json {
            for container in &list {
                out(serde_json::to_string(container)?);
            }
            return Ok(ExitCode::SUCCESS);
        }
        let now = human::now_ns();
        let rows: Vec<Value> = list.iter().map(|it| shape::row(it, self.no_trunc, now)).collect();
        listing.print(COLUMNS, &rows, "ID")?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Docker's name filter is a regular expression; what people write of it are `^`, `$` and a part.
fn is_named(pattern: &str, name: &str) -> bool {
    let pattern = pattern.replace("^/", "^");
    let (begin, rest) = pattern.strip_prefix('^').map_or((false, pattern.as_str()), |rest| (true, rest));
    let (end, rest) = rest.strip_suffix('$').map_or((false, rest), |rest| (true, rest));
    match (begin, end) {
        (true, true) => name == rest,
        (true, false) => name.starts_with(rest),
        (false, true) => name.ends_with(rest),
        (false, false) => name.contains(rest),
    }
}

fn filter_of(filters: &BTreeMap<String, Vec<String>>) -> anyhow::Result<ListFilter> {
    let of = |key: &str| filters.get(key).cloned().unwrap_or_default();
    let status = |text: &String| match text.as_str() {
        "created" => Ok(Status::Created),
        "running" => Ok(Status::Running),
        "paused" => Ok(Status::Paused),
        "exited" | "dead" => Ok(Status::Exited),
        "removing" => Ok(Status::Removing),
        other => bail!("there is no status {other:?}: there are created, running, paused, exited, removing"),
    };
    let code = |text: &String| text.parse().with_context(|| format!("{text:?} is no exit code"));
    Ok(ListFilter {
        ids: of("id"),
        labels: of("label"),
        statuses: of("status").iter().map(status).collect::<Result<_, _>>()?,
        images: of("ancestor"),
        networks: of("network"),
        volumes: of("volume"),
        exit_codes: of("exited").iter().map(code).collect::<Result<_, _>>()?,
        ..ListFilter::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filtered_as_people_write_it() {
        for (pattern, name, want) in [
            ("web", "my-web-1", true),
            ("^web", "my-web", false),
            ("^web", "web-1", true),
            ("^/web$", "web", true),
            ("web$", "web-1", false),
        ] {
            assert_eq!(is_named(pattern, name), want, "{pattern} {name}");
        }
    }

    #[test]
    fn filters_become_the_engines() {
        let texts: Vec<_> = ["status=exited", "exited=137", "ancestor=alpine", "label=a"].map(str::to_owned).into();
        let filter = filter_of(&parse::filters(&texts, &["status", "exited", "ancestor", "label"]).unwrap()).unwrap();
        assert_eq!((filter.statuses, filter.exit_codes), (vec![Status::Exited], vec![137]));
        assert_eq!((filter.images, filter.labels), (vec!["alpine".to_owned()], vec!["a".to_owned()]));
        let wrong = BTreeMap::from([("status".to_owned(), vec!["up".to_owned()])]);
        assert!(filter_of(&wrong).unwrap_err().to_string().contains("running"));
    }
}
