//! What clients ask for.

use std::{fs, os::fd::AsFd};

use super::{
    cgroups,
    job::{Answer, Job, Work, runtime},
    peer::Role,
    process::Process,
    shim::{CONTAINER, Shim},
};
use crate::{
    shim::{
        record::now_ns,
        spec::{Attach, ExecRequest},
        wire::{Event, ExitStatus, Frame, Kind, Message, Op, Phase, Problem, ProblemCode, Request},
    },
    sys,
};

/// Executions at once.
const MAX_EXECS: usize = 128;
/// Longest id of an execution.
const MAX_ID: usize = 64;
/// Executions that have ended and are remembered.
const REMEMBERED: usize = 32;

/// What is to be answered now; `None` when a call of the runtime will.
type Now = Result<Option<()>, Problem>;

fn conflict(message: impl Into<String>) -> Problem {
    Problem::new(ProblemCode::Conflict, message)
}

fn system(error: std::io::Error) -> Problem {
    Problem::new(ProblemCode::System, error.to_string())
}

impl Shim {
    /// Works off the frames that a client has sent.
    pub(super) fn frames(&mut self, key: u32) {
        loop {
            let Some(peer) = self.peers.get_mut(&key) else { return };
            let frame = match peer.decoder.next_frame() {
                Ok(None) => return,
                Ok(Some(frame)) => frame,
                Err(error) => {
                    peer.tell(&Message::Failed(Problem::new(ProblemCode::Invalid, error.to_string())));
                    return peer.finish();
                }
            };
            match peer.role {
                Role::New => self.first(key, &frame),
                Role::Stream(process, attach) => self.stream(process, attach, frame),
                Role::Asking | Role::Follower => {} // One request a connection; what else it says is not heard.
            }
        }
    }

    fn stream(&mut self, key: u32, attach: Attach, frame: Frame) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        match frame.kind {
            Kind::Stdin if attach.stdin => process.feed(&frame.payload),
            Kind::CloseStdin if attach.stdin => process.close_input(),
            Kind::Resize => {
                if let [a, b, c, d] = frame.payload[..] {
                    // A terminal that has gone needs no size.
                    let _ = process.resize(u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                }
            }
            _ => {}
        }
    }

    fn first(&mut self, key: u32, frame: &Frame) {
        let op = match serde_json::from_slice::<Request>(&frame.payload) {
            Ok(request) if frame.kind == Kind::Message => request.op,
            Ok(_) => return self.answer(key, Err(Problem::new(ProblemCode::Invalid, "a request was expected"))),
            Err(error) => {
                let message = format!("this shim does not understand the request: {error}");
                return self.answer(key, Err(Problem::new(ProblemCode::Unsupported, message)));
            }
        };
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.role = Role::Asking;
        }
        if self.record.is_none() {
            return self.answer(key, Err(conflict("the container is still being created")));
        }
        let result = match op {
            Op::State => Ok(Some(())),
            Op::Follow => return self.follow(key),
            Op::Attach(attach) => return self.attach(key, attach),
            Op::Start => self.start(key),
            Op::Exec(exec) => self.exec(key, &exec),
            Op::Resize { exec, rows, columns } => self.process(exec.as_deref()).and_then(|process| {
                process.resize(rows, columns).map_err(system)?;
                Ok(Some(()))
            }),
            Op::CloseStdin { exec } => self.process(exec.as_deref()).map(|process| {
                process.close_input();
                Some(())
            }),
            Op::Signal { exec, signal, all } => self.signal(exec.as_deref(), signal, all),
            Op::Pause if self.phase == Phase::Running => {
                self.call(key, Work::Pause, |spec| runtime(&spec.runtime).pause(&spec.id).map(|()| 0))
            }
            Op::Resume if self.phase == Phase::Paused => {
                self.call(key, Work::Resume, |spec| runtime(&spec.runtime).resume(&spec.id).map(|()| 0))
            }
            Op::Pause | Op::Resume => Err(conflict(format!("container {} is {:?}", self.spec.id, self.phase))),
            Op::Update { resources } => self.update(key, resources),
            Op::ReopenLog => match &mut self.log {
                Some(log) => log.reopen(now_ns()).map(Some).map_err(system),
                None => Ok(Some(())),
            },
            Op::Shutdown { force } => self.shutdown(key, force),
        };
        match result {
            Ok(None) => {}
            Ok(Some(())) => self.answer(key, Ok(())),
            Err(problem) => self.answer(key, Err(problem)),
        }
    }

    /// Answers a request; the connection of one without streams ends with it.
    pub(super) fn answer(&mut self, key: u32, result: Result<(), Problem>) {
        let message = match result {
            Ok(()) => Message::Done(Box::new(self.status())),
            Err(problem) => Message::Failed(problem),
        };
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.tell(&message);
            if matches!(peer.role, Role::New | Role::Asking) {
                peer.finish();
            }
        }
    }

    fn follow(&mut self, key: u32) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.role = Role::Follower;
        }
        self.answer(key, Ok(()));
    }

    fn attach(&mut self, key: u32, attach: Attach) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.role = Role::Stream(CONTAINER, attach);
        }
        self.answer(key, Ok(()));
        if let Some(exit) = &self.end.exit {
            let exit = ExitStatus { code: exit.code, signal: exit.signal };
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.tell(&Message::Exit(exit));
                peer.finish();
            }
        }
    }

    fn start(&mut self, key: u32) -> Now {
        match self.phase {
            Phase::Running | Phase::Paused => return Ok(Some(())),
            Phase::Created if self.end.begun => return Err(conflict("the container has ended before its start")),
            Phase::Created if self.jobs.values().any(|job| job.work == Work::Start) => {
                return Err(conflict("the container is being started"));
            }
            Phase::Created => {}
            _ => return Err(conflict(format!("container {} has ended", self.spec.id))),
        }
        self.started_at_ns = now_ns();
        self.call(key, Work::Start, |spec| runtime(&spec.runtime).in_this_process().start(&spec.id).map(|()| 0))
    }

    fn exec(&mut self, key: u32, exec: &ExecRequest) -> Now {
        if self.phase != Phase::Running || self.end.begun {
            return Err(conflict(format!("container {} does not run: it is {:?}", self.spec.id, self.phase)));
        }
        let letters = exec.id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if !letters || exec.id.is_empty() || exec.id.len() > MAX_ID {
            return Err(Problem::new(ProblemCode::Invalid, format!("{:?} is no id of an execution", exec.id)));
        }
        if self.processes.values().any(|process| process.id == exec.id) {
            return Err(conflict(format!("an execution {} runs already", exec.id)));
        }
        if self.processes.len() > MAX_EXECS {
            return Err(conflict(format!("{MAX_EXECS} executions run already; end some")));
        }
        let process = self.key();
        let name = format!("exec{process}");
        let json = serde_json::to_vec(&exec.process).unwrap_or_default();
        fs::write(format!("{name}.json"), json).map_err(system)?;
        let (mut it, streams) = Process::new(exec.id.clone(), &name, exec.tty, exec.stdin).map_err(system)?;
        it.size = exec.terminal_size;
        if let Some(peer) = self.peers.get_mut(&key) {
            // It hears nothing before the answer: the streams are read once the process runs.
            let attach = Attach { stdin: exec.stdin, stdout: true, stderr: true, wait: true };
            peer.role = Role::Stream(process, attach);
        }
        let launched = self.launch(Work::Exec(process), Some(key), process, it, streams);
        if let Err(error) = launched {
            let _ = fs::remove_file(format!("{name}.json"));
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.role = Role::Asking;
            }
            return Err(system(error));
        }
        Ok(None)
    }

    /// The container's process, or an execution's.
    fn process(&mut self, exec: Option<&str>) -> Result<&mut Process, Problem> {
        let id = exec.unwrap_or_default();
        let found = self.processes.values_mut().find(|process| process.id == id && process.exit.is_none());
        found.ok_or_else(|| {
            let what =
                exec.map_or_else(|| "the container does not run".to_owned(), |id| format!("no execution {id} runs"));
            Problem::new(ProblemCode::NotFound, what)
        })
    }

    fn signal(&mut self, exec: Option<&str>, signal: i32, all: bool) -> Now {
        if !(1..=64).contains(&signal) {
            return Err(Problem::new(ProblemCode::Invalid, format!("{signal} is no signal")));
        }
        // Directly: we are the parent, so the number cannot have become another process's.
        let pid = self.process(exec)?.pid;
        sys::fork::kill(pid, signal).map_err(system)?;
        if all && exec.is_none() {
            let cgroups = self.record.as_ref().map(|record| record.cgroups.clone()).unwrap_or_default();
            let mut others: Vec<i32> = cgroups.iter().flat_map(|dir| cgroups::processes(dir, 0)).collect();
            others.sort_unstable();
            others.dedup();
            for other in others.into_iter().filter(|other| *other != pid) {
                let _ = sys::fork::kill(other, signal); // It may have gone.
            }
        }
        Ok(Some(()))
    }

    fn update(&mut self, key: u32, resources: serde_json::Value) -> Now {
        if self.end.begun {
            return Err(conflict(format!("container {} has ended", self.spec.id)));
        }
        let resources: oci_spec::runtime::LinuxResources = serde_json::from_value(resources)
            .map_err(|error| Problem::new(ProblemCode::Invalid, format!("these are no limits: {error}")))?;
        self.call(key, Work::Update, move |spec| runtime(&spec.runtime).update(&spec.id, &resources).map(|()| 0))
    }

    fn shutdown(&mut self, key: u32, force: bool) -> Now {
        if self.end.exit.is_none() {
            if !force {
                return Err(conflict(format!("container {} has not ended", self.spec.id)));
            }
            self.kill_container();
        }
        self.end.shutdown.push(key);
        Ok(None)
    }

    fn call(
        &mut self,
        key: u32,
        work: Work,
        call: impl FnOnce(&crate::shim::ShimSpec) -> Result<i32, crate::runtime::RuntimeError>,
    ) -> Now {
        self.begin(work, Some(key), call).map_err(system)?;
        Ok(None)
    }

    /// A call of the runtime has ended.
    pub(super) fn answered(&mut self, job: &Job, answer: Answer) {
        let done = answer.is_ok();
        match job.work {
            Work::Start if done => {
                self.phase = Phase::Running;
                let at_ns = self.started_at_ns;
                let pid = self.record.as_mut().map_or(0, |record| {
                    record.started_at_ns = at_ns;
                    record.pid
                });
                if let Some(record) = &self.record {
                    let _ = record.write(&self.spec.run_dir); // What it lacks then is the time alone.
                }
                self.event(Event::Started { pid, at_ns });
            }
            Work::Start => self.started_at_ns = 0,
            Work::Pause if done => {
                self.phase = Phase::Paused;
                self.event(Event::Paused);
            }
            Work::Resume if done => {
                if self.phase == Phase::Paused {
                    self.phase = Phase::Running;
                }
                self.event(Event::Resumed);
            }
            Work::Exec(key) => return self.exec_launched(key, job.peer, answer),
            Work::Delete => return self.deleted(answer),
            _ => {}
        }
        if let Some(peer) = job.peer {
            self.answer(peer, answer.map(drop));
        }
    }

    fn exec_launched(&mut self, key: u32, peer: Option<u32>, answer: Answer) {
        match answer {
            Ok(pid) => {
                if let Some(peer) = peer {
                    self.answer(peer, Ok(()));
                }
                let id = self.processes.get(&key).map(|process| process.id.clone()).unwrap_or_default();
                self.event(Event::ExecStarted { id, pid });
            }
            Err(problem) => {
                if let Some(process) = self.processes.remove(&key)
                    && let Some((listener, path)) = &process.console
                {
                    self.unwatch(listener.as_fd());
                    let _ = fs::remove_file(path);
                }
                if let Some(peer) = peer {
                    if let Some(peer) = self.peers.get_mut(&peer) {
                        peer.role = Role::Asking;
                    }
                    self.answer(peer, Err(problem));
                }
            }
        }
    }

    /// An execution has ended, and its output has been read.
    pub(super) fn exec_ended(&mut self, key: u32) {
        if self.jobs.values().any(|job| job.work == Work::Exec(key)) {
            return; // Its client first hears that it was started.
        }
        let Some(mut process) = self.processes.remove(&key) else { return };
        let Some(exit) = process.exit else { return };
        if process.input_watched
            && let Some(input) = process.input()
        {
            self.unwatch(input);
        }
        process.drop_input();
        for peer in self.peers.values_mut().filter(|peer| matches!(peer.role, Role::Stream(of, _) if of == key)) {
            peer.tell(&Message::Exit(exit));
            peer.finish();
        }
        let id = process.id;
        self.past_execs.push(crate::shim::ExecStatus { id: id.clone(), pid: process.pid, exit: Some(exit) });
        if self.past_execs.len() > REMEMBERED {
            self.past_execs.remove(0);
        }
        self.event(Event::ExecExited { id, exit });
    }
}
