//! Manifests and indexes as registries give them: OCI and Docker schema 2 are the same shape under other names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{content::Digest, platform::Platform};

/// Largest manifest or index that is read, bytes: what registries accept.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Most layers of an image, and entries of an index.
const MAX_ENTRIES: usize = 1024;

/// A kind, a digest and a size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Its kind.
    pub media_type: String,
    /// Of its bytes.
    pub digest: Digest,
    /// How many bytes.
    pub size: u64,
    /// In an index: what it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Words about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// In an index: the kind of artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// Of these bytes.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        let (platform, annotations, artifact_type) = Default::default();
        let (media_type, digest, size) = (media_type.to_owned(), Digest::of(bytes), bytes.len() as u64);
        Self { media_type, digest, size, platform, annotations, artifact_type }
    }
}

/// An image: a configuration and layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    /// 2.
    pub schema_version: u32,
    /// Its own kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// From the lowest up.
    pub layers: Vec<Descriptor>,
    /// Words about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Images of one name for several platforms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageIndex {
    /// 2.
    pub schema_version: u32,
    /// Its own kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// One for each platform.
    pub manifests: Vec<Descriptor>,
    /// Words about it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What a name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Image(ImageManifest),
    /// Several.
    Index(ImageIndex),
}

/// Why a document cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Another kind.
    #[error("{0} is no image")]
    Unsupported(String),
    /// Not what it says it is.
    #[error("it is no manifest: {0}")]
    Malformed(String),
}

/// Kinds of an image's manifest.
pub const IMAGE_TYPES: [&str; 2] =
    [oci_client::manifest::OCI_IMAGE_MEDIA_TYPE, oci_client::manifest::IMAGE_MANIFEST_MEDIA_TYPE];
/// Kinds of an index.
pub const INDEX_TYPES: [&str; 2] =
    [oci_client::manifest::OCI_IMAGE_INDEX_MEDIA_TYPE, oci_client::manifest::IMAGE_MANIFEST_LIST_MEDIA_TYPE];

impl Document {
    /// Reads one. Its own `mediaType` counts more than what it was served as; without both the shape decides.
    pub fn parse(bytes: &[u8], served_as: &str) -> Result<Self, DocumentError> {
        let malformed = |error: serde_json::Error| DocumentError::Malformed(error.to_string());
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(DocumentError::Malformed(format!("it has over {MAX_MANIFEST} bytes")));
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            schema_version: Option<u32>,
            media_type: Option<String>,
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
        }
        let head: Head = serde_json::from_slice(bytes).map_err(malformed)?;
        let served_as = served_as.split(';').next().unwrap_or_default().trim();
        let kind = head.media_type.as_deref().unwrap_or(served_as);
        let generic = matches!(kind, "" | "application/json" | "text/plain" | "application/octet-stream");
        let index = INDEX_TYPES.contains(&kind) || (generic && head.manifests.is_some());
        if !index && !generic && !IMAGE_TYPES.contains(&kind) {
            return Err(DocumentError::Unsupported(kind.chars().take(200).collect()));
        }
        if head.schema_version != Some(2) {
            return Err(DocumentError::Unsupported(format!("schema version {:?}", head.schema_version.unwrap_or(0))));
        }
        let many = |count: usize| {
            let error = || DocumentError::Malformed(format!("it names {count} things; at most {MAX_ENTRIES}"));
            if count > MAX_ENTRIES { Err(error()) } else { Ok(()) }
        };
        if index {
            let index: ImageIndex = serde_json::from_slice(bytes).map_err(malformed)?;
            many(index.manifests.len())?;
            return Ok(Self::Index(index));
        }
        let image: ImageManifest = serde_json::from_slice(bytes).map_err(malformed)?;
        many(image.layers.len())?;
        Ok(Self::Image(image))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_apart() {
        #[track_caller]
        fn check(text: &str, served_as: &str, want: &str) {
            let got = match Document::parse(text.as_bytes(), served_as) {
                Ok(Document::Image(image)) => format!("image of {}", image.layers.len()),
                Ok(Document::Index(index)) => format!("index of {}", index.manifests.len()),
                Err(DocumentError::Unsupported(_)) => "unsupported".to_owned(),
                Err(DocumentError::Malformed(_)) => "malformed".to_owned(),
            };
            assert_eq!(got, want, "{text} as {served_as:?}");
        }
        let entry = format!(r#"{{"mediaType":"m","digest":"sha256:{}","size":3}}"#, "a".repeat(64));
        let image = format!(r#"{{"schemaVersion":2,"config":{entry},"layers":[{entry}]}}"#);
        check(&image, "application/vnd.oci.image.manifest.v1+json", "image of 1");
        check(&image, "application/vnd.docker.distribution.manifest.v2+json; charset=utf-8", "image of 1");
        check(&image, "", "image of 1");
        check(&image, "application/vnd.example+json", "unsupported");
        check(&format!(r#"{{"schemaVersion":2,"manifests":[{entry},{entry}]}}"#), "", "index of 2");
        check(
            r#"{"schemaVersion":1,"fsLayers":[]}"#,
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "unsupported",
        );
        check(r#"{"schemaVersion":1}"#, "", "unsupported");
        check("[]", "", "malformed");
        check("{", "", "malformed");
        check(&image.replace("sha256:a", "sha256:A"), "", "malformed");
        check(&image.replace(":3", ":-3"), "", "malformed");
    }
}
