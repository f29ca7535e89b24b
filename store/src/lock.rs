//! One process at a time per data directory.
