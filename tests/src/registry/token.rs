//! An authorisation server for a registry: gives tokens for what `USER` asks for, and for pulls to anybody.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::USER;
use crate::{free_port, python_program, wait_until};

/// The server, ended when dropped.
pub struct TokenServer {
    child: Child,
    port: u16,
    certificate: PathBuf,
}

/// RS256 with the certificate in `x5c`, as docker-registry 2.8 wants it; openssl signs.
const PROGRAM: &str = r"
import base64, http.server, json, subprocess, sys, time, urllib.parse, uuid
port, key, certificate, user, password = int(sys.argv[1]), *sys.argv[2:6]
b64 = lambda data: base64.urlsafe_b64encode(data).rstrip(b'=').decode()
der = ''.join(l for l in open(certificate).read().splitlines() if '---' not in l)
def token(who, access):
    now = int(time.time())
    head = {'typ': 'JWT', 'alg': 'RS256', 'x5c': [der]}
    body = {'iss': 'tests', 'sub': who, 'aud': 'registry', 'exp': now + 300, 'nbf': now - 10, 'iat': now, 'jti': str(uuid.uuid4()), 'access': access}
    text = b64(json.dumps(head).encode()) + '.' + b64(json.dumps(body).encode())
    sign = subprocess.run(['openssl', 'dgst', '-sha256', '-sign', key], input=text.encode(), capture_output=True, check=True)
    return text + '.' + b64(sign.stdout)
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *a): pass
    def answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status); self.send_header('content-type', 'application/json'); self.send_header('content-length', str(len(data))); self.end_headers(); self.wfile.write(data)
    def give(self, who, scopes):
        access = []
        for scope in ' '.join(scopes).split():
            kind, name, actions = scope.split(':', 2)
            actions = actions.split(',')
            if not who: actions = [a for a in actions if a == 'pull']
            access.append({'type': kind, 'name': name, 'actions': actions})
        self.answer(200, {'token': token(who, access), 'expires_in': 300})
    def do_GET(self):
        query = urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)
        who = ''
        header = self.headers.get('authorization', '')
        if header.startswith('Basic '):
            name, _, secret = base64.b64decode(header[6:]).decode().partition(':')
            if (name, secret) != (user, password): return self.answer(401, {'errors': []})
            who = name
        self.give(who, query.get('scope', []))
    def do_POST(self):
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers['content-length'])).decode())
        if form.get('refresh_token') != ['identity']: return self.answer(401, {'errors': []})
        self.give(user, form.get('scope', []))
http.server.ThreadingHTTPServer(('127.0.0.1', port), Handler).serve_forever()
";

impl TokenServer {
    /// Starts it with a key of its own.
    pub fn start(dir: &Path) -> Result<Self> {
        let (key, certificate) = (dir.join("token.key"), dir.join("token.pem"));
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tests", "-keyout"])
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()?;
        ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        let port = free_port()?;
        let mut command = python_program(PROGRAM, &BTreeMap::new());
        command.arg(port.to_string()).arg(&key).arg(&certificate).args([USER.0, USER.1]);
        let log = fs::File::create(dir.join("token.log"))?;
        let child = command.stdout(Stdio::null()).stderr(log).spawn();
        let it = Self { child: child.context("python does not start: run `cargo xtask setup`")?, port, certificate };
        let up = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
        wait_until("the token server listens", Duration::from_secs(20), up)?;
        Ok(it)
    }

    /// What the registry's configuration says of it.
    pub fn configuration(&self) -> String {
        format!(
            "auth: {{token: {{realm: \"http://127.0.0.1:{}/token\", service: registry, issuer: tests, rootcertbundle: {}}}}}\n",
            self.port,
            self.certificate.display()
        )
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        let _ = self.child.kill(); // It may be gone already.
        let _ = self.child.wait();
    }
}
