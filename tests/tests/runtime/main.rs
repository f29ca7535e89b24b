//! The same containers through the embedded runtime, runc and crun. The judge is what happens inside them.
//!
//! What differs from runc, and why:
//! * a command that cannot be executed only at `start` (its interpreter is missing, its format unknown) ends with 127 or
//!   126 instead of 1, so that the engine can tell; a program for another CPU is refused at `create` already;
//! * `name=systemd` of version 1 is not entered (nothing on a board reads it);
//! * masked folders are tmpfs of one block, runc's of the default size.
//!
//! Needs root, control groups, and Debian's busybox-static and runc; crun is passed over where it does not run.

// Setting up a bundle is part of each test.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod bundle;
mod confinement;
mod hooks;
mod life;
mod limits;
mod mounts;
