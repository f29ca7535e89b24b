//! Content-addressed blobs on disk: verified on every write, resumable, whole or absent after a power cut.
