//! Content-addressed blobs on disk: verified on every write, resumable, whole or absent after a power cut.

mod digest;

pub use digest::{Digest, DigestError};
