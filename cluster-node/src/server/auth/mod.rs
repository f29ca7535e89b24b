//! Who asks, and whether he may.

mod delegate;

pub use delegate::{AccessReview, Delegate, DelegateError, User};
