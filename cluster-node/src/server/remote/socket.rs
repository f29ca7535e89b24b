//! Channels over a WebSocket: the first byte of a message says which.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt, stream::SplitStream};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Message,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

use crate::server::spdy::{Filler, Gone, Inbox, inbox};

/// Largest message of a client's.
pub const MAX_MESSAGE: usize = 1 << 20;
/// Most data in a message of ours.
const MAX_DATA: usize = 32 << 10;
/// Messages that wait to be written.
const QUEUE: usize = 16;
/// Bytes that wait to be read from one channel.
const WAITING: usize = 128 << 10;
/// "This channel ends", in version 5.
const CLOSE: u8 = 255;
/// How long a client may take to answer our goodbye.
const FAREWELL: Duration = Duration::from_secs(5);

/// How bytes are put into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As they are, behind the number of the channel.
    Binary,
    /// Base64 behind the digit of the channel.
    Base64,
}

/// What kind of a channel it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// The client writes.
    Read,
    /// We write, or nobody.
    Write,
}

/// A WebSocket as a server has it, with bounds.
pub async fn accept<I: AsyncRead + AsyncWrite + Unpin>(io: I) -> WebSocketStream<I> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE))
        .read_buffer_size(16 << 10)
        .write_buffer_size(0);
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Where a channel is written to.
#[derive(Clone)]
pub struct ChannelWriter {
    channel: u8,
    codec: Codec,
    queue: mpsc::Sender<Message>,
}

impl ChannelWriter {
    /// Sends bytes; none are a message, too. Waits where the client does not read.
    pub async fn send(&self, mut bytes: Bytes) -> Result<(), Gone> {
        loop {
            let piece = bytes.split_to(bytes.len().min(MAX_DATA));
            self.queue.send(encode(self.codec, self.channel, &piece)).await.map_err(|_| Gone)?;
            if bytes.is_empty() {
                return Ok(());
            }
        }
    }
}

fn encode(codec: Codec, channel: u8, bytes: &[u8]) -> Message {
    match codec {
        Codec::Binary => {
            let mut message = BytesMut::with_capacity(1 + bytes.len());
            message.extend_from_slice(&[channel]);
            message.extend_from_slice(bytes);
            Message::Binary(message.freeze())
        }
        Codec::Base64 => {
            let mut text = String::from(char::from(b'0' + channel));
            STANDARD.encode_string(bytes, &mut text);
            Message::Text(text.into())
        }
    }
}

/// What a message of the client's means.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    Data(u8, Bytes),
    /// The client writes no more to this channel.
    End(u8),
    Nothing,
    /// It makes no sense, and nothing after it would.
    Nonsense,
}

fn decode(codec: Codec, can_close: bool, message: Bytes) -> Meaning {
    let mut bytes = message;
    match (bytes.first().copied(), codec) {
        (None, _) => Meaning::Nothing,
        (Some(CLOSE), Codec::Binary) if can_close => match bytes.as_ref() {
            [_, channel] => Meaning::End(*channel),
            _ => Meaning::Nonsense,
        },
        (Some(channel), Codec::Binary) => Meaning::Data(channel, bytes.split_off(1)),
        (Some(digit), Codec::Base64) => match STANDARD.decode(&bytes[1..]) {
            Ok(data) => Meaning::Data(digit.wrapping_sub(b'0'), data.into()),
            Err(_) => Meaning::Nothing,
        },
    }
}

/// All channels of a WebSocket.
pub struct Channels {
    queue: mpsc::Sender<Message>,
    codec: Codec,
    readers: Vec<Option<Inbox>>,
}

impl Channels {
    /// Where to write to that channel.
    pub fn writer(&self, channel: u8) -> ChannelWriter {
        ChannelWriter { channel, codec: self.codec, queue: self.queue.clone() }
    }

    /// Where to read from it, once.
    pub fn reader(&mut self, channel: u8) -> Option<Inbox> {
        self.readers.get_mut(usize::from(channel))?.take()
    }

    /// Says goodbye after everything that was sent before.
    pub async fn close(&self) {
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        // A client that has gone needs no goodbye.
        let _ = self.queue.send(Message::Close(Some(normal))).await;
    }
}

/// Carries a WebSocket's messages.
pub struct Driver<I> {
    socket: WebSocketStream<I>,
    codec: Codec,
    can_close: bool,
    idle: Duration,
    queue: mpsc::Receiver<Message>,
    fillers: Vec<Option<Filler>>,
}

/// Channels over a socket. With `can_close` the client may end each of its own.
pub fn channels<I: AsyncRead + AsyncWrite + Unpin>(
    socket: WebSocketStream<I>,
    kinds: &[Channel],
    codec: Codec,
    can_close: bool,
    idle: Duration,
) -> (Channels, Driver<I>) {
    let (sender, queue) = mpsc::channel(QUEUE);
    let make = |kind: &Channel| match kind {
        Channel::Read => {
            let (filler, inbox) = inbox(WAITING);
            (Some(filler), Some(inbox))
        }
        Channel::Write => (None, None),
    };
    let (fillers, readers) = kinds.iter().map(make).unzip();
    (Channels { queue: sender, codec, readers }, Driver { socket, codec, can_close, idle, queue, fillers })
}

impl<I: AsyncRead + AsyncWrite + Unpin> Driver<I> {
    /// Until the connection ends; all channels have ended then.
    pub async fn run(self) {
        let Self { socket, codec, can_close, idle, mut queue, fillers } = self;
        let (mut sink, stream) = socket.split();
        let writing = async {
            while let Some(message) = queue.recv().await {
                let is_last = message.is_close();
                let sent = tokio::time::timeout(idle, sink.send(message)).await;
                if is_last || !matches!(sent, Ok(Ok(()))) {
                    return is_last;
                }
            }
            false
        };
        let mut reading = std::pin::pin!(read(stream, codec, can_close, idle, fillers));
        let said_goodbye = tokio::select! {
            () = &mut reading => false,
            said_goodbye = writing => said_goodbye,
        };
        if said_goodbye {
            // What the client still sends is read, else its socket would be reset, and our last words with it.
            let _ = tokio::time::timeout(FAREWELL, reading).await;
        }
    }
}

async fn read<I: AsyncRead + AsyncWrite + Unpin>(
    mut stream: SplitStream<WebSocketStream<I>>,
    codec: Codec,
    can_close: bool,
    idle: Duration,
    mut fillers: Vec<Option<Filler>>,
) {
    while let Ok(Some(Ok(message))) = tokio::time::timeout(idle, stream.next()).await {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::from(text),
            // Also of a goodbye: the answer to it goes out with the next read, which is the last.
            _ => continue,
        };
        match decode(codec, can_close, bytes) {
            Meaning::Data(channel, bytes) => {
                if let Some(Some(filler)) = fillers.get(usize::from(channel)) {
                    filler.push(bytes).await;
                }
            }
            Meaning::End(channel) => match fillers.get_mut(usize::from(channel)) {
                Some(filler) => *filler = None,
                None => return,
            },
            Meaning::Nothing => {}
            Meaning::Nonsense => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_have_channels() {
        #[track_caller]
        fn check(codec: Codec, can_close: bool, message: &'static [u8], want: Meaning) {
            assert_eq!(decode(codec, can_close, Bytes::from_static(message)), want, "{message:?}");
        }
        let data = |channel, bytes: &'static [u8]| Meaning::Data(channel, Bytes::from_static(bytes));
        check(Codec::Binary, false, b"\0hello", data(0, b"hello"));
        check(Codec::Binary, false, b"\x04", data(4, b""));
        check(Codec::Binary, false, b"", Meaning::Nothing);
        check(Codec::Binary, false, b"\xff\0", data(255, b"\0"));
        check(Codec::Binary, true, b"\xff\0", Meaning::End(0));
        check(Codec::Binary, true, b"\xff", Meaning::Nonsense);
        check(Codec::Binary, true, b"\xff\0\0", Meaning::Nonsense);
        check(Codec::Base64, false, b"0Zm9vCg==", data(0, b"foo\n"));
        check(Codec::Base64, false, b"4", data(4, b""));
        check(Codec::Base64, false, b"0Zm9v!", Meaning::Nothing);
        assert_eq!(encode(Codec::Binary, 1, b"x"), Message::Binary(Bytes::from_static(b"\x01x")));
        assert_eq!(encode(Codec::Base64, 1, b"\n"), Message::Text("1Cg==".into()));
    }

    proptest! {
        #[test]
        fn no_message_is_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..64), base64: bool, can_close: bool) {
            let codec = if base64 { Codec::Base64 } else { Codec::Binary };
            let _ = decode(codec, can_close, bytes.into());
        }
    }
}
