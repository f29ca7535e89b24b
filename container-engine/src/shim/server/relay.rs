//! From the processes' ends of pipes and terminals to the log and to the clients.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use rustix::{event::epoll, io::Errno};

use super::{
    peer::{Peer, Role},
    shim::{CONTAINER, ERR, IN, OUT, Shim},
};
use crate::{
    logs::Stream,
    shim::{record::now_ns, wire::Kind},
};

/// Reads of one stream before the others have their turn.
const TURNS: usize = 4;
/// Beyond that moment: how long somebody who writes without pause is listened to.
const NEVER_EMPTY: Duration = Duration::from_secs(30);

impl Shim {
    /// Holds or lets go a process's streams, and takes the rest of one that has ended.
    pub(super) fn settle_process(&mut self, key: u32, now: Instant) {
        let full = |peer: &Peer| peer.full_since.is_some() && matches!(peer.role, Role::Stream(of, _) if of == key);
        let hold = self.peers.values().any(full);
        let Some(process) = self.processes.get_mut(&key) else { return };
        if process.held != hold {
            process.held = hold;
            for (fd, kind) in process.outs.iter().zip([OUT, ERR]) {
                let Some(fd) = fd else { continue };
                // Taken out rather than muted: an end of file would be reported without pause.
                let _ = if hold {
                    epoll::delete(&self.epoll, fd)
                } else {
                    epoll::add(&self.epoll, fd, epoll::EventData::new_u64(kind | u64::from(key)), epoll::EventFlags::IN)
                };
            }
        }
        let blocked = process.blocked_input().is_some();
        if blocked != process.input_watched
            && let Some(input) = process.input()
        {
            let data = epoll::EventData::new_u64(IN | u64::from(key));
            let _ = if blocked {
                epoll::add(&self.epoll, input, data, epoll::EventFlags::OUT)
            } else {
                epoll::delete(&self.epoll, input)
            };
            process.input_watched = blocked;
        } else if !blocked {
            process.input_watched = false;
        }
        if process.exit.is_some() && !process.held {
            self.drain(key, now);
        }
        if key != CONTAINER && self.processes.get(&key).is_some_and(|it| it.exit.is_some() && it.is_drained()) {
            self.exec_ended(key);
        }
    }

    /// After the end of a process: what it wrote is in the pipe already; what others still hold open is not waited
    /// for (a terminal hands over late, and what held the container's pipes is being killed, so these get a moment).
    fn drain(&mut self, key: u32, now: Instant) {
        for which in 0..2 {
            let empty = self.relay(key, which);
            let Some(process) = self.processes.get(&key) else { return };
            let late = process.drained_by.is_none_or(|by| now >= by);
            let far_too_late = process.drained_by.is_some_and(|by| now >= by + NEVER_EMPTY);
            if (empty && late) || far_too_late {
                self.close_out(key, which);
            }
        }
    }

    /// Reads a stream: to the log, and to every client of it. Whether it is empty by now.
    pub(super) fn relay(&mut self, key: u32, which: usize) -> bool {
        for _ in 0..TURNS {
            let full = |peer: &Peer| peer.full_since.is_some() && matches!(peer.role, Role::Stream(of, _) if of == key);
            if self.peers.values().any(full) {
                return false;
            }
            let Some(fd) = self.processes.get(&key).and_then(|process| process.outs[which].as_ref()) else {
                return true;
            };
            match rustix::io::read(fd, &mut self.buffer[..]) {
                Ok(n) if n > 0 => self.spread(key, which, n),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                // The end, which a terminal that nobody has open any more gives as an error.
                Ok(_) | Err(_) => {
                    self.close_out(key, which);
                    return true;
                }
            }
        }
        false
    }

    fn spread(&mut self, key: u32, which: usize, length: usize) {
        let bytes = &self.buffer[..length];
        let (stream, kind) = if which == 0 { (Stream::Stdout, Kind::Stdout) } else { (Stream::Stderr, Kind::Stderr) };
        if key == CONTAINER
            && let Some(log) = &mut self.log
        {
            log.push(stream, bytes, now_ns());
        }
        for peer in self.peers.values_mut() {
            if let Role::Stream(of, attach) = peer.role
                && of == key
                && (if which == 0 { attach.stdout } else { attach.stderr })
            {
                peer.output(kind, bytes);
            }
        }
    }

    pub(super) fn close_out(&mut self, key: u32, which: usize) {
        let Some(fd) = self.processes.get_mut(&key).and_then(|it| it.outs[which].take()) else { return };
        let _ = epoll::delete(&self.epoll, &fd);
        if key == CONTAINER
            && let Some(log) = &mut self.log
        {
            log.finish(if which == 0 { Stream::Stdout } else { Stream::Stderr }, now_ns());
        }
    }

    pub(super) fn watch_outs(&self, key: u32) {
        let Some(process) = self.processes.get(&key) else { return };
        for (fd, kind) in process.outs.iter().zip([OUT, ERR]) {
            if let Some(fd) = fd {
                let _ = self.watch(fd.as_fd(), kind | u64::from(key), epoll::EventFlags::IN);
            }
        }
    }
}
