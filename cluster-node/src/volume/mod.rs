//! All volumes of pods: made, kept up to date, and taken away again.

mod error;
mod model;
mod volumes;

pub use error::{Problem, VolumeError};
pub use model::{ContainerMounts, Facts, PodMounts, Ready, Source, Usage, VolumeUsage};
pub use volumes::{Volumes, Wanted};
