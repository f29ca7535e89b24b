//! Bytes on their way to one reader, at most so many at a time.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

#[derive(Default)]
struct State {
    pieces: VecDeque<Bytes>,
    size: usize,
    /// Nothing more comes.
    ended: bool,
    /// Nobody reads any more.
    left: bool,
}

struct Shared {
    limit: usize,
    state: Mutex<State>,
    readable: Notify,
    writable: Notify,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a piece costs besides its bytes: many small ones are no way round the limit.
const PIECE: usize = 64;

fn cost(piece: &Bytes) -> usize {
    piece.len() + PIECE
}

/// An inbox for `limit` bytes, one piece of any size allowed over it.
pub fn inbox(limit: usize) -> (Filler, Inbox) {
    let shared = Shared { limit, state: Mutex::default(), readable: Notify::new(), writable: Notify::new() };
    let shared = Arc::new(shared);
    (Filler(shared.clone()), Inbox(shared))
}

/// Where bytes come in. Dropping it ends them.
pub struct Filler(Arc<Shared>);

impl Filler {
    /// Waits for room, then adds bytes; they are lost where nobody reads any more. Cancel-safe: they are in or not.
    pub async fn push(&self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        loop {
            {
                let mut state = self.0.state();
                if state.left || state.ended {
                    return;
                }
                if state.size < self.0.limit {
                    state.size += cost(&bytes);
                    state.pieces.push_back(bytes);
                    break;
                }
            }
            self.0.writable.notified().await;
        }
        self.0.readable.notify_one();
    }

    /// Nothing more comes; what is there is still read.
    pub fn end(&self) {
        self.0.state().ended = true;
        self.0.readable.notify_one();
        self.0.writable.notify_one();
    }

    /// Nothing more comes, and what is there is not read either.
    pub fn cut(&self) {
        {
            let mut state = self.0.state();
            state.ended = true;
            state.pieces.clear();
            state.size = 0;
        }
        self.0.readable.notify_one();
        self.0.writable.notify_one();
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.end();
    }
}

/// Where they are read. Dropping it lets the rest fall.
pub struct Inbox(Arc<Shared>);

impl Inbox {
    /// The next piece; `None` at the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            {
                let mut state = self.0.state();
                if let Some(piece) = state.pieces.pop_front() {
                    state.size -= cost(&piece);
                    drop(state);
                    self.0.writable.notify_one();
                    return Some(piece);
                }
                if state.ended {
                    return None;
                }
            }
            self.0.readable.notified().await;
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        {
            let mut state = self.0.state();
            state.left = true;
            state.pieces.clear();
            state.size = 0;
        }
        self.0.writable.notify_one();
    }
}
