//! Volumes of pods: made before its containers, kept up to date, taken away after them.
