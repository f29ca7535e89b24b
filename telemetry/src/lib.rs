//! Readings in (MQTT, HTTP, socket, files), the durable outbox, relays out (MQTT, S3).
//!
//! The way of a reading: a source (`mqtt`, `http`, `socket`, `board_metrics`) hands it to `ingest`, which puts it into
//! the `outbox` (durable) and then to local subscribers (`router`); the `relay`s read the outbox, each at its own pace.

pub mod board_metrics;
pub mod decode;
pub mod http;
pub mod ingest;
pub mod mqtt;
pub mod outbox;
pub mod parquet;
pub mod reading;
pub mod relay;
pub mod router;
pub mod s3;
pub mod socket;
pub mod topic;
pub mod uploads;
