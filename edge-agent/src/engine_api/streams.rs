//! Byte streams between a client and a process: attach, exec, logs.

use std::io;

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, Request, StatusCode, header},
    response::{IntoResponse, Response},
};
use container_engine::{
    container::Attaching,
    logs::{Reader, Stream, rfc3339},
    shim::{Output, Session, SessionInput, SessionOutput},
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
};

use super::ApiError;
use crate::control::frames::{self, Decoder, Kind, Last};

/// Read at once from a client.
const CHUNK: usize = 64 << 10;

/// Takes the upgrade out of a request.
pub fn upgrade<B>(request: &mut Request<B>) -> Result<OnUpgrade, ApiError> {
    let wants = |headers: &HeaderMap| headers.get(header::UPGRADE).is_some_and(|value| value == "frames");
    if !wants(request.headers()) {
        return Err(ApiError::invalid("this request needs `Connection: upgrade` and `Upgrade: frames`"));
    }
    Ok(hyper::upgrade::on(request))
}

/// The answer that begins a stream.
pub fn switching() -> Response {
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, "frames")];
    (StatusCode::SWITCHING_PROTOCOLS, headers, Body::empty()).into_response()
}

/// What a client has sent before there was a process to hand it to.
#[derive(Default)]
struct Early {
    decoder: Decoder,
}

/// Carries a container's stdio, from its start on where it does not run yet.
pub async fn attached(upgrade: OnUpgrade, attaching: Attaching) {
    let Ok(stream) = upgrade.await else { return };
    let (mut read, mut write) = tokio::io::split(TokioIo::new(stream));
    let mut early = Early::default();
    let mut chunk = vec![0; CHUNK];
    let session = attaching.session();
    tokio::pin!(session);
    let session = loop {
        tokio::select! {
            session = &mut session => break session,
            // A client that types ahead is held back by its socket once a frame is whole.
            got = read.read(&mut chunk) => match got {
                Ok(n) if n > 0 => early.decoder.feed(&chunk[..n]),
                _ => return,
            },
        }
    };
    match session {
        Ok(session) => carry(read, write, session, early).await,
        Err(error) => {
            let text = board::tasks::chain(&error);
            // A client that has gone needs no reason.
            let _ = write.write_all(&frames::last(&Last::Error(text))).await;
        }
    }
}

/// Carries a further process's stdio.
pub async fn executed(upgrade: OnUpgrade, session: Session) {
    let Ok(stream) = upgrade.await else { return };
    let (read, write) = tokio::io::split(TokioIo::new(stream));
    carry(read, write, session, Early::default()).await;
}

type Read = ReadHalf<TokioIo<Upgraded>>;
type Write = WriteHalf<TokioIo<Upgraded>>;

/// Both ways at once, so that a process that does not read its input still tells its output; until it ends, or the client
/// goes away, which leaves the process as it is.
async fn carry(read: Read, write: Write, session: Session, early: Early) {
    let (input, output) = session.split();
    tokio::select! {
        () = inward(read, input, early) => {}
        () = outward(output, write) => {}
    }
}

/// Returns when the client is gone.
async fn inward(mut read: Read, mut input: SessionInput, early: Early) {
    let mut decoder = early.decoder;
    let mut chunk = vec![0; CHUNK];
    let mut is_open = true;
    loop {
        while let Ok(Some((kind, payload))) = decoder.next() {
            let done = match kind {
                Kind::Stdin if is_open => write_all(&mut input, &payload).await,
                Kind::CloseStdin if is_open => input.shutdown().await,
                Kind::Resize => match frames::size_of(&payload) {
                    Some((rows, columns)) => input.resize(rows, columns).await,
                    None => Ok(()),
                },
                _ => Ok(()),
            };
            // The process has closed its input, or ended: its output tells the rest.
            is_open &= done.is_ok();
        }
        match read.read(&mut chunk).await {
            Ok(n) if n > 0 => decoder.feed(&chunk[..n]),
            _ => return,
        }
    }
}

async fn write_all(input: &mut SessionInput, bytes: &[u8]) -> io::Result<()> {
    input.write_all(bytes).await?;
    input.flush().await
}

async fn outward(mut output: SessionOutput, mut write: Write) {
    loop {
        let (frame, is_last) = match output.next().await {
            Ok(Some(Output::Stdout(bytes))) => (frames::encode(Kind::Stdout, &bytes), false),
            Ok(Some(Output::Stderr(bytes))) => (frames::encode(Kind::Stderr, &bytes), false),
            Ok(Some(Output::Exit(status))) => (frames::last(&Last::Exit(status.code)), true),
            Ok(None) => return,
            Err(error) => (frames::last(&Last::Error(board::tasks::chain(&error))), true),
        };
        if write.write_all(&frame).await.is_err() || is_last {
            // An end that arrives is all that is wanted of it.
            let _ = write.shutdown().await;
            return;
        }
    }
}

/// A log as frames, each entry with its line break.
pub async fn log(mut reader: Reader, timestamps: bool, to: mpsc::Sender<Result<Bytes, io::Error>>) {
    // Whether the next entry of a stream begins a line.
    let mut begins = [true; 2];
    loop {
        let entries = tokio::select! {
            next = reader.next() => match next {
                Ok(Some(entry)) => entry,
                Ok(None) => return,
                Err(error) => {
                    let last = frames::last(&Last::Error(board::tasks::chain(&error)));
                    // A client that has gone needs no reason.
                    let _ = to.send(Ok(last)).await;
                    return;
                }
            },
            () = to.closed() => return,
        };
        let (kind, at) = match entries.stream {
            Stream::Stdout => (Kind::Stdout, 0),
            Stream::Stderr => (Kind::Stderr, 1),
        };
        let mut text = Vec::with_capacity(entries.text.len() + 40);
        if timestamps && begins[at] {
            text.extend_from_slice(rfc3339(entries.time_ns).as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(&entries.text);
        if !entries.partial {
            text.push(b'\n');
        }
        begins[at] = !entries.partial;
        if to.send(Ok(frames::encode(kind, &text))).await.is_err() {
            return;
        }
    }
}

/// Frames as a body.
pub fn frames_body(body: mpsc::Receiver<Result<Bytes, io::Error>>) -> Response {
    let stream = futures_util::stream::unfold(body, |mut body| async { Some((body.recv().await?, body)) });
    ([(header::CONTENT_TYPE, "application/x-frames")], Body::from_stream(stream)).into_response()
}
