//! A server that answers as a test's script says, for what no real registry can be brought to do; it keeps what it was asked.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Result;

/// A request as it came.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// `GET`, …
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Its bytes.
    pub body: Vec<u8>,
}

impl Asked {
    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What is answered; a `content-length` is added unless there is one.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// 200, …
    pub status: u16,
    /// Any.
    pub headers: Vec<(&'static str, String)>,
    /// Its bytes.
    pub body: Vec<u8>,
    /// Before anything is sent.
    pub pause: Duration,
}

impl Answer {
    /// Nothing but a status.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// 200 with a body.
    pub fn body(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }

    /// With one more header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

type Script = dyn Fn(&Asked) -> Answer + Send + Sync;

/// The server; its threads end with the program.
pub struct Scripted {
    /// `127.0.0.1:PORT`.
    pub address: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Scripted {
    /// Starts it; the script is called with each request, and may be told the server's own address.
    pub fn start(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?.to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (script, seen): (Arc<Script>, _) = (Arc::new(script), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, seen) = (script.clone(), seen.clone());
                std::thread::spawn(move || drop(serve(stream, &*script, &seen))); // A client that leaves is the test's business.
            }
        });
        Ok(Self { address, asked })
    }

    /// All requests so far, but for the first look whether there is a registry.
    pub fn asked(&self) -> Vec<Asked> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|it| it.path != "/v2/").cloned().collect()
    }
}

fn serve(stream: TcpStream, script: &Script, seen: &Mutex<Vec<Asked>>) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    while let Some(asked) = read(&mut reader)? {
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
        let answer = script(&asked);
        std::thread::sleep(answer.pause);
        let mut text = format!("HTTP/1.1 {} X\r\n", answer.status);
        for (name, value) in &answer.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if !answer.headers.iter().any(|(name, _)| *name == "content-length") {
            text.push_str(&format!("content-length: {}\r\n", answer.body.len()));
        }
        text.push_str("\r\n");
        stream.write_all(text.as_bytes())?;
        if asked.method != "HEAD" {
            stream.write_all(&answer.body)?;
        }
    }
    Ok(())
}

fn read(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Asked>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut asked = Asked { method, path, ..Asked::default() };
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.trim().split_once(':') {
            asked.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
    }
    let length = asked.header("content-length").parse().unwrap_or(0);
    asked.body = vec![0; length];
    reader.read_exact(&mut asked.body)?;
    Ok(Some(asked))
}
