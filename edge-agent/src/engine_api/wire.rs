//! What goes over the control socket about images and volumes. Containers, networks and events go as the engine has them.

use std::collections::BTreeMap;

use container_engine::{owner::Owner, registry::Credentials};
use serde::{Deserialize, Serialize};

/// One image, with all its names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Digest of its configuration.
    pub id: String,
    /// Its names, normalised.
    pub names: Vec<String>,
    /// `host/path@sha256:…`: where it is known to be.
    pub digests: Vec<String>,
    /// Digest of its manifest.
    pub manifest: String,
    /// When it was built, RFC 3339; as its configuration says.
    pub created: Option<String>,
    /// Bytes of its unpacked layers.
    pub size: u64,
    /// `linux/arm64/v8`.
    pub platform: String,
    /// For people and filters.
    pub labels: BTreeMap<String, String>,
    /// Containers made from it.
    pub containers: usize,
    /// Seconds since 1970 when it was last used or pulled.
    pub used_s: u64,
}

/// Everything about one image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageDetails {
    /// What a list says of it.
    #[serde(flatten)]
    pub info: ImageInfo,
    /// Its configuration, OCI's JSON.
    pub config: serde_json::Value,
}

/// What to pull or push.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Transfer {
    /// The image.
    pub image: String,
    /// Whose.
    #[serde(default)]
    pub owner: Owner,
    /// For what; this machine where absent.
    #[serde(default)]
    pub platform: Option<String>,
    /// Also what is for other platforms.
    #[serde(default)]
    pub all_platforms: bool,
    /// Who the user is at the registry. Sent with the request; the agent keeps none.
    #[serde(default)]
    pub credentials: Credentials,
}

/// A login to try.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// Host, and port where it has one.
    pub registry: String,
    /// Who.
    pub credentials: Credentials,
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum LayerStatus {
    /// Not yet begun.
    Waiting,
    /// On its way down.
    Downloading {
        /// So far.
        bytes: u64,
        /// In all.
        total: u64,
    },
    /// On its way up.
    Uploading {
        /// So far.
        bytes: u64,
        /// In all.
        total: u64,
    },
    /// Downloaded; the rest is being unpacked.
    Unpacking,
    /// The connection broke, and it will go on.
    Retrying {
        /// Why.
        problem: String,
        /// In how long.
        wait_ms: u64,
    },
    /// Unpacked, or in the registry.
    Done,
    /// Was there already.
    Exists,
    /// The registry took it from another of its repositories.
    Mounted,
}

/// A line of a pull's or push's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Line {
    /// This is what the name means.
    Resolved {
        /// The manifest.
        digest: String,
        /// Compressed layers and their bytes, lowest first.
        layers: Vec<(String, u64)>,
    },
    /// A layer went on.
    Layer {
        /// Which, by its compressed blob.
        layer: String,
        /// How far.
        #[serde(flatten)]
        status: LayerStatus,
    },
    /// Something that a person should know.
    Note {
        /// In words.
        text: String,
    },
    /// It is done; nothing follows.
    Done {
        /// The image's normalised name.
        image: String,
        /// What the name means in its registry.
        digest: String,
        /// Whether anything changed.
        changed: bool,
        /// Why the registry could not be asked, where what is here is used instead.
        #[serde(default)]
        offline: Option<String>,
    },
}

/// What a load brought.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// Names, or ids of images without one.
    pub images: Vec<String>,
}

/// What a removal did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRemoved {
    /// Names that are gone.
    pub untagged: Vec<String>,
    /// Images that are gone.
    pub deleted: Vec<String>,
    /// Bytes of disk that they held.
    #[serde(default)]
    pub freed_bytes: u64,
}

/// A named volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Whose.
    pub owner: Owner,
    /// Where it is on the host.
    pub path: String,
    /// Nanoseconds since 1970.
    pub created_ns: i64,
    /// For people and filters.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Made for one container.
    #[serde(default)]
    pub anonymous: bool,
    /// Containers that mount it.
    #[serde(default)]
    pub containers: usize,
}

/// A volume to create.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VolumeSpec {
    /// Its name; made up where absent.
    pub name: Option<String>,
    /// For people and filters.
    pub labels: BTreeMap<String, String>,
}

/// An image that was made of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Committed {
    /// Digest of its configuration.
    pub id: String,
    /// Its name, normalised; empty where it has none.
    pub image: String,
}

/// What `prune` removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removed {
    /// Names.
    pub removed: Vec<String>,
    /// Bytes of disk that they held.
    pub freed_bytes: u64,
}
