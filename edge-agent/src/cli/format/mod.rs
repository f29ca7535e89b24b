//! How results look: Docker's tables, Go templates, sizes and times for people.

pub mod human;
mod lex;
mod listing;
mod template;
mod value;

pub use listing::{Columns, Listing, align};
pub use template::Template;
