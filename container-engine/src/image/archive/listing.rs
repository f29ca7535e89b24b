//! What an archive says is in it: `index.json` (OCI), `manifest.json` (Docker), `repositories` (Docker before 1.10).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    super::manifest::{Descriptor, MAX_LAYERS},
    ArchiveError, invalid,
};
use crate::reference::ImageRef;

/// Largest of these files.
pub(super) const MAX_LISTING: u64 = 4 << 20;
/// Most images of one archive.
pub(super) const MAX_IMAGES: usize = 1000;
/// Annotation with an image's full name (containerd's).
pub(super) const FULL_NAME: &str = "io.containerd.image.name";
/// Annotation with a tag, or what skopeo was told (OCI).
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// One image of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerImage {
    pub config: String,
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub layers: Option<Vec<String>>,
}

/// `index.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LayoutIndex {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    pub manifests: Vec<Descriptor>,
}

/// One layer's `json` in the oldest form.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct OldLayer {
    pub id: String,
    pub parent: Option<String>,
    pub created: Option<String>,
    pub architecture: Option<String>,
    pub os: Option<String>,
    pub author: Option<String>,
    pub config: Option<serde_json::Value>,
    pub container_config: Option<serde_json::Value>,
}

fn parse<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, ArchiveError> {
    serde_json::from_slice(bytes).map_err(|error| invalid(format!("its {what} is not understood: {error}")))
}

/// Reads `manifest.json`.
pub(super) fn docker(bytes: &[u8]) -> Result<Vec<DockerImage>, ArchiveError> {
    let images: Vec<DockerImage> = parse("manifest.json", bytes)?;
    check_count(images.len())?;
    match images.iter().find(|it| it.layers.as_ref().is_some_and(|it| it.len() > MAX_LAYERS)) {
        Some(image) => Err(invalid(format!("{} has over {MAX_LAYERS} layers", clip(&image.config)))),
        None => Ok(images),
    }
}

/// Reads `index.json`.
pub(super) fn layout(bytes: &[u8]) -> Result<LayoutIndex, ArchiveError> {
    let index: LayoutIndex = parse("index.json", bytes)?;
    if index.schema_version != 2 {
        return Err(invalid(format!("its index.json has schema version {}", index.schema_version)));
    }
    check_count(index.manifests.len())?;
    Ok(index)
}

/// Reads `repositories`: names, each with the id of its top layer.
pub(super) fn old(bytes: &[u8]) -> Result<Vec<(String, String)>, ArchiveError> {
    let repositories: BTreeMap<String, BTreeMap<String, String>> = parse("repositories", bytes)?;
    let names = repositories
        .into_iter()
        .flat_map(|(name, tags)| tags.into_iter().map(move |(tag, top)| (format!("{name}:{tag}"), top)));
    let names: Vec<_> = names.collect();
    check_count(names.len())?;
    Ok(names)
}

/// Reads a layer's `json`.
pub(super) fn old_layer(bytes: &[u8]) -> Result<OldLayer, ArchiveError> {
    parse("layer json", bytes)
}

fn check_count(images: usize) -> Result<(), ArchiveError> {
    if images > MAX_IMAGES { Err(invalid(format!("it has over {MAX_IMAGES} images"))) } else { Ok(()) }
}

/// The name that an entry of `index.json` has, where it has a full one. A bare tag, as umoci writes, names no repository.
pub(super) fn name_of(entry: &Descriptor) -> Option<ImageRef> {
    let full = entry.annotations.get(FULL_NAME);
    let reference = entry.annotations.get(REF_NAME).filter(|it| it.contains(['/', ':']));
    let name: ImageRef = full.or(reference)?.parse().ok()?;
    name.digest().is_none().then_some(name)
}

fn clip(text: &str) -> String {
    text.chars().take(100).collect()
}

/// A door for the fuzz target.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    let _ = docker(bytes);
    let _ = old(bytes);
    let _ = old_layer(bytes);
    if let Ok(index) = layout(bytes) {
        for entry in &index.manifests {
            let _ = name_of(entry);
        }
    }
}
