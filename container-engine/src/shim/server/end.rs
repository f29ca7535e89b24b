//! The end of a container: what is left of it is killed, its output read to the end, its record written, its clients
//! told, the runtime's memory of it deleted; in this order.

use std::{
    fs,
    process::ExitCode,
    time::{Duration, Instant},
};

use super::{
    cgroups,
    job::{Answer, Work, runtime},
    peer::Role,
    shim::{CONTAINER, LINGER, Shim},
};
use crate::shim::{
    record::{ExitRecord, Reason, SOCKET, now_ns},
    wire::{Event, ExitStatus, Message, Phase, Problem},
};

/// How long what held a container's output open beyond its death may write.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a terminal may take to hand over what was written to it.
const TERMINAL: Duration = Duration::from_millis(300);
/// Between attempts to kill what forks faster than it is killed.
const AGAIN: Duration = Duration::from_millis(10);
/// When attempts end: what is stuck in the kernel cannot be killed.
const GIVE_UP: Duration = Duration::from_secs(5);
/// How long clients have to take their last message.
const FAREWELL: Duration = Duration::from_secs(1);

/// How far the end is.
#[derive(Debug, Default)]
pub(super) struct End {
    /// The first process has gone.
    pub(super) begun: bool,
    status: Option<ExitStatus>,
    finished_at_ns: u64,
    /// When to kill what is left again, and until when.
    kill: Option<(Instant, Instant)>,
    /// The record, once it is on disk.
    pub(super) exit: Option<ExitRecord>,
    /// The runtime has forgotten the container, or would not.
    deleted: Option<Result<(), Problem>>,
    /// Clients that wait for the shim's end.
    pub(super) shutdown: Vec<u32>,
    /// When nobody has come.
    linger: Option<Instant>,
    farewell: Option<Instant>,
}

impl Shim {
    /// The parent of the process has been told of its end.
    pub(super) fn process_ended(&mut self, key: u32, exit: ExitStatus) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        process.exit = Some(exit);
        let now = Instant::now();
        process.drained_by = if key == CONTAINER { Some(now + DRAIN) } else { process.tty.then(|| now + TERMINAL) };
        if key != CONTAINER {
            return;
        }
        self.end.begun = true;
        self.end.status = Some(exit);
        self.end.finished_at_ns = now_ns();
        self.end.kill = Some((now, now + GIVE_UP));
    }

    /// SIGKILL, to a frozen container too.
    pub(super) fn kill_container(&mut self) {
        if let Some(record) = self.record.as_ref().filter(|_| !self.end.begun) {
            cgroups::kill_process(record.pid);
        }
        if self.phase == Phase::Paused {
            // On v1 what is frozen does not die before it is thawed.
            let _ = self.begin(Work::Resume, None, |spec| runtime(&spec.runtime).resume(&spec.id).map(|()| 0));
        }
    }

    /// Takes the next step that can be taken.
    pub(super) fn settle_end(&mut self, now: Instant) {
        if self.end.farewell.is_some_and(|by| now >= by || self.peers.values().all(|peer| peer.backlog() == 0)) {
            self.done = Some(ExitCode::SUCCESS);
            return;
        }
        if !self.end.begun {
            if self.is_overdue(now) {
                self.kill_container();
            }
            return;
        }
        if self.end.kill.is_some_and(|(at, _)| now >= at) {
            let left = self.record.as_ref().is_some_and(|record| cgroups::kill_all(&record.cgroups));
            self.end.kill =
                self.end.kill.filter(|(_, until)| left && now < *until).map(|(_, until)| (now + AGAIN, until));
        }
        let drained = self.processes.get(&CONTAINER).is_none_or(super::process::Process::is_drained);
        // A start that is being answered comes first: nobody hears of an end before the beginning.
        let starting = self.jobs.values().any(|job| job.work == Work::Start);
        if self.end.exit.is_none() && self.end.kill.is_none() && drained && !starting && self.record.is_some() {
            self.write_record(now);
        }
        if let Some(result) = self.end.deleted.clone()
            && !self.end.shutdown.is_empty()
            && self.end.farewell.is_none()
        {
            self.say_farewell(now, &result);
        }
        if self.is_followed() {
            self.end.linger = None; // Starts anew when the last follower goes.
        } else if self.end.deleted.is_some() {
            let until = *self.end.linger.get_or_insert(now + LINGER);
            if now >= until {
                let _ = fs::remove_file(SOCKET);
                self.done = Some(ExitCode::SUCCESS);
            }
        }
    }

    fn write_record(&mut self, now: Instant) {
        self.look_at_oom();
        let status = self.end.status.unwrap_or(ExitStatus { code: 255, signal: None });
        let oom_killed = self.oom.take().is_some_and(|oom| {
            self.unwatch(oom.fd());
            oom.kills > 0
        });
        let reason = match self.phase {
            Phase::Created if self.is_overdue(now) => Reason::NeverStarted,
            _ if oom_killed => Reason::OomKilled,
            _ => Reason::Exited,
        };
        let exit = ExitRecord {
            code: status.code,
            signal: status.signal,
            oom_killed,
            started_at_ns: self.started_at_ns,
            finished_at_ns: self.end.finished_at_ns,
            reason,
        };
        if exit.write(&self.spec.exit_file).is_err() {
            // A full disk. The run directory is in memory; `recover` looks there too.
            let _ = exit.write(&self.spec.run_dir.join("exit.json"));
        }
        self.end.exit = Some(exit.clone());
        self.phase = Phase::Stopped;
        for peer in self.peers.values_mut().filter(|peer| matches!(peer.role, Role::Stream(CONTAINER, _))) {
            peer.tell(&Message::Exit(status));
            peer.finish();
        }
        self.event(Event::Exited(exit));
        self.processes.remove(&CONTAINER);
        let call = |spec: &crate::shim::ShimSpec| runtime(&spec.runtime).in_this_process().delete(&spec.id, true);
        let begun = self.begin(Work::Delete, None, |spec| call(spec).map(|()| 0));
        if let Err(error) = begun {
            self.deleted(Err(Problem::new(crate::shim::ProblemCode::System, error.to_string())));
        }
    }

    pub(super) fn deleted(&mut self, answer: Answer) {
        self.end.deleted = Some(answer.map(drop));
        let _ = fs::remove_file("init.pid");
        self.event(Event::Deleted);
    }

    fn say_farewell(&mut self, now: Instant, result: &Result<(), Problem>) {
        let _ = fs::remove_file(SOCKET);
        for key in std::mem::take(&mut self.end.shutdown) {
            self.answer(key, result.clone());
        }
        let last = Message::Done(Box::new(self.status()));
        for peer in self.peers.values_mut().filter(|peer| peer.role == Role::Follower) {
            peer.tell(&last);
            peer.finish();
        }
        self.end.farewell = Some(now + FAREWELL);
        if self.peers.values().all(|peer| peer.backlog() == 0) {
            self.done = Some(ExitCode::SUCCESS);
        }
    }

    pub(super) fn end_deadline(&self) -> Option<Instant> {
        let kill = self.end.kill.map(|(at, _)| at);
        let linger = self.end.linger.filter(|_| !self.is_followed());
        [kill, linger, self.end.farewell].into_iter().flatten().min()
    }
}
