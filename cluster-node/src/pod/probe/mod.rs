//! Probes: exec, HTTP, TCP and gRPC, and who runs them.
