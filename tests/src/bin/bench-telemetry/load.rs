//! The load: connections that keep a window of QoS 1 publishes open, and time each acknowledgement.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// Bytes of a payload.
pub const PAYLOAD: usize = 120;

/// What came of it.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Acknowledged a second, over all connections.
    pub rate: f64,
    /// 99th percentile of the time to an acknowledgement.
    pub p99: Duration,
    /// Median of it.
    pub p50: Duration,
}

/// Publishes `readings` over `connections`, each with up to `window` open.
pub fn publish(port: u16, connections: u64, window: usize, readings: u64) -> Result<Outcome> {
    let begun = Instant::now();
    let threads: Vec<_> = (0..connections)
        .map(|n| std::thread::spawn(move || connection(port, n, window, readings / connections)))
        .collect();
    let mut times = Vec::new();
    for thread in threads {
        times.extend(thread.join().map_err(|_| anyhow::anyhow!("a publisher panicked"))??);
    }
    let elapsed = begun.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    #[allow(clippy::cast_precision_loss)] // Far below 2^53.
    Ok(Outcome { rate: times.len() as f64 / elapsed, p99: at(99), p50: at(50) })
}

/// A payload as sensors send them: a number that changes, a time, some constant words.
pub fn payload(connection: u64, number: u64) -> Vec<u8> {
    let mut text = format!(
        "{{\"id\":\"c{connection}-{number}\",\"temperature\":{}.{:02},\"humidity\":{},\"battery\":3.{:03},\"time\":{}",
        18 + (number / 997) % 9,
        number * 7 % 100,
        35 + (number / 131) % 30,
        number * 13 % 1000,
        1_790_000_000_000 + number * 10
    );
    while text.len() < PAYLOAD - 1 {
        text.push(' ');
    }
    text.truncate(PAYLOAD - 1);
    text.push('}');
    text.into_bytes()
}

/// Connects and logs in.
pub fn connect(port: u16, id: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut connect = vec![0x10, u8::try_from(12 + id.len())?, 0, 4];
    connect.extend_from_slice(b"MQTT\x04\x02\x00\x00\x00");
    connect.push(u8::try_from(id.len())?);
    connect.extend_from_slice(id.as_bytes());
    stream.write_all(&connect)?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    ensure!(answer == [0x20, 2, 0, 0], "CONNACK {answer:?}");
    Ok(stream)
}

/// A PUBLISH at QoS 1.
pub fn packet(out: &mut Vec<u8>, topic: &str, id: u16, payload: &[u8]) {
    let length = 4 + topic.len() + payload.len();
    out.push(0x32);
    // Two bytes of length: 128 to 16383.
    out.push(u8::try_from(length % 128).unwrap_or(0) | 0x80);
    out.push(u8::try_from(length / 128).unwrap_or(0));
    out.extend_from_slice(&u16::try_from(topic.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(topic.as_bytes());
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(payload);
}

fn connection(port: u16, n: u64, window: usize, readings: u64) -> Result<Vec<Duration>> {
    let mut stream = connect(port, &format!("load{n}"))?;
    let topic = format!("load/sensor{n}/data");
    let mut sent_at = vec![Instant::now(); 60_001];
    let mut times = Vec::with_capacity(usize::try_from(readings)?);
    let (mut sent, mut open) = (0u64, 0usize);
    let (mut out, mut rest, mut buffer) = (Vec::new(), Vec::new(), vec![0; 16 << 10]);
    while (times.len() as u64) < readings {
        out.clear();
        let now = Instant::now();
        while open < window && sent < readings {
            let id = u16::try_from(sent % 60_000)? + 1;
            packet(&mut out, &topic, id, &payload(n, sent));
            sent_at[usize::from(id)] = now;
            sent += 1;
            open += 1;
        }
        stream.write_all(&out)?;
        let read = stream.read(&mut buffer).context("no acknowledgement in a minute")?;
        ensure!(read > 0, "the broker closed the connection after {} acknowledgements", times.len());
        rest.extend_from_slice(&buffer[..read]);
        let now = Instant::now();
        let whole = rest.len() / 4 * 4;
        for ack in rest[..whole].chunks_exact(4) {
            ensure!(ack[0] == 0x40 && ack[1] == 2, "not a PUBACK: {ack:?}");
            times.push(now - sent_at[usize::from(u16::from_be_bytes([ack[2], ack[3]]))]);
            open -= 1;
        }
        rest.drain(..whole);
    }
    Ok(times)
}
