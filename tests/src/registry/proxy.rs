//! A proxy in front of a registry that cuts, slows, corrupts and refuses blobs, and counts what it sent.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{free_port, python_program, wait_until};

/// What goes wrong with GET requests of blobs.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The connection breaks after so many bytes of each answer, for the first `times` answers.
    Cut {
        /// Bytes.
        after: u64,
        /// Answers.
        times: u32,
    },
    /// So many bytes a second, for each answer.
    Slow(u64),
    /// One byte of the answer is another, for the first `times` answers.
    Corrupt {
        /// Answers.
        times: u32,
    },
    /// This status with `Retry-After: 1`, for the first `times` requests of any kind.
    Refuse {
        /// 429, 503, …
        status: u16,
        /// Requests.
        times: u32,
    },
    /// Ranges are not known.
    NoRange {
        /// Bytes after which the first answer breaks.
        after: u64,
    },
    /// No answer ever comes.
    Hang,
}

/// What the proxy sent of one blob.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// GET requests.
    pub requests: u32,
    /// Bytes of bodies.
    pub bytes: u64,
}

/// The proxy, ended when dropped.
pub struct Proxy {
    child: Child,
    dir: PathBuf,
    /// `127.0.0.1:PORT`.
    pub address: String,
}

const PROGRAM: &str = r"
import http.client, http.server, json, os, socketserver, sys, threading, time
port, target, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
lock, used = threading.Lock(), {}
def fault():
    try: return json.load(open(folder + '/fault'))
    except Exception: return {'kind': 'none'}
def first(f):
    key = json.dumps(f, sort_keys=True)
    with lock:
        used[key] = used.get(key, 0) + 1
        return used[key] <= f.get('times', 1)
def note(path, sent):
    with lock, open(folder + '/seen', 'a') as out: out.write(f'{path} {sent}\n')
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *a): pass
    def handle_any(self):
        f = fault(); kind = f['kind']
        length = int(self.headers.get('content-length') or 0)
        blob = self.command == 'GET' and '/blobs/sha256:' in self.path
        if kind == 'hang' and blob: time.sleep(3600)
        if kind == 'refuse' and self.path != '/v2/' and first(f):
            self.rfile.read(length)
            self.send_response(f['status']); self.send_header('retry-after', '1'); self.send_header('content-length', '0'); self.end_headers(); return
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ('host', 'connection')}
        if kind == 'norange' and blob: headers = {k: v for k, v in headers.items() if k.lower() != 'range'}
        headers['Host'] = f'127.0.0.1:{port}'
        upstream = http.client.HTTPConnection('127.0.0.1', target)
        body = None
        if self.headers.get('transfer-encoding', '').lower() == 'chunked':
            body = b''
            while True:
                size = int(self.rfile.readline().strip() or b'0', 16)
                if size == 0: self.rfile.readline(); break
                body += self.rfile.read(size); self.rfile.readline()
            headers.pop('Transfer-Encoding', None); headers.pop('transfer-encoding', None)
        elif length:
            if kind == 'cut' and self.command in ('PATCH', 'PUT') and length > f['after'] and first(f):
                data = self.rfile.read(f['after']); upstream.putrequest(self.command, self.path, skip_host=True)
                for k, v in headers.items(): upstream.putheader(k, v)
                upstream.endheaders(); upstream.send(data); upstream.close(); self.close_connection = True; self.connection.close(); return
            body = self.rfile.read(length)
        upstream.request(self.command, self.path, body=body, headers=headers)
        answer = upstream.getresponse()
        self.send_response(answer.status)
        for k, v in answer.getheaders():
            if k.lower() not in ('connection', 'transfer-encoding'): self.send_header(k, v)
        size = answer.getheader('content-length')
        if size is None and self.command != 'HEAD': self.send_header('connection', 'close'); self.close_connection = True
        self.end_headers()
        if self.command == 'HEAD': return
        sent, limit = 0, None
        if blob and kind == 'cut' and first(f): limit = f['after']
        if blob and kind == 'norange' and first(f): limit = f['after']
        corrupt = blob and kind == 'corrupt' and first(f)
        try:
            while data := answer.read(65536):
                if corrupt and sent == 0: data = data[:20] + bytes([data[20] ^ 255]) + data[21:] if len(data) > 21 else data
                if limit is not None and sent + len(data) > limit: data = data[:limit - sent]
                self.wfile.write(data); self.wfile.flush(); sent += len(data)
                if limit is not None and sent >= limit: self.close_connection = True; self.connection.shutdown(2); break
                if blob and kind == 'slow': time.sleep(len(data) / f['rate'])
        except OSError: self.close_connection = True
        finally:
            if blob: note(self.path.rsplit('/', 1)[1], sent)
            upstream.close()
    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True; request_queue_size = 64
    def handle_error(self, *a): pass
Server(('127.0.0.1', port), Handler).serve_forever()
";

impl Proxy {
    /// In front of the plain registry at `target`; well-behaved at first.
    pub fn start(dir: &Path, target: u16) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let port = free_port()?;
        let mut command = python_program(PROGRAM, &BTreeMap::new());
        command.args([port.to_string(), target.to_string()]).arg(dir);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.context("python does not start: run `cargo xtask setup`")?;
        let it = Self { child, dir: dir.to_owned(), address: format!("127.0.0.1:{port}") };
        let up = || std::net::TcpStream::connect(&it.address).is_ok();
        wait_until("the proxy listens", Duration::from_secs(20), up)?;
        Ok(it)
    }

    /// From now on.
    pub fn fault(&self, fault: &Fault) -> Result<()> {
        let value = match fault {
            Fault::None => serde_json::json!({ "kind": "none" }),
            Fault::Cut { after, times } => serde_json::json!({ "kind": "cut", "after": after, "times": times }),
            Fault::Slow(rate) => serde_json::json!({ "kind": "slow", "rate": rate }),
            Fault::Corrupt { times } => serde_json::json!({ "kind": "corrupt", "times": times }),
            Fault::Refuse { status, times } => {
                serde_json::json!({ "kind": "refuse", "status": status, "times": times })
            }
            Fault::NoRange { after } => serde_json::json!({ "kind": "norange", "after": after, "times": 1 }),
            Fault::Hang => serde_json::json!({ "kind": "hang" }),
        };
        let beside = self.dir.join("fault.new");
        fs::write(&beside, value.to_string())?;
        Ok(fs::rename(beside, self.dir.join("fault"))?)
    }

    /// What it sent so far, by digest of the blob.
    pub fn seen(&self) -> BTreeMap<String, Seen> {
        let text = fs::read_to_string(self.dir.join("seen")).unwrap_or_default();
        let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
        for (digest, bytes) in text.lines().filter_map(|line| line.split_once(' ')) {
            let entry = seen.entry(digest.to_owned()).or_default();
            entry.requests += 1;
            entry.bytes += bytes.parse::<u64>().unwrap_or(0);
        }
        seen
    }

    /// Forgets what it sent.
    pub fn forget(&self) -> Result<()> {
        Ok(fs::write(self.dir.join("seen"), "")?)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may be gone already.
        let _ = self.child.wait();
    }
}
