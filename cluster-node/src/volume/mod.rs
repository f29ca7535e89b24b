//! All volumes of pods: made, kept up to date, and taken away again.
//!
//! [`Volumes`] is the front. `collect` says what each volume is to be, with the objects it is made of (`object`); `apply`
//! makes it, with `atomic` (files that change at once), `empty_dir`, `host_path`, `nfs`, `persistent`, `image`; `sub_path`
//! finds the parts that containers mount; `tree` and `mount` take everything away.
//!
//! Elsewhere: what is mounted inside of containers (`container_engine::runtime`), when volumes are prepared (`pod`).

mod apply;
mod atomic;
mod collect;
mod downward;
mod empty_dir;
mod error;
mod expand;
mod host_path;
mod image;
mod model;
mod mount;
mod nfs;
mod payload;
mod persistent;
mod place;
mod quantity;
mod sub_path;
#[cfg(test)]
mod testing;
mod tree;
mod usage;
mod volumes;

pub(crate) use downward::{amount_of, field_of};
pub use error::{Problem, VolumeError};
pub(crate) use expand::expand;
pub use model::{ContainerMounts, Facts, PodMounts, Ready, Source, Usage, VolumeUsage};
pub use volumes::{Volumes, Wanted};
