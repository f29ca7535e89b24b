//! One process's stdio: the container's own, or an execution's.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    time::Instant,
};

use rustix::{
    fs::OFlags,
    io::Errno,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
    pipe::PipeFlags,
    termios::Winsize,
};

use crate::{runtime::Streams, shim::wire::ExitStatus};

/// Input that waits for the process, bytes; over it nothing more is read from clients.
pub(super) const MAX_INPUT: usize = 64 << 10;
/// Longest path of a socket that every runtime can use.
const MAX_SOCKET_PATH: usize = 100;

/// A process and its streams.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)] // Independent of each other.
pub(super) struct Process {
    /// Of the execution; empty for the container.
    pub(super) id: String,
    /// 0 while it is being started.
    pub(super) pid: i32,
    pub(super) tty: bool,
    pub(super) exit: Option<ExitStatus>,
    /// Ends from which we read; a terminal's master is the first.
    pub(super) outs: [Option<OwnedFd>; 2],
    /// Whether a reader that is behind holds up the stream.
    pub(super) held: bool,
    /// End into which we write.
    input: Option<OwnedFd>,
    waiting: Vec<u8>,
    /// Whether epoll watches the input.
    pub(super) input_watched: bool,
    closing: bool,
    /// Where the runtime sends the terminal's master.
    pub(super) console: Option<(UnixListener, PathBuf)>,
    pub(super) size: Option<(u16, u16)>,
    /// After its end: when to stop waiting for the rest of its output.
    pub(super) drained_by: Option<Instant>,
}

impl Process {
    /// Pipes, or a socket in the current folder to which a terminal will be sent.
    pub(super) fn new(id: String, name: &str, tty: bool, stdin: bool) -> io::Result<(Self, Streams)> {
        let mut process = Self {
            id,
            pid: 0,
            tty,
            exit: None,
            outs: [None, None],
            held: false,
            input: None,
            waiting: Vec::new(),
            input_watched: false,
            closing: false,
            console: None,
            size: None,
            drained_by: None,
        };
        let mut streams = Streams::default();
        if tty {
            let path = PathBuf::from(format!("{name}.sock"));
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(&path)?;
            listener.set_nonblocking(true)?;
            process.console = Some((listener, path));
            return Ok((process, streams));
        }
        let nonblocking = |fd: &OwnedFd| rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK);
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        nonblocking(&read)?;
        (process.outs[0], streams.stdout) = (Some(read), Some(write));
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        nonblocking(&read)?;
        (process.outs[1], streams.stderr) = (Some(read), Some(write));
        if stdin {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
            nonblocking(&write)?;
            (process.input, streams.stdin) = (Some(write), Some(read));
        }
        Ok((process, streams))
    }

    /// The path of its console socket, as the runtime is told it; `run_dir` is open as the descriptor `dir`.
    pub(super) fn console_path(&self, run_dir: &Path, dir: i32) -> Option<PathBuf> {
        let name = &self.console.as_ref()?.1;
        let path = run_dir.join(name);
        let long = path.as_os_str().len() > MAX_SOCKET_PATH;
        Some(if long { format!("/proc/{}/fd/{dir}/{}", std::process::id(), name.display()).into() } else { path })
    }

    /// Takes the terminal's master, if the runtime has sent it; whether it had.
    pub(super) fn take_console(&mut self) -> io::Result<bool> {
        let Some((listener, path)) = &self.console else { return Ok(false) };
        let connection = match listener.accept() {
            Ok((connection, _)) => connection,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        connection.set_nonblocking(false)?;
        // The runtime sends at once; one that does not must not stop us for ever.
        connection.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
        let mut name = [0; 256];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [io::IoSliceMut::new(&mut name)];
        recvmsg(&connection, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let master = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let master = master.ok_or_else(|| io::Error::other("the runtime sent no terminal"))?;
        rustix::fs::fcntl_setfl(&master, rustix::fs::fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
        self.input = Some(master.try_clone()?);
        self.outs[0] = Some(master);
        let _ = std::fs::remove_file(path);
        self.console = None;
        if let Some((rows, columns)) = self.size {
            let _ = self.resize(rows, columns);
        }
        Ok(true)
    }

    /// Size of the terminal; remembered where it is still on its way.
    pub(super) fn resize(&mut self, rows: u16, columns: u16) -> io::Result<()> {
        self.size = Some((rows, columns));
        let Some(master) = self.outs[0].as_ref().filter(|_| self.tty) else { return Ok(()) };
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(master, size)?)
    }

    /// Takes bytes for standard input.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        let open = self.input.is_some() || self.console.is_some();
        if open && !self.closing {
            self.waiting.extend_from_slice(bytes);
        }
        self.pump();
    }

    /// Ends standard input once what waits has been read.
    pub(super) fn close_input(&mut self) {
        if self.closing || (self.input.is_none() && self.console.is_none()) {
            return;
        }
        self.closing = true;
        if self.tty {
            self.waiting.push(4); // End of transmission: what a person types to end it.
        }
        self.pump();
    }

    /// Writes what the process has room for.
    pub(super) fn pump(&mut self) {
        let Some(input) = &self.input else { return };
        let mut sent = 0;
        while sent < self.waiting.len() {
            match rustix::io::write(input, &self.waiting[sent..]) {
                Ok(n) => sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    // Nobody reads it any more, nor will.
                    self.drop_input();
                    return;
                }
            }
        }
        self.waiting.drain(..sent);
        if self.waiting.is_empty() {
            self.waiting = Vec::new();
            if self.closing && !self.tty {
                self.drop_input();
            }
        }
    }

    pub(super) fn drop_input(&mut self) {
        self.input = None;
        self.waiting = Vec::new();
        self.closing = true;
    }

    /// Input that waits, and where it goes.
    pub(super) fn blocked_input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().filter(|_| !self.waiting.is_empty()).map(AsFd::as_fd)
    }

    pub(super) fn input(&self) -> Option<BorrowedFd<'_>> {
        self.input.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether all its output has been read.
    pub(super) fn is_drained(&self) -> bool {
        self.outs.iter().all(Option::is_none)
    }
}
