//! Between a client's channels and a process: the same for every protocol.

use bytes::Bytes;
use container_engine::shim::Output;

use crate::server::{
    runtime::{Input, Process, Said},
    spdy::{Inbox, StreamWriter},
};

use super::socket::ChannelWriter;

/// Longest JSON of a terminal's size that is waited for.
const MAX_SIZE_TEXT: usize = 4096;

/// Where a client reads.
pub enum Sink {
    /// A stream of SPDY.
    Stream(StreamWriter),
    /// A channel of a WebSocket.
    Channel(ChannelWriter),
}

impl Sink {
    /// Waits where the client does not read. `false`: it has gone.
    pub async fn send(&mut self, bytes: Bytes) -> bool {
        match self {
            Self::Stream(stream) => stream.send(bytes).await.is_ok(),
            Self::Channel(channel) => channel.send(bytes).await.is_ok(),
        }
    }

    /// Nothing more comes.
    pub async fn finish(&mut self) {
        if let Self::Stream(stream) = self {
            stream.finish().await;
        }
    }
}

/// The client's side.
#[derive(Default)]
pub struct Channels {
    /// What it types.
    pub stdin: Option<Inbox>,
    /// Output.
    pub stdout: Option<Sink>,
    /// Errors of the process.
    pub stderr: Option<Sink>,
    /// How it ended.
    pub error: Option<Sink>,
    /// Sizes of its terminal, as JSON.
    pub resize: Option<Inbox>,
    /// Our ends of streams that only the client writes to. A client that sees one of them end stops writing.
    pub held: Vec<StreamWriter>,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// With this code.
    Exit(i32),
    /// It could not be run, or was lost.
    Failed(String),
    /// The client went away first.
    ClientGone,
}

/// Carries until the process ends or the client no longer reads. With `close` the end of the client's input is the end
/// of the process's.
async fn carry(channels: &mut Channels, input: &mut dyn Input, output: &mut dyn Said, close: bool) -> End {
    let Channels { stdin, stdout, stderr, resize, error: _, held: _ } = channels;
    tokio::select! {
        end = outward(output, stdout, stderr) => end,
        never = inward(input, stdin, resize, close) => match never {},
    }
}

async fn outward(output: &mut dyn Said, stdout: &mut Option<Sink>, stderr: &mut Option<Sink>) -> End {
    loop {
        let (sink, bytes) = match output.next().await {
            Ok(Some(Output::Stdout(bytes))) => (&mut *stdout, bytes),
            Ok(Some(Output::Stderr(bytes))) => (&mut *stderr, bytes),
            Ok(Some(Output::Exit(status))) => return End::Exit(status.code),
            Ok(None) => return End::Exit(0),
            Err(problem) => return End::Failed(problem),
        };
        if let Some(sink) = sink
            && !sink.send(bytes).await
        {
            return End::ClientGone;
        }
    }
}

async fn inward(
    input: &mut dyn Input,
    stdin: &mut Option<Inbox>,
    resize: &mut Option<Inbox>,
    close: bool,
) -> std::convert::Infallible {
    let mut sizes = Sizes::default();
    // A process that has closed its input, or ended, is told nothing more; its output tells the rest.
    loop {
        tokio::select! {
            typed = next(stdin) => if let Some(bytes) = typed {
                if input.write(bytes).await.is_err() {
                    *stdin = None;
                }
            } else {
                *stdin = None;
                if close {
                    let _ = input.close().await;
                }
            },
            text = next(resize) => match text {
                Some(text) => for (rows, columns) in sizes.feed(&text) {
                    let _ = input.resize(rows, columns).await;
                },
                None => *resize = None,
            },
        }
    }
}

/// The next piece; for ever where there is no such channel (any more).
async fn next(inbox: &mut Option<Inbox>) -> Option<Bytes> {
    match inbox {
        Some(inbox) => inbox.next().await,
        None => std::future::pending().await,
    }
}

/// Carries for a process that was started, or not, until it ends or `gone` says that the client has left.
pub async fn serve(
    channels: &mut Channels,
    started: Result<Process, String>,
    close: bool,
    gone: impl Future<Output = ()>,
) -> End {
    let Process { mut input, mut output, hang_up } = match started {
        Ok(process) => process,
        Err(problem) => return End::Failed(problem),
    };
    let end = tokio::select! {
        end = carry(channels, input.as_mut(), output.as_mut(), close) => end,
        () = gone => End::ClientGone,
    };
    if let (End::ClientGone, Some(hang_up)) = (&end, hang_up) {
        hang_up.await;
    }
    end
}

/// Cuts a stream of `{"Width":80,"Height":24}` into sizes.
#[derive(Default)]
struct Sizes(Vec<u8>);

#[derive(serde::Deserialize)]
struct Size {
    #[serde(rename = "Width", alias = "width")]
    width: u16,
    #[serde(rename = "Height", alias = "height")]
    height: u16,
}

impl Sizes {
    /// Sizes that are whole now, `(rows, columns)`. What makes no sense is passed over.
    fn feed(&mut self, text: &[u8]) -> Vec<(u16, u16)> {
        self.0.extend_from_slice(text);
        let mut values = serde_json::Deserializer::from_slice(&self.0).into_iter::<Size>();
        let mut sizes = Vec::new();
        let mut broken = false;
        for value in values.by_ref() {
            match value {
                Ok(Size { width, height }) => sizes.push((height, width)),
                Err(error) => {
                    broken = !error.is_eof();
                    break;
                }
            }
        }
        let used = values.byte_offset().min(self.0.len());
        if broken || self.0.len() - used > MAX_SIZE_TEXT {
            self.0.clear();
        } else {
            self.0.drain(..used);
        }
        sizes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_cut_out_however_they_arrive() {
        let text = b"{\"Width\":80,\"Height\":24}\n{\"Width\":100,\"Height\":50}\n";
        for step in 1..text.len() {
            let mut sizes = Sizes::default();
            let got: Vec<_> = text.chunks(step).flat_map(|piece| sizes.feed(piece)).collect();
            assert_eq!(got, [(24, 80), (50, 100)], "in pieces of {step}");
        }
    }

    #[test]
    fn nonsense_is_no_size() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.feed(b"{\"Width\":-1,\"Height\":24}"), []);
        assert_eq!(sizes.feed(b"what?"), []);
        assert_eq!(sizes.feed(b"{\"Width\":80,\"Height\":24}"), [(24, 80)]);
        for _ in 0..10 {
            assert_eq!(sizes.feed(&[b' '; 1024]), []);
            assert_eq!(sizes.feed(&[b'['; 1024]), []);
        }
        assert!(sizes.0.len() <= MAX_SIZE_TEXT + 1024);
    }
}
