//! Logs of containers in CRI format: written, rotated, read across rotations.
