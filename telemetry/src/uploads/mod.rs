//! Large files to S3.
