//! System calls that rustix has no safe wrapper for. The only `unsafe` of this crate.
