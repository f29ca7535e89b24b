//! The configuration, for what was asked.
