//! Layers and snapshots as a whole: through the confined child, on the disk and mounts of this machine. Needs root.

mod hostile;
mod layers;
mod make;
mod mounts;
mod peers;
mod trees;
