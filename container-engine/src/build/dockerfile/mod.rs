//! The Dockerfile language with BuildKit's semantics and words.
//!
//! Written here because no crate carries it: `dockerfile-parser` and its forks stop at the words of an instruction (no mounts, no
//! heredocs, no modifiers, no errors in BuildKit's words), and take the file apart by other rules.
//!
//! The way of a file: [`lexer`] makes nodes of its lines, [`parse`] makes [`instruction`]s of them; `shell` expands words when it
//! is known what variables are. Every step is bounded: bytes, lines, instructions, depth and length of words.

pub mod directive;
pub mod duration;
mod error;
mod flags;
pub mod heredoc;
pub mod instruction;
pub mod lexer;
mod line;
pub mod lint;
pub mod mount;
pub mod parse;
mod pattern;
pub mod shell;
mod source;
pub(crate) mod suggest;

pub use error::{DockerfileError, Kind, Result};
pub(crate) use error::{argument, expansion};
pub use line::Pair;
pub use source::{Lines, excerpt, quote};
