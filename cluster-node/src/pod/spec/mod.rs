//! What a container of a pod is for the engine: environment, security, limits, mounts, names.
