//! SPDY/3.1 as Kubernetes uses it: many streams over one upgraded connection, for exec, attach and port-forward.
//!
//! Source: draft-mbelshe-httpbis-spdy-00 and the "SPDY Protocol - Draft 3.1". Of it is here what the streaming protocols
//! of Kubernetes need: streams that the client opens, data, resets, pings, windows, farewells. There is no push, no
//! priority, and no HTTP inside.
//!
//! Always true:
//! - No bytes of a peer panic or make more than a bounded amount of memory be held: frames, header blocks, headers,
//!   streams and what waits in a stream have limits, and breaking one ends the connection or the stream.
//! - A frame is written whole or not at all: dropping a future in the middle of a send leaves the connection good.
//! - What arrives is held back where nobody reads it: the window of its stream is then not opened, and a peer that does
//!   not count windows (Go's spdystream, and so every client of Kubernetes) is held back by its socket.
//!
//! Elsewhere: which streams a protocol wants (`remote`, `forward`).

mod connection;
mod frame;
mod headers;
mod inbox;
mod stream;

#[cfg(test)]
pub use connection::Ended;
pub use connection::{Connection, Gone, Limits};
#[cfg(test)]
pub use frame::Frame;
pub use frame::ResetStatus;
pub use headers::Headers;
pub use inbox::{Filler, Inbox, inbox};
pub use stream::{Stream, StreamWriter};

#[cfg(test)]
pub(in crate::server) mod tests;
