//! `image ls`, `inspect`, `history`, `rm`, `tag`, `prune`.

use std::process::ExitCode;

use clap::Args;
use container_engine::{event::has_label, reference::ImageRef};
use serde_json::{Value, json};

use super::progress::short;
use crate::{
    cli::{
        engine::{Output, confirm, flag},
        format::{Columns, Listing, human},
        out, parse,
    },
    control::encode,
    engine_api::wire::{ImageDetails, ImageInfo, ImageRemoved},
};

const COLUMNS: Columns = Columns {
    all: &[
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("ID", "IMAGE ID"),
        ("CreatedSince", "CREATED"),
        ("Size", "SIZE"),
        ("Digest", "DIGEST"),
        ("CreatedAt", "CREATED AT"),
        ("Containers", "CONTAINERS"),
        ("Platform", "PLATFORM"),
        ("Name", "NAME"),
        ("Labels", "LABELS"),
    ],
    usual: 5,
};

#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools)] // Each is a flag that people type.
pub struct List {
    /// Ids alone
    #[arg(long, short)]
    quiet: bool,
    /// Images without a name too
    #[arg(long, short)]
    all: bool,
    /// Ids in full
    #[arg(long)]
    no_trunc: bool,
    /// Digests too
    #[arg(long)]
    digests: bool,
    /// table, json, or a Go template
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// KEY=VALUE
    #[arg(long, short, value_name = "FILTER")]
    filter: Vec<String>,
    /// Name, with * for any part
    image: Option<String>,
}

impl List {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let filters = parse::filters(&self.filter, &["reference", "label", "dangling"]).map_err(anyhow::Error::msg)?;
        let format = match &self.format {
            None if self.digests && !self.quiet => {
                Some("table {{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}".to_owned())
            }
            other => other.clone(),
        };
        let listing = Listing::new(format.as_deref(), false, self.quiet, COLUMNS)?;
        let images: Vec<ImageInfo> = to.engine.get(&to.url("/v1/images", &[])).await?;
        let empty = Vec::new();
        let of = |key: &str| filters.get(key).unwrap_or(&empty);
        let patterns: Vec<&String> = of("reference").iter().chain(&self.image).collect();
        let wanted = |image: &ImageInfo| {
            of("label").iter().all(|label| has_label(&image.labels, label))
                && of("dangling").iter().all(|want| (want == "true") == image.names.is_empty())
        };
        let mut images: Vec<ImageInfo> = images.into_iter().filter(wanted).collect();
        for image in &mut images {
            image.names.retain(|name| patterns.is_empty() || patterns.iter().any(|pattern| names(pattern, name)));
        }
        if !patterns.is_empty() {
            images.retain(|image| !image.names.is_empty());
        }
        if to.json {
            for image in &images {
                out(serde_json::to_string(image)?);
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut rows: Vec<Value> = images.iter().flat_map(|image| rows(image, self.no_trunc)).collect();
        if self.quiet {
            // An image with several names is one id.
            rows.dedup_by(|a, b| a["ID"] == b["ID"]);
        }
        listing.print(COLUMNS, &rows, "ID")?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Whether `pattern` (a name, a repository, or either with `*`) means `name`.
fn names(pattern: &str, name: &str) -> bool {
    let Ok(full) = name.parse::<ImageRef>() else { return false };
    let familiar = full.familiar();
    let repository = familiar.rsplit_once(':').map_or(familiar.as_str(), |(repository, _)| repository).to_owned();
    [familiar.as_str(), repository.as_str(), name].iter().any(|text| matches(pattern, text))
        || pattern.parse::<ImageRef>().is_ok_and(|wanted| wanted == full)
}

/// `*` is any run of characters besides `/`.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            let most = rest.find('/').unwrap_or(rest.len());
            (0..=most).filter(|at| rest.is_char_boundary(*at)).any(|at| matches(after, &rest[at..]))
        }),
    }
}

fn rows(image: &ImageInfo, no_trunc: bool) -> Vec<Value> {
    let now = human::now_ns();
    let created = image.created.as_ref().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    let created_ns = created.and_then(|it| i64::try_from(it.as_nanosecond()).ok());
    let row = |name: Option<&String>| {
        let name = name.and_then(|name| name.parse::<ImageRef>().ok());
        let familiar = name.as_ref().map(ImageRef::familiar).unwrap_or_default();
        let repository = name.as_ref().map(|it| {
            let end =
                it.tag().map_or(0, |tag| tag.len() + 1) + it.digest().map_or(0, |digest| digest.to_string().len() + 1);
            familiar[..familiar.len().saturating_sub(end)].to_owned()
        });
        let own = name.as_ref().map(|name| format!("{}@", name.name()));
        let digest = image.digests.iter().find_map(|it| it.strip_prefix(own.as_deref()?));
        let none = || "<none>".to_owned();
        json!({
            "ID": if no_trunc { image.id.as_str() } else { short(&image.id) },
            "Repository": repository.unwrap_or_else(none),
            "Tag": name.as_ref().and_then(|it| it.tag().map(str::to_owned)).unwrap_or_else(none),
            "Digest": digest.map_or_else(none, str::to_owned),
            "CreatedSince": created_ns.map_or_else(|| "N/A".to_owned(), |ns| format!("{} ago", human::since(ns, now))),
            "CreatedAt": created_ns.map_or_else(|| "N/A".to_owned(), human::list_time),
            "Size": human::size(image.size),
            "Containers": image.containers.to_string(),
            "Platform": image.platform,
            "Name": if name.is_some() { familiar } else { none() },
            "Labels": image.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","),
        })
    };
    if image.names.is_empty() { vec![row(None)] } else { image.names.iter().map(|name| row(Some(name))).collect() }
}

#[derive(Debug, Args)]
pub struct Inspect {
    /// json, or a Go template
    #[arg(long, short, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Inspect {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        crate::cli::engine::inspect(to, &self.images, self.format.as_deref(), async |name: &str| {
            let image: ImageDetails = to.engine.get(&to.url(&format!("/v1/images/{}", encode(name)), &[])).await?;
            Ok(shape(&image))
        })
        .await
    }
}

/// In the shape of Docker's JSON.
fn shape(image: &ImageDetails) -> Value {
    let (info, config) = (&image.info, &image.config);
    let names: Vec<_> = info
        .names
        .iter()
        .map(|name| name.parse::<ImageRef>().map_or_else(|_| name.clone(), |it| it.familiar()))
        .collect();
    let digests: Vec<_> = info
        .digests
        .iter()
        .map(|name| name.parse::<ImageRef>().map_or_else(|_| name.clone(), |it| it.familiar()))
        .collect();
    json!({
        "Id": info.id,
        "RepoTags": names,
        "RepoDigests": digests,
        "Created": info.created,
        "Author": config["author"].as_str().unwrap_or_default(),
        "Config": config["config"],
        "Architecture": config["architecture"],
        "Variant": config["variant"].as_str().unwrap_or_default(),
        "Os": config["os"],
        "Size": info.size,
        "RootFS": { "Type": config["rootfs"]["type"], "Layers": config["rootfs"]["diff_ids"] },
        "Descriptor": { "digest": info.manifest },
        "Containers": info.containers,
    })
}

#[derive(Debug, Args)]
pub struct History {
    /// In full
    #[arg(long)]
    no_trunc: bool,
    /// json, or a Go template
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
    /// Name or id
    image: String,
}

impl History {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        const COLUMNS: Columns = Columns {
            all: &[
                ("CreatedSince", "CREATED"),
                ("CreatedBy", "CREATED BY"),
                ("Empty", "EMPTY"),
                ("Comment", "COMMENT"),
                ("CreatedAt", "CREATED AT"),
            ],
            usual: 4,
        };
        let listing = Listing::new(self.format.as_deref(), to.json, false, COLUMNS)?;
        let image: ImageDetails = to.engine.get(&to.url(&format!("/v1/images/{}", encode(&self.image)), &[])).await?;
        let now = human::now_ns();
        let row = |step: &Value| {
            let at = step["created"].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
            let ns = at.and_then(|it| i64::try_from(it.as_nanosecond()).ok());
            let by = step["created_by"].as_str().unwrap_or_default();
            json!({
                "CreatedSince": ns.map_or_else(|| "N/A".to_owned(), |ns| format!("{} ago", human::since(ns, now))),
                "CreatedAt": ns.map_or_else(|| "N/A".to_owned(), human::list_time),
                "CreatedBy": if self.no_trunc { by.to_owned() } else { human::cut(by, 45) },
                "Empty": step["empty_layer"].as_bool().unwrap_or(false),
                "Comment": step["comment"].as_str().unwrap_or_default(),
            })
        };
        let rows: Vec<_> = image.config["history"].as_array().into_iter().flatten().rev().map(row).collect();
        listing.print(COLUMNS, &rows, "CreatedBy")?;
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Args)]
pub struct Remove {
    /// Also where a container that has ended was made from it, or it has further names
    #[arg(long, short)]
    force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Remove {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let one = async |name: &str| {
            let url = to.url(&format!("/v1/images/{}", encode(name)), &[("force", flag(self.force))]);
            let removed: ImageRemoved = to.engine.delete(&url).await?;
            print(to, &removed)
        };
        Ok(to.each(&self.images, one).await)
    }
}

fn print(to: &Output<'_>, removed: &ImageRemoved) -> anyhow::Result<()> {
    if to.json {
        out(serde_json::to_string(removed)?);
        return Ok(());
    }
    for name in &removed.untagged {
        out(format!("Untagged: {}", name.parse::<ImageRef>().map_or_else(|_| name.clone(), |it| it.familiar())));
    }
    removed.deleted.iter().for_each(|id| out(format!("Deleted: {id}")));
    Ok(())
}

pub async fn tag(to: &Output<'_>, image: &str, name: &str) -> anyhow::Result<ExitCode> {
    let url = to.url(&format!("/v1/images/{}/tag", encode(image)), &[("name", Some(name.to_owned()))]);
    to.engine.post::<Value>(&url).await?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Args)]
pub struct Prune {
    /// All that no container uses, not only those without a name
    #[arg(long, short)]
    all: bool,
    /// Do not ask
    #[arg(long, short)]
    force: bool,
}

impl Prune {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        let what = if self.all { "images that no container uses" } else { "images without a name" };
        if !confirm(&format!("This will remove all {what}."), self.force)? {
            return Ok(ExitCode::SUCCESS);
        }
        let removed: ImageRemoved = to.engine.post(&to.url("/v1/images/prune", &[("all", flag(self.all))])).await?;
        print(to, &removed)?;
        if !to.json {
            out(format!("Total reclaimed space: {}", human::size(removed.freed_bytes)));
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(names: &[&str]) -> ImageInfo {
        ImageInfo {
            id: format!("sha256:{}", "ab".repeat(32)),
            names: names.iter().map(|it| (*it).to_owned()).collect(),
            digests: vec![format!("docker.io/library/alpine@sha256:{}", "cd".repeat(32))],
            size: 7_670_000,
            ..ImageInfo::default()
        }
    }

    #[test]
    fn rows_of_images() {
        let all = rows(&image(&["docker.io/library/alpine:3.20", "localhost:5000/a/b:1"]), false);
        assert_eq!((all[0]["Repository"].as_str(), all[0]["Tag"].as_str()), (Some("alpine"), Some("3.20")));
        assert_eq!(all[0]["ID"], "abababababab");
        assert!(all[0]["Digest"].as_str().unwrap().starts_with("sha256:cdcd"));
        assert_eq!(
            (all[1]["Repository"].as_str(), all[1]["Digest"].as_str()),
            (Some("localhost:5000/a/b"), Some("<none>"))
        );
        assert_eq!(all[1]["Size"], "7.67MB");
        assert_eq!(rows(&image(&[]), true)[0]["Tag"], "<none>");
    }

    #[test]
    fn patterns_of_names() {
        let name = "docker.io/library/alpine:3.20";
        for pattern in ["alpine", "alpine:3.20", "alp*", "alpine:3*", "*", "docker.io/library/alpine:3.20"] {
            assert!(names(pattern, name), "{pattern}");
        }
        for pattern in ["alpine:3", "busybox", "alp", "*/alpine"] {
            assert!(!names(pattern, name), "{pattern}");
        }
        assert!(names("localhost:5000/*/b", "localhost:5000/a/b:1"));
    }
}
