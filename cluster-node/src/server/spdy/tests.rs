//! Frames against those of another implementation, and a connection against a client that does as it likes.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    task::JoinSet,
    time::timeout,
};

use super::{
    Connection, Ended, Headers, Limits, ResetStatus, Stream,
    frame::{Decoder, Encoder, Frame, FrameError, MAX_CONTROL},
};

/// Written by Go's github.com/moby/spdystream v0.5.1, one frame after the other, with one compressor.
const BY_GO: [&str; 10] = [
    "80030001000000290000000100000000000078f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff",
    "800300010000002f0000000300000000000002a5470c295029930829b08bc079c3c2c0c280818181b30812c199a084cf6800000000ffff",
    "800300020000000e000000016260606000000000ffff",
    "800300080100001300000003821acd58012e6a199200000000ffff",
    "000000010100000568656c6c6f",
    "800300060000000400000007",
    "80030003000000080000000300000005",
    "80030007000000080000000300000000",
    "80030009000000080000000300010000",
    "800300040000000c0000000100000007000003e8",
];

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

fn samples() -> Vec<Frame> {
    vec![
        Frame::SynStream {
            stream: 1,
            headers: Headers::of(&[("streamtype", "error")]),
            fin: false,
            unidirectional: false,
        },
        Frame::SynStream {
            stream: 3,
            headers: Headers::of(&[("streamtype", "data"), ("port", "8080"), ("requestid", "0")]),
            fin: false,
            unidirectional: false,
        },
        Frame::SynReply { stream: 1, headers: Headers::default(), fin: false },
        Frame::Headers { stream: 3, headers: Headers::of(&[("x", "a\0b")]), fin: true },
        Frame::Data { stream: 1, bytes: Bytes::from_static(b"hello"), fin: true },
        Frame::Ping(7),
        Frame::Reset { stream: 3, status: ResetStatus::CANCEL },
        Frame::GoAway { last: 3, status: 0 },
        Frame::WindowUpdate { stream: 3, delta: 65_536 },
        Frame::Settings(vec![(7, 1000)]),
    ]
}

/// Order of headers in a map of Go's is random.
fn same(one: &Frame, other: &Frame) -> bool {
    let names = ["streamtype", "port", "requestid", "x"];
    match (one, other) {
        (
            Frame::SynStream { stream: a, headers: ah, fin: af, unidirectional: au },
            Frame::SynStream { stream: b, headers: bh, fin: bf, unidirectional: bu },
        ) => (a, af, au) == (b, bf, bu) && names.iter().all(|name| ah.get(name) == bh.get(name)),
        _ => one == other,
    }
}

fn decode_all(decoder: &mut Decoder, bytes: &[u8], step: usize) -> Result<Vec<Frame>, FrameError> {
    let mut frames = Vec::new();
    for piece in bytes.chunks(step.max(1)) {
        decoder.buffer().extend_from_slice(piece);
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

#[test]
fn frames_of_another_implementation_are_read() {
    let bytes: Vec<u8> = BY_GO.iter().flat_map(|frame| unhex(frame)).collect();
    let frames = decode_all(&mut Decoder::default(), &bytes, usize::MAX).unwrap();
    assert_eq!(frames.len(), samples().len());
    for (got, want) in frames.iter().zip(samples()) {
        assert!(same(got, &want), "{got:?} is not {want:?}");
    }
}

#[test]
fn what_is_written_is_read() {
    let mut encoder = Encoder::default();
    let mut bytes = Vec::new();
    for frame in samples() {
        encoder.encode(&frame, &mut bytes);
    }
    assert_eq!(decode_all(&mut Decoder::default(), &bytes, usize::MAX).unwrap(), samples());
    // Frames without header blocks are the same bytes as the other implementation's.
    let mut bytes = Vec::new();
    for frame in &samples()[4..] {
        Encoder::default().encode(frame, &mut bytes);
    }
    assert_eq!(bytes, BY_GO[4..].iter().flat_map(|frame| unhex(frame)).collect::<Vec<u8>>());
}

/// Go's decoder hands out a block only when an empty one follows: without it, clients wait for ever for our reply.
#[test]
fn blocks_end_with_an_empty_one() {
    let reply = |stream| Frame::SynReply { stream, headers: Headers::default(), fin: false };
    let (mut encoder, mut bytes) = (Encoder::default(), Vec::new());
    encoder.encode(&reply(1), &mut bytes);
    assert_eq!(bytes, unhex("8003000200000018000000017820e3c6a7c2000400fbff00000000000000ffff"));
    bytes.clear();
    encoder.encode(&reply(3), &mut bytes);
    assert_eq!(bytes, unhex("800300020000001200000003000400fbff00000000000000ffff"));
}

#[test]
fn what_is_no_frame_is_refused() {
    #[track_caller]
    fn check(bytes: &str, want: Result<usize, FrameError>) {
        let got = decode_all(&mut Decoder::default(), &unhex(bytes), usize::MAX);
        assert_eq!(got.map(|frames| frames.len()), want, "{bytes}");
    }
    check("800300060000000400", Ok(0)); // Not all there.
    check("800200060000000400000007", Err(FrameError::Version(2)));
    check("8003000600ffffff", Err(FrameError::TooLong(0x00ff_ffff)));
    check("800300060000000200000007", Err(FrameError::Malformed(6)));
    check("8003000300000008000000000000000500", Err(FrameError::Malformed(3)));
    check("8003000400000008ffffffff00000000", Err(FrameError::Malformed(4)));
    check("800300630000000400000007", Ok(0)); // An unknown kind.
    check("80030001000000050000000100", Err(FrameError::Malformed(1)));
    check("800300010000000e000000010000000000001122334400", Err(FrameError::Headers));
    check("80030002000000060000000178f9", Err(FrameError::Headers));
}

#[test]
fn a_header_bomb_is_refused() {
    use std::io::Write;
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    zlib.write_all(&vec![0; 40 << 20]).unwrap();
    let bomb = zlib.finish().unwrap();
    assert!(bomb.len() < MAX_CONTROL, "{}", bomb.len());
    let mut bytes = vec![0x80, 3, 0, 2, 0];
    bytes.extend_from_slice(&u32::try_from(4 + bomb.len()).unwrap().to_be_bytes()[1..]);
    bytes.extend_from_slice(&[0, 0, 0, 1]);
    bytes.extend_from_slice(&bomb);
    assert_eq!(decode_all(&mut Decoder::default(), &bytes, usize::MAX), Err(FrameError::HeadersTooLarge));
}

proptest! {
    #[test]
    fn no_bytes_are_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..2000), step in 1_usize..64) {
        let _ = decode_all(&mut Decoder::default(), &bytes, step);
    }

    #[test]
    fn damaged_frames_are_no_worse(at in 0_usize..360, to: u8, step in 1_usize..64) {
        let mut bytes: Vec<u8> = BY_GO.iter().flat_map(|frame| unhex(frame)).collect();
        let at = at % bytes.len();
        bytes[at] = to;
        let _ = decode_all(&mut Decoder::default(), &bytes, step);
    }

    #[test]
    fn frames_survive_any_chunking(step in 1_usize..40, size in 0_usize..400) {
        let mut bytes: Vec<u8> = BY_GO[..4].iter().flat_map(|frame| unhex(frame)).collect();
        let data = Frame::Data { stream: 1, bytes: vec![b'x'; size].into(), fin: true };
        Encoder::default().encode(&data, &mut bytes);
        let frames = decode_all(&mut Decoder::default(), &bytes, step).unwrap();
        prop_assert!(frames.iter().zip(samples()).take(4).all(|(got, want)| same(got, &want)));
        let got: usize = frames[4..].iter().map(|frame| match frame {
            Frame::Data { bytes, .. } => bytes.len(),
            other => panic!("{other:?}"),
        }).sum();
        prop_assert_eq!(got, size);
        let ends = frames.iter().filter(|frame| matches!(frame, Frame::Data { fin: true, .. })).count();
        prop_assert_eq!(ends, 1);
    }
}

/// The other side of a connection, frame by frame.
pub(in crate::server) struct Client<I> {
    io: I,
    decoder: Decoder,
    encoder: Encoder,
}

impl<I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Client<I> {
    pub fn new(io: I) -> Self {
        Self { io, decoder: Decoder::default(), encoder: Encoder::default() }
    }

    pub async fn send(&mut self, frame: Frame) {
        let mut bytes = Vec::new();
        self.encoder.encode(&frame, &mut bytes);
        self.io.write_all(&bytes).await.unwrap();
        self.io.flush().await.unwrap();
    }

    /// The next frame, whole; `None` at the end.
    pub async fn next(&mut self) -> Option<Frame> {
        let mut whole = Vec::new();
        loop {
            match self.decoder.next_frame().unwrap() {
                Some(Frame::Data { bytes, .. }) if self.decoder.is_within_data() => {
                    whole.extend_from_slice(&bytes);
                    continue;
                }
                Some(Frame::Data { stream, bytes, fin }) => {
                    whole.extend_from_slice(&bytes);
                    return Some(Frame::Data { stream, bytes: whole.into(), fin });
                }
                Some(frame) => return Some(frame),
                None => {}
            }
            let read = timeout(Duration::from_secs(20), self.io.read_buf(self.decoder.buffer())).await;
            if read.expect("nothing came for 20 s").unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    /// Opens a stream and waits for the reply.
    pub async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
        self.send(Frame::SynStream { stream, headers: Headers::of(headers), fin: false, unidirectional: false }).await;
        let reply = self.next().await;
        assert!(matches!(&reply, Some(Frame::SynReply { stream: it, .. }) if *it == stream), "{reply:?}");
    }

    pub async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        self.send(Frame::Data { stream, bytes: Bytes::copy_from_slice(bytes), fin }).await;
    }
}

const LIMITS: Limits = Limits { streams: 4, inbox: 1024, idle: Duration::from_secs(3600) };

fn pair(limits: Limits) -> (Client<DuplexStream>, Connection, JoinSet<Ended>) {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let (connection, driver) = Connection::new(ours, limits);
    let mut tasks = JoinSet::new();
    tasks.spawn(driver.run());
    (Client::new(theirs), connection, tasks)
}

async fn accepted(client: &mut Client<DuplexStream>, connection: &mut Connection, id: u32) -> Stream {
    client.send(Frame::SynStream { stream: id, headers: Headers::default(), fin: false, unidirectional: false }).await;
    let stream = connection.incoming().await.unwrap();
    stream.accept().await.unwrap();
    assert_eq!(client.next().await, Some(Frame::SynReply { stream: id, headers: Headers::default(), fin: false }));
    stream
}

#[tokio::test]
async fn a_stream_carries_both_ways_and_ends_each_way_by_itself() {
    let (mut client, mut connection, mut driver) = pair(LIMITS);
    let mut stream = accepted(&mut client, &mut connection, 1).await;
    client.data(1, b"to ", false).await;
    client.data(1, b"you", true).await;
    assert_eq!(stream.reader.next().await.unwrap(), "to ");
    assert_eq!(stream.reader.next().await.unwrap(), "you");
    assert_eq!(stream.reader.next().await, None);
    stream.writer.send(Bytes::from_static(b"and back")).await.unwrap();
    stream.writer.finish().await;
    connection.close().await;
    assert_eq!(client.next().await, Some(Frame::Data { stream: 1, bytes: "and back".into(), fin: false }));
    assert_eq!(client.next().await, Some(Frame::Data { stream: 1, bytes: Bytes::new(), fin: true }));
    assert_eq!(client.next().await, Some(Frame::GoAway { last: 1, status: 0 }));
    assert_eq!(client.next().await, None);
    drop(client);
    assert!(matches!(driver.join_next().await.unwrap().unwrap(), Ended::Closed));
}

#[tokio::test]
async fn pings_come_back_and_streams_have_rules() {
    let (mut client, mut connection, _driver) = pair(LIMITS);
    client.send(Frame::Ping(3)).await;
    assert_eq!(client.next().await, Some(Frame::Ping(3)));
    let refused = |stream, status| Some(Frame::Reset { stream, status });
    let syn = |stream| Frame::SynStream { stream, headers: Headers::default(), fin: false, unidirectional: false };
    client.send(syn(2)).await;
    assert_eq!(client.next().await, refused(2, ResetStatus::PROTOCOL_ERROR), "an even id is ours");
    let mut streams = Vec::new();
    for id in [5, 7, 9, 11] {
        streams.push(accepted(&mut client, &mut connection, id).await);
    }
    client.send(syn(3)).await;
    assert_eq!(client.next().await, refused(3, ResetStatus::PROTOCOL_ERROR), "ids grow");
    client.send(syn(13)).await;
    assert_eq!(client.next().await, refused(13, ResetStatus::REFUSED), "four are the most here");
    streams.remove(0).refuse(ResetStatus::CANCEL).await;
    assert_eq!(client.next().await, refused(5, ResetStatus::CANCEL));
    drop(accepted(&mut client, &mut connection, 15).await);
    assert_eq!(client.next().await, refused(15, ResetStatus::CANCEL), "dropped unfinished");
    connection.no_more();
    client.send(syn(17)).await;
    assert_eq!(client.next().await, refused(17, ResetStatus::CANCEL), "nobody takes it");
}

#[tokio::test]
async fn a_peer_that_never_ends_its_way_holds_no_place() {
    let (mut client, mut connection, _driver) = pair(LIMITS);
    for id in [1, 3, 5, 7, 9, 11] {
        let mut stream = accepted(&mut client, &mut connection, id).await;
        stream.writer.finish().await;
        assert_eq!(client.next().await, Some(Frame::Data { stream: id, bytes: Bytes::new(), fin: true }));
    }
}

#[tokio::test]
async fn a_reset_ends_a_stream_and_nothing_else() {
    let (mut client, mut connection, _driver) = pair(LIMITS);
    let mut one = accepted(&mut client, &mut connection, 1).await;
    let mut other = accepted(&mut client, &mut connection, 3).await;
    client.send(Frame::Reset { stream: 1, status: ResetStatus::CANCEL }).await;
    client.data(3, b"still", false).await;
    assert_eq!(other.reader.next().await.unwrap(), "still");
    assert_eq!(one.reader.next().await, None);
    assert!(one.writer.send(Bytes::from_static(b"x")).await.is_err());
    assert!(other.writer.send(Bytes::from_static(b"x")).await.is_ok());
}

#[tokio::test]
async fn a_peer_that_counts_windows_is_never_sent_more() {
    let (mut client, mut connection, mut tasks) = pair(LIMITS);
    client.send(Frame::Settings(vec![(7, 10)])).await;
    let stream = accepted(&mut client, &mut connection, 1).await;
    let mut writer = stream.writer;
    tasks.spawn(async move {
        writer.send(Bytes::from(vec![b'x'; 25])).await.unwrap();
        writer.finish().await;
        Ended::Closed
    });
    let mut got = 0;
    for (grant, total) in [(0, 10), (4, 14), (20, 25)] {
        if grant > 0 {
            let none = timeout(Duration::from_millis(50), client.next()).await;
            assert!(none.is_err(), "the window is closed, and {none:?} came");
            client.send(Frame::WindowUpdate { stream: 1, delta: grant }).await;
        }
        while got < total {
            match client.next().await {
                Some(Frame::Data { bytes, .. }) => got += bytes.len(),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got, total);
    }
    assert_eq!(client.next().await, Some(Frame::Data { stream: 1, bytes: Bytes::new(), fin: true }));
}

#[tokio::test]
async fn who_does_not_count_is_held_back_by_the_socket_and_what_is_taken_is_told() {
    let (mut client, mut connection, _driver) = pair(LIMITS);
    let mut stream = accepted(&mut client, &mut connection, 1).await;
    let piece = vec![b'x'; 32 << 10];
    let mut sent = 0;
    while timeout(Duration::from_millis(100), client.data(1, &piece, false)).await.is_ok() {
        sent += piece.len();
        assert!(sent < 1 << 20, "nothing holds the client back");
    }
    // The last frame was cut in the middle: this client says no more. All whole ones are there.
    let mut got = 0;
    while let Ok(Some(bytes)) = timeout(Duration::from_millis(200), stream.reader.next()).await {
        got += bytes.len();
    }
    assert!(got >= sent, "{got} of {sent}");
    let grant = client.next().await;
    assert!(matches!(grant, Some(Frame::WindowUpdate { .. })), "{grant:?}");
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_connection() {
    let limits = Limits { idle: Duration::from_secs(10), ..LIMITS };
    let (client, mut connection, mut driver) = pair(limits);
    let begun = tokio::time::Instant::now();
    assert!(matches!(driver.join_next().await.unwrap().unwrap(), Ended::Idle));
    assert_eq!(begun.elapsed().as_secs(), 10);
    assert!(connection.incoming().await.is_none());
    drop(client);
}

#[tokio::test]
async fn nonsense_ends_a_connection_and_its_streams() {
    let (mut client, mut connection, mut driver) = pair(LIMITS);
    let mut stream = accepted(&mut client, &mut connection, 1).await;
    client.io.write_all(b"\xff\xff\xff\xff\xff\xff\xff\xff").await.unwrap();
    assert!(matches!(driver.join_next().await.unwrap().unwrap(), Ended::Protocol(_)));
    assert_eq!(stream.reader.next().await, None);
}

/// Frames that a client may send, in whatever order.
fn any_frame() -> impl Strategy<Value = Frame> {
    let id = 0_u32..8;
    let headers = Headers::of(&[("streamtype", "data")]);
    prop_oneof![
        (id.clone(), any::<bool>(), any::<bool>()).prop_map(move |(stream, fin, unidirectional)| Frame::SynStream {
            stream,
            headers: headers.clone(),
            fin,
            unidirectional
        }),
        (id.clone(), any::<bool>()).prop_map(|(stream, fin)| Frame::SynReply {
            stream,
            headers: Headers::default(),
            fin
        }),
        (id.clone(), any::<bool>()).prop_map(|(stream, fin)| Frame::Headers {
            stream,
            headers: Headers::default(),
            fin
        }),
        (id.clone(), any::<u32>()).prop_map(|(stream, status)| Frame::Reset { stream, status: ResetStatus(status) }),
        prop::collection::vec((0_u32..9, any::<u32>()), 0..3).prop_map(Frame::Settings),
        any::<u32>().prop_map(Frame::Ping),
        (any::<u32>(), any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
        (id.clone(), any::<u32>()).prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
        (id, 0_usize..3000, any::<bool>()).prop_map(|(stream, size, fin)| Frame::Data {
            stream,
            bytes: vec![b'x'; size].into(),
            fin
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Whatever comes in whatever order: nothing panics, nothing hangs, and all streams end with the connection.
    #[test]
    fn no_client_is_too_odd(frames in prop::collection::vec(any_frame(), 0..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let whole = async {
            let (ours, theirs) = tokio::io::duplex(1 << 20);
            let (mut connection, driver) = Connection::new(ours, LIMITS);
            let serve = async {
                let mut streams = JoinSet::new();
                while let Some(mut stream) = connection.incoming().await {
                    streams.spawn(async move {
                        let _ = stream.accept().await;
                        while let Some(bytes) = stream.reader.next().await {
                            if stream.writer.send(bytes).await.is_err() {
                                return;
                            }
                        }
                        stream.writer.finish().await;
                    });
                }
                while streams.join_next().await.is_some() {}
            };
            let send = async {
                let (mut encoder, mut bytes) = (Encoder::default(), Vec::new());
                for frame in &frames {
                    encoder.encode(frame, &mut bytes);
                }
                let (mut read, mut write) = tokio::io::split(theirs);
                let _ = write.write_all(&bytes).await;
                let _ = write.shutdown().await;
                let mut answer = Vec::new();
                let _ = read.read_to_end(&mut answer).await;
                answer
            };
            let (ended, (), answer) = tokio::join!(driver.run(), serve, send);
            // What was answered is whole frames.
            let answered = decode_all(&mut Decoder::default(), &answer, usize::MAX);
            (ended, answered)
        };
        let over = runtime.block_on(async { timeout(Duration::from_secs(20), whole).await });
        let (_, answered) = over.expect("it hangs");
        prop_assert!(answered.is_ok(), "{:?}", answered);
    }
}
