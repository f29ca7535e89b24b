//! Decisions about a pod, as pure functions: what to do next, what its status is, whether this node takes it.
