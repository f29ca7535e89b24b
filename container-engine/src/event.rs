//! What happens to containers, images, networks and volumes, as a stream.
