//! Registries: pull by range, push in parts, logins, mirrors, retries.
//!
//! Of `oci-client` this room uses the names of media types and the form of error bodies. Its client is not used: it hides
//! `Retry-After`, knows one mirror and no way back from it, asks for tokens with one scope, and starts an upload anew after a cut.
//!
//! Always true:
//! - What is fetched whole is compared with its digest; what is fetched by range is compared by whoever puts it together.
//! - Credentials go to the registry they were given for, over TLS unless the configuration allows otherwise, never to a mirror or
//!   to where a registry redirects. They are in no error and no log.
//! - An answer is read up to a limit; a registry that hangs is given up.

mod client;
mod credentials;
mod endpoint;
mod error;
mod manifest;
mod pull;
mod push;
mod token;

pub use client::Registry;
pub use credentials::{Credentials, DockerConfig, Secret};
pub use endpoint::Options;
pub use error::RegistryError;
pub use manifest::{
    Descriptor, Document, DocumentError, IMAGE_TYPES, INDEX_TYPES, ImageIndex, ImageManifest, MAX_MANIFEST,
};
pub use pull::{BlobStream, Manifest, Retry};
pub use push::{Progress, Pushed};
pub use token::{Challenge, read_challenges};
