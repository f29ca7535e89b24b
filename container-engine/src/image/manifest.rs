//! What an image is made of: index, manifest and configuration, as OCI and Docker (schema 2) write them.
//!
//! Tolerant of what is unknown, strict in what is used: digests, sizes, the number of layers. A document that could be read
//! both as an index and as a manifest is refused (CVE-2021-41190).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{content::Digest, platform::Platform, registry};

pub use registry::{Descriptor, Document, ImageIndex, ImageManifest as Manifest, MAX_MANIFEST};

/// Largest configuration.
pub const MAX_CONFIG: u64 = 8 << 20;
/// Most layers: above, no kernel mounts them.
pub const MAX_LAYERS: usize = 500;
/// Largest blob that is believed: 1 TiB.
const MAX_BLOB: u64 = 1 << 40;

/// OCI's types, which what is made here has.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// A manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// A configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// A layer that is not compressed.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// A layer under gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// A layer under zstd.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Why a document was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Not what it should be.
    #[error("the {what} {digest} is not understood: {problem}")]
    Invalid {
        /// `manifest`, `configuration`.
        what: &'static str,
        /// Which.
        digest: Digest,
        /// What is wrong with it.
        problem: String,
    },
    /// A kind this engine has no use for.
    #[error("{digest} is of type {media_type:?}, which is no image: images are OCI or Docker schema 2 manifests")]
    Unsupported {
        /// Which.
        digest: Digest,
        /// What it is.
        media_type: String,
    },
}

/// Reads an index or a manifest, and refuses what is ambiguous or larger than sane. `media_type` is what the registry or a
/// descriptor called it; empty where nobody did.
pub fn document(digest: Digest, media_type: &str, bytes: &[u8]) -> Result<Document, DocumentError> {
    #[derive(Deserialize)]
    struct Shape {
        manifests: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        config: Option<serde::de::IgnoredAny>,
    }
    let invalid = |problem: String| DocumentError::Invalid { what: "manifest", digest, problem };
    let document = Document::parse(bytes, media_type).map_err(|error| match error {
        registry::DocumentError::Unsupported(media_type) => DocumentError::Unsupported { digest, media_type },
        registry::DocumentError::Malformed(problem) => invalid(problem),
    })?;
    let shape: Shape = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
    if shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
        return Err(invalid("it is an index and a manifest at once".into()));
    }
    if let Document::Image(image) = &document {
        if image.layers.len() > MAX_LAYERS {
            return Err(invalid(format!("it has {} layers, over the limit of {MAX_LAYERS}", image.layers.len())));
        }
        if image.config.size > MAX_CONFIG {
            return Err(invalid(format!("its configuration has {} bytes", image.config.size)));
        }
        if let Some(layer) = image.layers.iter().find(|it| it.size > MAX_BLOB) {
            return Err(invalid(format!("{} would have {} bytes", layer.digest, layer.size)));
        }
    }
    Ok(document)
}

/// The configuration of an image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When it was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// By whom.
    #[serde(default, skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub author: String,
    /// `arm64`, …
    #[serde(default, deserialize_with = "or_default")]
    pub architecture: String,
    /// `v7`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// `linux`.
    #[serde(default, deserialize_with = "or_default")]
    pub os: String,
    /// What a container of it does.
    #[serde(default, deserialize_with = "or_default")]
    pub config: RunConfig,
    /// Its layers.
    #[serde(default, deserialize_with = "or_default")]
    pub rootfs: RootFs,
    /// How it came to be.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub history: Vec<History>,
}

/// The layers of a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type", default, deserialize_with = "or_default")]
    pub kind: String,
    /// Digests of the uncompressed layers, lowest first.
    #[serde(default, deserialize_with = "or_default")]
    pub diff_ids: Vec<Digest>,
}

/// One step of an image's history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// When.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// By which command.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub created_by: String,
    /// By whom.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub author: String,
    /// Anything.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub comment: String,
    /// Without a layer of its own.
    #[serde(skip_serializing_if = "std::ops::Not::not", deserialize_with = "or_default")]
    pub empty_layer: bool,
}

/// What a container of an image does where its creator says nothing else.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// User and group.
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    /// `80/tcp`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    /// `NAME=VALUE`.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// In front of the command.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// The command.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// What BuildKit writes beside every command.
    #[serde(skip_serializing_if = "std::ops::Not::not", deserialize_with = "or_default")]
    pub args_escaped: bool,
    /// Paths that get a volume.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    /// Where it starts.
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    /// For people and selectors.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// How it is asked to stop.
    #[serde(skip_serializing_if = "String::is_empty", deserialize_with = "or_default")]
    pub stop_signal: String,
    /// Docker's health check, as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<serde_json::Value>,
    /// Of the shell form.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub shell: Vec<String>,
    /// Triggers of a build.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "or_default")]
    pub on_build: Vec<String>,
}

impl ImageConfig {
    /// Reads one.
    pub fn parse(digest: Digest, bytes: &[u8]) -> Result<Self, DocumentError> {
        let invalid = |problem: String| DocumentError::Invalid { what: "configuration", digest, problem };
        let config: Self = serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?;
        if config.rootfs.diff_ids.len() > MAX_LAYERS {
            return Err(invalid(format!("it names {} layers", config.rootfs.diff_ids.len())));
        }
        Ok(config)
    }

    /// What it runs on.
    pub fn platform(&self) -> Platform {
        let os = if self.os.is_empty() { "linux" } else { &self.os };
        Platform::new(os, &self.architecture, self.variant.as_deref())
    }
}

/// `null` and absent are the default: Go writes `null` for empty lists.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(n: u8) -> serde_json::Value {
        serde_json::json!({"mediaType": OCI_LAYER_GZIP, "digest": Digest::of(&[n]).to_string(), "size": 3})
    }

    #[test]
    fn documents_are_told_apart() {
        #[track_caller]
        fn check(json: serde_json::Value, media_type: &str, want: &str) {
            let bytes = json.to_string().into_bytes();
            let got = match document(Digest::of(&bytes), media_type, &bytes) {
                Ok(Document::Index(index)) => format!("index of {}", index.manifests.len()),
                Ok(Document::Image(manifest)) => format!("manifest of {}", manifest.layers.len()),
                Err(error) => error.to_string(),
            };
            assert!(got.contains(want), "{json} as {media_type}: {got}");
        }
        let manifest = serde_json::json!({"schemaVersion": 2, "config": descriptor(0), "layers": [descriptor(1)]});
        check(manifest.clone(), OCI_MANIFEST, "manifest of 1");
        check(manifest.clone(), "application/json; charset=utf-8", "manifest of 1");
        check(manifest.clone(), OCI_INDEX, "not understood");
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json", "manifests": [descriptor(1)]});
        check(index.clone(), "", "index of 1");
        check(index, OCI_MANIFEST, "index of 1");
        let mut both = manifest.clone();
        both["manifests"] = serde_json::json!([]);
        check(both, OCI_MANIFEST, "at once");
        check(serde_json::json!({"schemaVersion": 1, "fsLayers": []}), "", "schema version");
        check(serde_json::json!({"schemaVersion": 2, "mediaType": "application/x-helm"}), "", "no image");
        let mut many = manifest.clone();
        many["layers"] = (0..=MAX_LAYERS).map(|_| descriptor(1)).collect();
        check(many, "", "over the limit");
        let mut large = manifest.clone();
        large["layers"][0]["size"] = u64::MAX.into();
        check(large, "", "would have");
        let mut negative = manifest;
        negative["layers"][0]["size"] = (-1).into();
        check(negative, "", "not understood");
        check(serde_json::json!([]), "", "not understood");
    }

    #[test]
    fn nulls_of_go_are_nothing() {
        let json =
            br#"{"architecture":"arm","variant":"v7","os":"linux","config":{"Env":null,"Cmd":["sh"],"Labels":null},
            "rootfs":{"type":"layers","diff_ids":null},"history":null}"#;
        let config = ImageConfig::parse(Digest::of(json), json).unwrap();
        assert_eq!(config.config.cmd, ["sh"]);
        assert_eq!(config.platform().to_string(), "linux/arm/v7");
    }
}
