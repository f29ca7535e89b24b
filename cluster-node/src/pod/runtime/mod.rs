//! Acting on the engine for pods, and seeing what it has of them.
