//! One stream, as its user has it.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    connection::{Gone, Shared},
    frame::{Frame, MAX_DATA, ResetStatus},
    headers::Headers,
    inbox::Inbox,
};

/// A stream that the peer has opened.
pub struct Stream {
    /// Its id.
    pub id: u32,
    /// What it is for.
    pub headers: Headers,
    /// What the peer sends.
    pub reader: Inbox,
    /// What is sent to it.
    pub writer: StreamWriter,
}

impl Stream {
    /// Tells the peer that it may begin.
    pub async fn accept(&self) -> Result<(), Gone> {
        let reply = Frame::SynReply { stream: self.id, headers: Headers::default(), fin: false };
        self.writer.shared.send(reply).await
    }

    /// Tells the peer that it is not wanted.
    pub async fn refuse(self, status: ResetStatus) {
        self.writer.reset(status).await;
    }
}

/// The sending end of a stream. Dropped it ends the stream both ways: unfinished, by a reset.
pub struct StreamWriter {
    shared: Arc<Shared>,
    id: u32,
    done: bool,
}

impl StreamWriter {
    pub(super) fn new(shared: Arc<Shared>, id: u32) -> Self {
        Self { shared, id, done: false }
    }

    /// Sends bytes; waits where the peer does not take them.
    ///
    /// * Cancelled: a part may have been sent, in whole frames.
    pub async fn send(&mut self, mut bytes: Bytes) -> Result<(), Gone> {
        while !bytes.is_empty() {
            let most = self.shared.room(self.id, bytes.len().min(MAX_DATA)).await?;
            let place = self.shared.place().await?;
            let bytes = bytes.split_to(most);
            self.shared.sent(self.id, bytes.len());
            place.send(Frame::Data { stream: self.id, bytes, fin: false });
        }
        Ok(())
    }

    /// Nothing more is sent; the peer may go on.
    pub async fn finish(&mut self) {
        if !std::mem::replace(&mut self.done, true) {
            let last = Frame::Data { stream: self.id, bytes: Bytes::new(), fin: true };
            // A peer that has gone needs no end.
            let _ = self.shared.send(last).await;
            self.shared.local_end(self.id);
        }
    }

    /// The stream is gone, both ways.
    pub async fn reset(mut self, status: ResetStatus) {
        self.done = true;
        self.shared.forget(self.id);
        // A peer that has gone needs no end.
        let _ = self.shared.send(Frame::Reset { stream: self.id, status }).await;
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        // Also a finished one: a peer that never ends its own way would hold a place for ever.
        self.shared.forget(self.id);
        if !self.done {
            self.shared.try_send(Frame::Reset { stream: self.id, status: ResetStatus::CANCEL });
        }
    }
}
