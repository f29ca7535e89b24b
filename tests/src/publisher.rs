//! A plain MQTT 3.1.1 publisher that knows exactly which of its readings were acknowledged.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// On its way at the same time.
const WINDOW: usize = 20;

/// A thread that publishes until it is stopped, through reconnections.
pub struct Publisher {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<String>>,
}

impl Publisher {
    /// Publishes `NAME-N` on `load/NAME`, each text once, to a port of this machine.
    pub fn start(name: &str, port: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (name, told) = (name.to_owned(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut publishing = Publishing { name, port, next: 0, acknowledged: Vec::new() };
            while !told.load(Ordering::Relaxed) {
                // A broken connection is what the tests are about; what was open then is given up.
                let _ = publishing.connection(&told);
                std::thread::sleep(Duration::from_millis(20));
            }
            publishing.acknowledged
        });
        Self { stop, thread }
    }

    /// Stops; returns the texts whose PUBACK came.
    pub fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

struct Publishing {
    name: String,
    port: u16,
    next: u64,
    acknowledged: Vec<String>,
}

impl Publishing {
    fn connection(&mut self, stop: &AtomicBool) -> std::io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.set_nodelay(true)?;
        let id = self.name.as_bytes();
        let mut connect = vec![0x10, u8::try_from(12 + id.len()).unwrap_or(0), 0, 4];
        connect.extend_from_slice(b"MQTT\x04\x02\x00\x00\x00");
        connect.push(u8::try_from(id.len()).unwrap_or(0));
        connect.extend_from_slice(id);
        stream.write_all(&connect)?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)?;
        let mut open: BTreeMap<u16, String> = BTreeMap::new();
        while !stop.load(Ordering::Relaxed) || !open.is_empty() {
            while open.len() < WINDOW && !stop.load(Ordering::Relaxed) {
                self.next += 1;
                let text = format!("{}-{}", self.name, self.next);
                let packet = u16::try_from(self.next % 60_000).unwrap_or(0) + 1;
                stream.write_all(&publish(&format!("load/{}", self.name), packet, text.as_bytes()))?;
                open.insert(packet, text);
                std::thread::sleep(Duration::from_millis(1));
            }
            stream.read_exact(&mut answer)?;
            if answer[0] == 0x40 {
                self.acknowledged.extend(open.remove(&u16::from_be_bytes([answer[2], answer[3]])));
            }
        }
        stream.shutdown(Shutdown::Both)
    }
}

/// A PUBLISH at QoS 1, under 128 bytes.
fn publish(topic: &str, packet: u16, payload: &[u8]) -> Vec<u8> {
    let len = 2 + topic.len() + 2 + payload.len();
    let mut bytes = vec![0x32, u8::try_from(len).unwrap_or(0)];
    bytes.extend_from_slice(&u16::try_from(topic.len()).unwrap_or(0).to_be_bytes());
    bytes.extend_from_slice(topic.as_bytes());
    bytes.extend_from_slice(&packet.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}
