//! An MQTT client that sends any bytes at all, and reads packets as they are.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// Longer than anything a test waits for.
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection.
pub struct Raw(TcpStream);

impl Raw {
    /// Connected, and nothing said.
    pub fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    /// Let in, as a client of MQTT 3.1.1 (`level` 4) or 5.
    pub fn connect(port: u16, level: u8, client: &str, flags: u8, keep_alive: u8, properties: &[u8]) -> Result<Self> {
        let mut it = Self::open(port)?;
        it.send(&connect(level, client, flags, keep_alive, properties))?;
        let (first, body) = it.packet()?.context("closed instead of a CONNACK")?;
        ensure!(first == 0x20 && body.get(1) == Some(&0), "CONNACK: {first:02x} {body:02x?}");
        Ok(it)
    }

    /// Sends bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// The next packet: its first byte and what follows the fixed header; `None` at the end of the connection.
    pub fn packet(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        let mut first = [0];
        match self.0.read(&mut first) {
            Ok(0) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            read => drop(read?),
        }
        let (mut len, mut shift) = (0, 0);
        loop {
            let mut byte = [0];
            self.0.read_exact(&mut byte)?;
            len |= usize::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                break;
            }
            shift += 7;
        }
        let mut body = vec![0; len];
        self.0.read_exact(&mut body)?;
        Ok(Some((first[0], body)))
    }

    /// The next packet, which has to begin with `first`.
    pub fn expect(&mut self, first: u8) -> Result<Vec<u8>> {
        let (got, body) = self.packet()?.with_context(|| format!("closed instead of {first:02x}"))?;
        ensure!(got == first, "packet {got:02x} {body:02x?} instead of {first:02x}");
        Ok(body)
    }

    /// Publishes readings at QoS 1 and waits until all are acknowledged.
    pub fn put<'a>(&mut self, readings: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> Result<()> {
        let mut open = 0;
        for (n, (topic, payload)) in (1u16..60_000).cycle().zip(readings) {
            self.send(&frame(0x32, &[string(topic), n.to_be_bytes().to_vec(), payload].concat()))?;
            open += 1;
            if open == 500 {
                self.expect(0x40)?;
                open -= 1;
            }
        }
        (0..open).try_for_each(|_| self.expect(0x40).map(drop))
    }

    /// All packets until the server has answered a ping twice. What the server had to send when the first one came is
    /// among them: it writes before it reads again.
    pub fn until_quiet(&mut self) -> Result<Vec<(u8, Vec<u8>)>> {
        let mut packets = Vec::new();
        for _ in 0..2 {
            self.send(&[0xc0, 0])?;
            loop {
                match self.packet()?.context("closed while being pinged")? {
                    (0xd0, _) => break,
                    packet => packets.push(packet),
                }
            }
        }
        Ok(packets)
    }

    /// Says no more, and closes without a DISCONNECT.
    pub fn cut(self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Both)
    }
}

/// A CONNECT; `properties` without their length, and only for level 5.
pub fn connect(level: u8, client: &str, flags: u8, keep_alive: u8, properties: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', level, flags, 0, keep_alive];
    if level == 5 {
        body.push(u8::try_from(properties.len()).unwrap_or(0));
        body.extend_from_slice(properties);
    }
    body.extend_from_slice(&string(client));
    frame(0x10, &body)
}

/// A packet.
pub fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut len = body.len();
    loop {
        let byte = u8::try_from(len % 128).unwrap_or(0);
        len /= 128;
        bytes.push(if len > 0 { byte | 0x80 } else { byte });
        if len == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

/// A string with its length.
pub fn string(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap_or(0).to_be_bytes(), text.as_bytes()].concat()
}
