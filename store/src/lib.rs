//! The embedded store: `state` holds typed records on sled, `log` holds telemetry in segments. Both survive power cuts.
pub mod lock;
pub mod log;
pub mod state;
