//! A TCP proxy that counts what passes towards the core.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Result;

/// Counts bytes in both directions.
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    bytes: Arc<AtomicU64>,
}

impl Proxy {
    /// Listens, and passes connections on to `to`; its threads end with the process.
    pub fn start(to: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = bytes.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Ok(core) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                for (from, into) in [(stream.try_clone(), core.try_clone()), (Ok(core), Ok(stream))] {
                    let (Ok(from), Ok(into)) = (from, into) else { continue };
                    let counted = counted.clone();
                    std::thread::spawn(move || pass(from, into, &counted));
                }
            }
        });
        Ok(Self { port, bytes })
    }

    /// So far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

fn pass(mut from: TcpStream, mut into: TcpStream, counted: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        counted.fetch_add(read as u64, Ordering::Relaxed);
        if into.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = into.shutdown(Shutdown::Both); // It may be closed already.
}
