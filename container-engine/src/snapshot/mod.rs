//! Layers unpacked to trees, and root file systems made of them.
