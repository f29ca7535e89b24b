//! S3 relay.
