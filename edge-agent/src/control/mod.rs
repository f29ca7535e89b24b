//! `agent.sock`: how commands speak to the running agent. HTTP/1.1 under `/v1/`, JSON or NDJSON.

mod client;
mod engine;
pub mod frames;
mod server;

pub use client::{Client, ClientError};
pub use engine::{Engine, EngineError, Sent, encode, query};
pub use server::Server;
