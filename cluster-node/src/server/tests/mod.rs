//! The server as its clients see it: over TLS, with certificates and tokens, by every protocol.

mod pages;
mod ports;
mod sessions;
mod world;
