//! The loop: who is heard, and when.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::{fs::PermissionsExt, net::UnixListener},
    },
    process::ExitCode,
    time::{Duration, Instant},
};

use rustix::{
    event::{Timespec, epoll},
    io::Errno,
    process::WaitOptions,
};

use super::{
    job::{Answer, Job, Work, runtime},
    oom::OomWatch,
    peer::{Peer, Role},
    process::Process,
    report_to,
};
use crate::{
    logs::Writer,
    runtime::Launch,
    shim::{
        record::{SOCKET, ShimRecord, StartTime, now_ns},
        spec::ShimSpec,
        wire::{Event, ExecStatus, ExitStatus, Message, Phase, Problem, ProblemCode, Status, VERSION},
    },
    sys,
};

/// The container among the processes.
pub(super) const CONTAINER: u32 = 0;
/// Read at once; also the largest piece of output that a client gets.
const READ: usize = 16 << 10;
/// How long a full client has to catch up.
const CATCH_UP: Duration = Duration::from_secs(1);
/// How long an ended container's shim waits for an agent to come.
pub(super) const LINGER: Duration = Duration::from_secs(60);
/// Connections at once.
const MAX_PEERS: usize = 256;
/// Ends of processes that nobody has claimed yet.
const MAX_UNCLAIMED: usize = 256;

const SIGNALS: u64 = 0;
const LISTENER: u64 = 1;
const OOM: u64 = 2;
const PEER: u64 = 1 << 32;
const JOB: u64 = 2 << 32;
pub(super) const OUT: u64 = 3 << 32;
pub(super) const ERR: u64 = 4 << 32;
pub(super) const IN: u64 = 5 << 32;
const CONSOLE: u64 = 6 << 32;

/// One container's shim.
pub(super) struct Shim {
    pub(super) spec: ShimSpec,
    pub(super) epoll: OwnedFd,
    signals: OwnedFd,
    listener: UnixListener,
    /// `run_dir`, for paths that are too long for a socket.
    dir: OwnedFd,
    report: Option<OwnedFd>,
    oom_score: String,
    /// Whether this process came into its cgroups, until the creation asks.
    joined: io::Result<()>,
    pub(super) phase: Phase,
    pub(super) processes: BTreeMap<u32, Process>,
    pub(super) peers: BTreeMap<u32, Peer>,
    pub(super) jobs: BTreeMap<u32, Job>,
    next: u32,
    unclaimed: Vec<(i32, ExitStatus)>,
    pub(super) log: Option<Writer>,
    rotations: u64,
    pub(super) oom: Option<OomWatch>,
    pub(super) end: super::end::End,
    /// When a container that was not started is given up.
    start_by: Instant,
    pub(super) record: Option<ShimRecord>,
    pub(super) started_at_ns: u64,
    pub(super) past_execs: Vec<ExecStatus>,
    pub(super) buffer: Box<[u8; READ]>,
    pub(super) done: Option<ExitCode>,
}

impl Shim {
    /// Listens, and begins to create the container.
    pub(super) fn new(spec: ShimSpec, report: OwnedFd, oom_score: String) -> io::Result<Self> {
        let signals = sys::fork::child_signals()?;
        let _ = fs::remove_file(SOCKET);
        let listener = UnixListener::bind(SOCKET)?;
        fs::set_permissions(SOCKET, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        let dir = fs::File::open(".")?.into();
        let log = spec.log.path.as_deref();
        let log = log.map(|path| {
            let named = |error| io::Error::other(format!("log {}: {error}", path.display()));
            Writer::open(path, spec.log.max_bytes, spec.log.max_files).map_err(named)
        });
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut shim = Self {
            log: log.transpose()?,
            start_by: Instant::now() + Duration::from_secs(spec.start_within_s.into()),
            epoll,
            signals,
            listener,
            dir,
            report: Some(report),
            oom_score,
            joined: Ok(()),
            phase: Phase::Created,
            processes: BTreeMap::new(),
            peers: BTreeMap::new(),
            jobs: BTreeMap::new(),
            next: 1,
            unclaimed: Vec::new(),
            rotations: 0,
            oom: None,
            end: super::end::End::default(),
            record: None,
            started_at_ns: 0,
            past_execs: Vec::new(),
            buffer: Box::new([0; READ]),
            done: None,
            spec,
        };
        shim.watch(shim.signals.as_fd(), SIGNALS, epoll::EventFlags::IN)?;
        shim.watch(shim.listener.as_fd(), LISTENER, epoll::EventFlags::IN)?;
        // Opened first: what is missing is told before anything is made.
        let groups = super::cgroups::Joining::open(&shim.spec.cgroups)?;
        shim.create()?;
        // While the runtime is at work: each of the two would wait as long for the kernel.
        shim.joined = groups.join();
        Ok(shim)
    }

    /// Until the end.
    pub(super) fn run(&mut self) -> ExitCode {
        let mut events = Vec::with_capacity(16);
        loop {
            if let Some(code) = self.done {
                return code;
            }
            events.clear();
            let timeout = self.next_deadline().map(|at| {
                let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
                Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 60, tv_nsec: 0 })
            });
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return ExitCode::FAILURE,
            }
            for event in &events {
                self.handle(event.data.u64(), event.flags);
            }
            self.settle();
        }
    }

    fn handle(&mut self, token: u64, flags: epoll::EventFlags) {
        #[allow(clippy::cast_possible_truncation)] // The lower half is the key.
        let key = token as u32;
        match token & !u64::from(u32::MAX) {
            PEER => self.peer_ready(key, flags),
            JOB => self.job_ready(key),
            OUT | ERR => {
                self.relay(key, usize::from(token & !u64::from(u32::MAX) == ERR));
            }
            IN => {
                if let Some(process) = self.processes.get_mut(&key) {
                    process.pump();
                }
            }
            CONSOLE => self.console_ready(key),
            _ => match token {
                SIGNALS => self.reap(),
                LISTENER => self.accept(),
                _ => self.look_at_oom(),
            },
        }
    }

    /// What follows from everything that has just happened: streams held or let go, clients cut, ends reached.
    fn settle(&mut self) {
        let now = Instant::now();
        for peer in self.peers.values_mut() {
            let Role::Stream(_, attach) = peer.role else { continue };
            if !attach.wait && peer.full_since.is_some_and(|since| now >= since + CATCH_UP) {
                // There is no room to tell it; what it has not read is lost, and the broken connection says so.
                peer.gone = true;
            }
        }
        self.forget_gone();
        let keys: Vec<u32> = self.processes.keys().copied().collect();
        for key in keys {
            self.settle_process(key, now);
        }
        self.settle_end(now);
        if let Some(log) = &mut self.log {
            log.flush(now_ns());
            if std::mem::replace(&mut self.rotations, log.rotations()) < log.rotations() {
                self.event(Event::LogRotated);
            }
        }
        self.forget_gone();
        let keys: Vec<u32> = self.peers.keys().copied().collect();
        for key in keys {
            let Some(peer) = self.peers.get_mut(&key) else { continue };
            if let Role::Stream(process, _) = peer.role {
                peer.gated = self.processes.get(&process).is_some_and(|it| it.waiting() > super::process::MAX_INPUT);
            }
            let wanted = peer.wanted();
            if wanted != peer.flags {
                peer.flags = wanted;
                let data = epoll::EventData::new_u64(PEER | u64::from(key));
                let _ = epoll::modify(&self.epoll, peer.fd(), data, wanted);
            }
        }
    }

    /// Clients that have gone take their streams with them.
    fn forget_gone(&mut self) {
        let gone: Vec<u32> = self.peers.iter().filter(|(_, peer)| peer.gone).map(|(key, _)| *key).collect();
        for key in gone {
            let Some(peer) = self.peers.remove(&key) else { continue };
            let _ = epoll::delete(&self.epoll, peer.fd());
            if let Role::Stream(process, attach) = peer.role {
                self.input_ended(process, attach.stdin);
            }
        }
    }

    /// A client that wrote to standard input has ended its side.
    pub(super) fn input_ended(&mut self, key: u32, wrote: bool) {
        if wrote
            && (key != CONTAINER || self.spec.stdin_once)
            && let Some(process) = self.processes.get_mut(&key)
        {
            process.close_input();
        }
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if self.peers.len() >= MAX_PEERS {
                continue; // Closed: the client sees a broken connection.
            }
            let Ok(peer) = Peer::new(socket) else { continue };
            let key = self.key();
            if self.watch(peer.fd(), PEER | u64::from(key), epoll::EventFlags::IN).is_ok() {
                self.peers.insert(key, peer);
            }
        }
    }

    fn peer_ready(&mut self, key: u32, flags: epoll::EventFlags) {
        let Some(peer) = self.peers.get_mut(&key) else { return };
        if flags.contains(epoll::EventFlags::OUT) {
            peer.pump();
        }
        if flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR) && !flags.contains(epoll::EventFlags::IN) {
            peer.gone = true;
        }
        if flags.contains(epoll::EventFlags::IN) {
            let was_open = !peer.at_end;
            peer.read(&mut self.buffer[..]);
            let (ended, role) = (was_open && peer.at_end, peer.role);
            self.frames(key);
            match role {
                Role::Stream(process, attach) if ended => self.input_ended(process, attach.stdin),
                // It has nothing to hear, and will ask nothing.
                Role::New | Role::Follower if ended => {
                    if let Some(peer) = self.peers.get_mut(&key) {
                        peer.gone = true;
                    }
                }
                _ => {}
            }
        }
    }

    fn console_ready(&mut self, key: u32) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        if process.take_console().is_ok_and(|taken| taken) {
            process.pump();
            // Before the runtime has returned, a client still waits for its answer, and output must not come first.
            if process.pid != 0 {
                self.watch_outs(key);
            }
        }
    }

    /// Starts a call of the runtime.
    pub(super) fn begin(
        &mut self,
        work: Work,
        peer: Option<u32>,
        call: impl FnOnce(&ShimSpec) -> Result<i32, crate::runtime::RuntimeError>,
    ) -> io::Result<()> {
        let job = Job::begin(work, peer, &self.oom_score, || call(&self.spec))?;
        let key = self.key();
        self.watch(job.fd(), JOB | u64::from(key), epoll::EventFlags::IN)?;
        self.jobs.insert(key, job);
        Ok(())
    }

    /// Starts a process: the container's first, or an execution's.
    pub(super) fn launch(
        &mut self,
        work: Work,
        peer: Option<u32>,
        key: u32,
        process: Process,
        streams: crate::runtime::Streams,
    ) -> io::Result<()> {
        let name = if key == CONTAINER { "init".to_owned() } else { format!("exec{key}") };
        let console = process.console_path(&self.spec.run_dir, self.dir.as_raw_fd());
        if let Some((listener, _)) = &process.console {
            self.watch(listener.as_fd(), CONSOLE | u64::from(key), epoll::EventFlags::IN)?;
        }
        self.processes.insert(key, process);
        let begun = self.begin(work, peer, move |spec| {
            let pid_file = spec.run_dir.join(format!("{name}.pid"));
            let mut launch = Launch::new(&pid_file);
            launch.console_socket = console.as_deref();
            launch.streams = streams;
            launch.no_pivot = spec.runtime.no_pivot;
            let runtime = runtime(&spec.runtime);
            if key == CONTAINER {
                return runtime.create(&spec.id, &spec.bundle, launch);
            }
            let json = spec.run_dir.join(format!("{name}.json"));
            let pid = runtime.exec(&spec.id, &json, launch);
            let _ = fs::remove_file(json);
            let _ = fs::remove_file(&pid_file);
            pid
        });
        if begun.is_err() {
            self.processes.remove(&key);
        }
        begun
    }

    fn create(&mut self) -> io::Result<()> {
        let (mut process, streams) = Process::new(String::new(), "init", self.spec.tty, self.spec.stdin)?;
        process.size = self.spec.terminal_size;
        self.launch(Work::Create, None, CONTAINER, process, streams)
    }

    fn job_ready(&mut self, key: u32) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        let answer = match job.read() {
            Ok(None) => return,
            Ok(Some(answer)) => answer,
            Err(error) => Err(Problem::new(ProblemCode::System, error.to_string())),
        };
        let Some(job) = self.jobs.remove(&key) else { return };
        let _ = epoll::delete(&self.epoll, job.fd());
        if let Work::Create | Work::Exec(_) = job.work {
            let process = if let Work::Exec(process) = job.work { process } else { CONTAINER };
            self.launched(process, &answer);
        }
        if job.work == Work::Create {
            self.created(answer);
        } else {
            self.answered(&job, answer);
        }
        // Ends that came before their process was known.
        if !launching(&self.jobs) {
            self.unclaimed = Vec::new();
        }
    }

    /// The process runs: its terminal has been sent, its pipes may be read; it may even have ended.
    fn launched(&mut self, key: u32, answer: &Answer) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        let Ok(pid) = *answer else { return };
        process.pid = pid;
        if process.console.is_some() {
            self.console_ready(key);
        } else {
            self.watch_outs(key);
        }
        if let Some(at) = self.unclaimed.iter().position(|(of, _)| *of == pid) {
            let (_, exit) = self.unclaimed.swap_remove(at);
            self.process_ended(key, exit);
        }
    }

    fn created(&mut self, answer: Answer) {
        let joined = std::mem::replace(&mut self.joined, Ok(()));
        let joined = joined.map_err(|error| Problem::new(ProblemCode::System, format!("cannot join {error}")));
        let recorded = answer.and_then(|pid| joined.map(|()| pid)).and_then(|pid| {
            let cgroups = super::cgroups::of(pid);
            // Without the memory controller there is nothing to watch.
            self.oom = OomWatch::new(&cgroups).ok();
            let me = i32::try_from(std::process::id()).unwrap_or(0);
            let record = ShimRecord {
                id: self.spec.id.clone(),
                shim_pid: me,
                shim_start: StartTime::of(me).unwrap_or_default(),
                pid,
                start: StartTime::of(pid).unwrap_or_default(),
                started_at_ns: 0,
                cgroups,
                exit_file: self.spec.exit_file.clone(),
            };
            let failed = |error| Problem::new(ProblemCode::System, format!("cannot write the shim's record: {error}"));
            record.write(&self.spec.run_dir).map_err(failed)?;
            self.record = Some(record);
            Ok(())
        });
        if let Some(oom) = &self.oom {
            let _ = self.watch(oom.fd(), OOM, oom.flags);
        }
        let message = match recorded {
            Ok(()) => Message::Done(Box::new(self.status())),
            Err(problem) => {
                // Half of it may be there.
                let _ = runtime(&self.spec.runtime).delete(&self.spec.id, true);
                let _ = fs::remove_file(SOCKET);
                self.done = Some(ExitCode::FAILURE);
                Message::Failed(problem)
            }
        };
        if let Some(report) = self.report.take() {
            let _ = report_to(&report, &message);
        }
    }

    /// Collects every process that has ended.
    fn reap(&mut self) {
        let _ = rustix::io::read(&self.signals, &mut [0; 128]);
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            let signal = status.terminating_signal();
            let code = status.exit_status().or_else(|| signal.map(|signal| 128 + signal)).unwrap_or(255);
            let (pid, exit) = (pid.as_raw_nonzero().get(), ExitStatus { code, signal });
            match self.processes.iter().find(|(_, process)| process.pid == pid).map(|(key, _)| *key) {
                Some(key) => self.process_ended(key, exit),
                None if launching(&self.jobs) && self.unclaimed.len() < MAX_UNCLAIMED => {
                    self.unclaimed.push((pid, exit));
                }
                None => {} // A child of ours that called the runtime, or somebody's orphan.
            }
        }
    }

    pub(super) fn look_at_oom(&mut self) {
        if let Some(oom) = &mut self.oom
            && oom.look()
        {
            let kills = oom.kills;
            self.event(Event::Oom { kills });
        }
    }

    /// Tells every follower.
    pub(super) fn event(&mut self, event: Event) {
        let message = Message::Event(event);
        for peer in self.peers.values_mut().filter(|peer| peer.role == Role::Follower) {
            peer.tell(&message);
        }
    }

    pub(super) fn status(&self) -> Status {
        let running = |(key, it): (&u32, &Process)| {
            (*key != CONTAINER).then(|| ExecStatus { id: it.id.clone(), pid: it.pid, exit: it.exit })
        };
        let attached = self.peers.values().filter(|peer| matches!(peer.role, Role::Stream(CONTAINER, _))).count();
        Status {
            version: VERSION,
            phase: self.phase,
            shim_pid: i32::try_from(std::process::id()).unwrap_or(0),
            pid: self.record.as_ref().map_or(0, |record| record.pid),
            started_at_ns: self.started_at_ns,
            exit: self.end.exit.clone(),
            oom_kills: self.oom.as_ref().map_or(0, |oom| oom.kills),
            execs: self.processes.iter().filter_map(running).chain(self.past_execs.iter().cloned()).collect(),
            log_dropped_bytes: self.log.as_ref().map_or(0, Writer::dropped),
            attached: u32::try_from(attached).unwrap_or(u32::MAX),
        }
    }

    pub(super) fn is_followed(&self) -> bool {
        self.peers.values().any(|peer| peer.role == Role::Follower)
    }

    /// When something must happen without anybody's doing.
    fn next_deadline(&self) -> Option<Instant> {
        let full = |peer: &Peer| match peer.role {
            Role::Stream(_, attach) if !attach.wait => peer.full_since.map(|since| since + CATCH_UP),
            _ => None,
        };
        let cut = self.peers.values().filter_map(full);
        let drained = self
            .processes
            .values()
            .filter_map(|process| process.drained_by.filter(|_| !process.held && !process.is_drained()));
        let give_up =
            Some(self.start_by).filter(|_| self.phase == Phase::Created && !self.is_followed() && !self.end.begun);
        cut.chain(drained).chain(give_up).chain(self.end_deadline()).min()
    }

    /// Whether a container that was not started is to be given up.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.phase == Phase::Created && self.record.is_some() && !self.is_followed() && now >= self.start_by
    }

    pub(super) fn key(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1).max(1);
        self.next
    }

    pub(super) fn watch(&self, fd: BorrowedFd<'_>, token: u64, flags: epoll::EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags)?)
    }

    pub(super) fn unwatch(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, fd);
    }
}

/// Whether a process is being made whose id is not known yet.
fn launching(jobs: &BTreeMap<u32, Job>) -> bool {
    jobs.values().any(|job| matches!(job.work, Work::Create | Work::Exec(_)))
}
