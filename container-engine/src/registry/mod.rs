//! Registries: pull by range, push in parts, logins, mirrors, retries.
