//! Building images: what a Dockerfile says, and what is to be done for it. Nothing here runs, reads or fetches anything.
//!
//! [`dockerfile`] reads the file: lines, instructions, words. [`ignore`] is `.dockerignore`. [`graph`] knows which stages
//! and images are needed; [`plan`] says what each stage runs and copies, and what the configuration of the image is.
//! [`outline`] answers what can be asked without building.

pub mod args;
pub mod dockerfile;
pub mod graph;
pub mod ignore;
pub mod outline;
pub mod plan;
mod rules;
