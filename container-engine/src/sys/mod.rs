//! System calls that rustix has no safe wrapper for. The only `unsafe` of this crate: one small module a subject.
#![allow(unsafe_code)]

pub mod asynchronous;
pub mod attr;
pub mod bpf;
pub mod confine;
pub mod fork;
pub mod netns;
pub mod process;
pub mod seccomp;
pub mod thread;
pub mod userns;
