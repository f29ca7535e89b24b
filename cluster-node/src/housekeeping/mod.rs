//! Keeping the board usable: pods go before memory, disk or process ids run out.
//!
//! What to do is decided in [`pressure`] and [`rank`], which do nothing; [`eviction`] looks, and acts through what its
//! users implement.
//!
//! Elsewhere: image collection by water marks (`container_engine::image`); conditions of the node (`node`).

pub mod eviction;
pub mod pressure;
pub mod rank;
pub mod threshold;
