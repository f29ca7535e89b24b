//! What keeps the board well: eviction, image and container collection, orphans, graceful shutdown.
