//! The terminal of a command that is attached: raw while it lives, and its size.

use std::{
    io::{self, IsTerminal, Read},
    os::fd::AsFd,
};

use bytes::Bytes;
use rustix::termios::{self, OptionalActions, Termios};
use tokio::sync::mpsc;

/// Bytes read from standard input at once.
const CHUNK: usize = 32 << 10;

/// A terminal in raw mode; as it was before when this is dropped, by whatever path.
pub struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes standard input raw; `None` where it is no terminal.
    pub fn new() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = termios::tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        termios::tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Err(error) = termios::tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.before) {
            tracing::warn!(%error, "the terminal stays raw: type `reset` and Enter");
        }
    }
}

/// Rows and columns of the terminal on standard output, or on standard input.
pub fn size() -> Option<(u16, u16)> {
    let size =
        termios::tcgetwinsize(io::stdout().as_fd()).or_else(|_| termios::tcgetwinsize(io::stdin().as_fd())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Reads standard input until its end, when the channel closes. A thread of its own: a read of a terminal cannot be called
/// off, and must not keep the program from ending.
pub fn input() -> io::Result<mpsc::Receiver<io::Result<Bytes>>> {
    let (send, receive) = mpsc::channel(4);
    std::thread::Builder::new().name("stdin".to_owned()).stack_size(128 << 10).spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut chunk = vec![0; CHUNK];
        loop {
            match stdin.read(&mut chunk) {
                Ok(0) => return,
                Ok(n) => {
                    if send.blocking_send(Ok(Bytes::copy_from_slice(&chunk[..n]))).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    // Whoever does not listen any more needs no reason.
                    let _ = send.blocking_send(Err(error));
                    return;
                }
            }
        }
    })?;
    Ok(receive)
}

/// One line from the terminal without echo, such as a password.
pub fn secret(prompt: &str) -> io::Result<String> {
    let stdin = io::stdin();
    let before = termios::tcgetattr(stdin.as_fd())?;
    let mut silent = before.clone();
    silent.local_modes.remove(termios::LocalModes::ECHO);
    io::Write::write_all(&mut io::stderr(), prompt.as_bytes())?;
    termios::tcsetattr(stdin.as_fd(), OptionalActions::Flush, &silent)?;
    let restore = Raw { before };
    let mut line = String::new();
    let read = stdin.read_line(&mut line);
    drop(restore);
    io::Write::write_all(&mut io::stderr(), b"\n")?;
    read?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Finds the keys that detach, however they arrive; what only looked like them is handed on.
#[derive(Debug)]
pub struct DetachKeys {
    keys: Vec<u8>,
    matched: usize,
}

impl DetachKeys {
    /// No keys: never.
    pub fn new(keys: Vec<u8>) -> Self {
        Self { keys, matched: 0 }
    }

    /// What of `input` goes to the container, and whether the keys were in it.
    pub fn filter(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        if self.keys.is_empty() {
            return (input.to_vec(), false);
        }
        let mut pass = Vec::with_capacity(input.len());
        for byte in input {
            if *byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.matched = 0;
                    return (pass, true);
                }
                continue;
            }
            pass.extend_from_slice(&self.keys[..self.matched]);
            self.matched = 0;
            if *byte == self.keys[0] {
                self.matched = 1;
            } else {
                pass.push(*byte);
            }
        }
        (pass, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_found_and_nothing_else_is_lost() {
        let mut keys = DetachKeys::new(vec![16, 17]);
        assert_eq!(keys.filter(b"abc"), (b"abc".to_vec(), false));
        assert_eq!(keys.filter(&[b'a', 16]), (b"a".to_vec(), false));
        assert_eq!(keys.filter(b"b"), (vec![16, b'b'], false));
        assert_eq!(keys.filter(&[16, 16]), (vec![16], false));
        assert_eq!(keys.filter(&[17, b'x']), (vec![], true));
        assert_eq!(DetachKeys::new(vec![]).filter(&[16, 17]), (vec![16, 17], false));
    }
}
