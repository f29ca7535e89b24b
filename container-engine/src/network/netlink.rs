//! One netlink socket and its requests: many in one system call, each answered.
//!
//! Blocking, and quick: the kernel works off a request inside `sendto`, so the answers wait when it returns. A socket
//! stays in the network namespace in which it was opened, whoever uses it: a container's addresses and routes are set
//! from the agent's own threads through a socket that was opened inside.

use std::{io, time::Duration};

use netlink_sys::{Socket, SocketAddr, protocols};
use rustix::net::sockopt;

/// `NLM_F_*`: flags of requests, `linux/netlink.h`.
pub const REQUEST: u16 = 1;
/// An answer is wanted also for success.
pub const ACK: u16 = 4;
/// An existing object is replaced.
pub const REPLACE: u16 = 0x100;
/// An existing object is an error.
pub const EXCL: u16 = 0x200;
/// A missing object is made.
pub const CREATE: u16 = 0x400;
/// Added at the end of a list.
pub const APPEND: u16 = 0x800;
/// All objects.
pub const DUMP: u16 = 0x300;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// Room for a whole rule set in one batch, and for the answers.
const BUFFER: usize = 4 << 20;

/// One request: the body without netlink's header.
#[derive(Debug, Clone)]
pub struct Request {
    /// Message type.
    pub kind: u16,
    /// Beside `REQUEST`.
    pub flags: u16,
    /// After the header.
    pub body: Vec<u8>,
}

/// Which request of a batch was refused, and why.
#[derive(Debug)]
pub struct Refused {
    /// Its place in the batch.
    pub index: usize,
    /// The kernel's error.
    pub error: io::Error,
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        refused.error
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self { index: 0, error }
    }
}

/// A socket.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// For links, addresses and routes.
    pub fn route() -> io::Result<Self> {
        Self::open(protocols::NETLINK_ROUTE)
    }

    /// For nf_tables.
    pub fn netfilter() -> io::Result<Self> {
        Self::open(protocols::NETLINK_NETFILTER)
    }

    fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let _ = socket.set_cap_ack(true); // Answers without a copy of the request; the buffers do without.
        // Without the right to force, the usual sizes remain: enough for a small board.
        let _ = sockopt::set_socket_send_buffer_size_force(&socket, BUFFER);
        let _ = sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER);
        // The kernel answers before `send` returns; this only keeps a fault from becoming a hang.
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(10)))?;
        Ok(Self { socket, sequence: 1 })
    }

    /// Sends all at once and waits for the answers to those with `ACK`, the last of which must be so. The first refusal
    /// is returned, after all answers.
    pub fn transact(&mut self, requests: &[Request]) -> Result<(), Refused> {
        let first = self.sequence;
        let mut bytes = Vec::with_capacity(requests.iter().map(|request| request.body.len() + HEADER + 4).sum());
        for request in requests {
            self.append(&mut bytes, request);
        }
        let Some(last) = requests.iter().rposition(|request| request.flags & ACK != 0) else { return Ok(()) };
        self.send(&bytes)?;
        let mut refused: Option<Refused> = None;
        let mut answered = false;
        while !answered {
            self.receive(|kind, sequence, body| {
                let Some(index) = sequence.checked_sub(first).map(|index| index as usize) else { return };
                if kind != NLMSG_ERROR || index >= requests.len() {
                    return;
                }
                if let Some(error) = error_of(body)
                    && refused.is_none()
                {
                    refused = Some(Refused { index, error });
                }
                answered |= index >= last;
            })?;
        }
        refused.map_or(Ok(()), Err)
    }

    /// Sends one request for many objects; `each` is given type and body of every one.
    pub fn dump(&mut self, request: &Request, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let sequence = self.sequence;
        let mut bytes = Vec::new();
        self.append(&mut bytes, &Request { flags: request.flags | DUMP, ..request.clone() });
        self.send(&bytes)?;
        let (mut done, mut failed) = (false, None);
        while !done {
            self.receive(|kind, of, body| {
                if of != sequence {
                    return;
                }
                match kind {
                    NLMSG_DONE => done = true,
                    NLMSG_ERROR => {
                        failed = error_of(body);
                        done = true;
                    }
                    _ => each(kind, body),
                }
            })?;
        }
        failed.map_or(Ok(()), Err)
    }

    fn append(&mut self, bytes: &mut Vec<u8>, request: &Request) {
        let length = u32::try_from(request.body.len() + HEADER).unwrap_or(u32::MAX);
        bytes.extend_from_slice(&length.to_ne_bytes());
        bytes.extend_from_slice(&request.kind.to_ne_bytes());
        bytes.extend_from_slice(&(request.flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&request.body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        self.sequence = self.sequence.wrapping_add(1).max(1);
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = self.socket.send(bytes, 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::Error::other("the kernel took a part of a netlink message")) }
    }

    fn receive(&self, mut each: impl FnMut(u16, u32, &[u8])) -> io::Result<()> {
        let (bytes, _) = match self.socket.recv_from_full() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other?,
        };
        let mut rest = bytes.as_slice();
        while let Some((header, _)) = rest.split_at_checked(HEADER) {
            let number = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            let length = number(0) as usize;
            let Some(body) = rest.get(HEADER..length) else { break };
            each(u16::from_ne_bytes([header[4], header[5]]), number(8), body);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

/// The error in the body of an answer; none for success.
fn error_of(body: &[u8]) -> Option<io::Error> {
    let code = body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
    (code != 0).then(|| io::Error::from_raw_os_error(code.saturating_neg()))
}
