//! Building images: what a Dockerfile says, and what is to be done for it. Nothing here runs, reads or fetches anything.
//!
//! [`dockerfile`] reads the file: lines, instructions, words. [`ignore`] is `.dockerignore`.

pub mod dockerfile;
pub mod ignore;
