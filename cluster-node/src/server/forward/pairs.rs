//! Each connection to a pod has two streams, one for data and one for errors, which arrive one after the other.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::server::{
    remote::STREAMS_WITHIN,
    spdy::{Headers, ResetStatus, Stream},
};

/// Pairs of which one stream is there.
const MAX_HALVES: usize = 64;

/// A connection that is wanted.
pub struct Pair {
    /// Port of the pod.
    pub port: u16,
    /// What goes to and comes from it.
    pub data: Stream,
    /// Why that fails.
    pub error: Stream,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

/// What a stream is for: its kind, its port, and which pair it belongs to. `None`: it makes no sense.
fn read(id: u32, headers: &Headers) -> Option<(Kind, u16, String)> {
    let kind = match headers.get("streamType")? {
        "data" => Kind::Data,
        "error" => Kind::Error,
        _ => return None,
    };
    let port: u16 = headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
    let request = match headers.get("requestID").filter(|request| !request.is_empty()) {
        Some(request) => request.to_owned(),
        // Old clients: the error stream comes first, the data stream right behind it.
        None if kind == Kind::Error => id.to_string(),
        None => id.saturating_sub(2).to_string(),
    };
    Some((kind, port, request))
}

struct Half {
    kind: Kind,
    port: u16,
    stream: Stream,
    until: Instant,
}

/// Streams that wait for the other of their pair.
#[derive(Default)]
pub struct Pairs(HashMap<String, Half>);

impl Pairs {
    /// Takes a stream; a pair, once it is whole.
    pub async fn add(&mut self, stream: Stream) -> Option<Pair> {
        let Some((kind, port, request)) = read(stream.id, &stream.headers) else {
            stream.refuse(ResetStatus::REFUSED).await;
            return None;
        };
        let is_known = self.0.get(&request).is_some_and(|half| half.kind == kind);
        if is_known || (self.0.len() >= MAX_HALVES && !self.0.contains_key(&request)) {
            stream.refuse(ResetStatus::REFUSED).await;
            return None;
        }
        stream.accept().await.ok()?;
        match self.0.remove(&request) {
            None => {
                self.0.insert(request, Half { kind, port, stream, until: Instant::now() + STREAMS_WITHIN });
                None
            }
            Some(other) => Some(match kind {
                Kind::Data => Pair { port, data: stream, error: other.stream },
                Kind::Error => Pair { port: other.port, data: other.stream, error: stream },
            }),
        }
    }

    /// Waits until a stream has waited too long, and drops it. For ever where none waits.
    pub async fn expire(&mut self) {
        let Some(first) = self.0.values().map(|half| half.until).min() else { return std::future::pending().await };
        tokio::time::sleep_until(first).await;
        let now = Instant::now();
        let over: Vec<String> =
            self.0.iter().filter(|(_, half)| half.until <= now).map(|(request, _)| request.clone()).collect();
        for request in over {
            if let Some(mut half) = self.0.remove(&request)
                && half.kind == Kind::Error
            {
                let text = format!("timed out waiting for streams of request {request}");
                // At once or not at all: nobody waits for a client that does not read.
                let _ = tokio::time::timeout(Duration::from_millis(100), half.stream.writer.send(text.into())).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_say_what_they_are_for() {
        #[track_caller]
        fn check(headers: &[(&str, &str)], want: Option<(Kind, u16, &str)>) {
            let got = read(7, &Headers::of(headers));
            assert_eq!(got, want.map(|(kind, port, request)| (kind, port, request.to_owned())), "{headers:?}");
        }
        check(&[("streamType", "data"), ("port", "80"), ("requestID", "3")], Some((Kind::Data, 80, "3")));
        check(&[("streamType", "error"), ("port", "80")], Some((Kind::Error, 80, "7")));
        check(&[("streamType", "data"), ("port", "80")], Some((Kind::Data, 80, "5")));
        check(&[("streamType", "data"), ("port", "0")], None);
        check(&[("streamType", "data"), ("port", "70000")], None);
        check(&[("streamType", "data")], None);
        check(&[("streamType", "stdin"), ("port", "80")], None);
        check(&[], None);
    }
}
