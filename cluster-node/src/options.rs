//! What the node is told by the configuration.
