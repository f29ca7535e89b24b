//! Names of images, normalised as Docker does: `alpine` is `docker.io/library/alpine:latest`.
