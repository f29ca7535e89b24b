//! Images by name: pull, push, tag, inspect, remove, save, load, garbage collection.
