//! Platforms of images and of this machine: which entry of an index fits, variants included.
