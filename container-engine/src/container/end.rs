//! Following a shim: what happens to its container, and the end of it.

use std::{sync::Arc, time::Duration};

use super::{
    Containers, Status,
    record::{Entry, lock},
};
use crate::{
    event::Action,
    logs::compress_rotated,
    shim::{Event, Events, ExitRecord, Reason, Recovered, ShimClient, recover_broken},
};

/// How long the runtime may take to forget a container that has ended.
const FORGET: Duration = Duration::from_secs(30);
/// Times that a shim which cut us off, and still lives, is followed again.
const FOLLOW_TRIES: u32 = 5;

impl Containers {
    /// Follows one life of a container to its end.
    pub(super) async fn follow(&self, entry: Arc<Entry>, mut events: Events) {
        let mut tries = 0;
        loop {
            match self.until_exit(&entry, &mut events).await {
                Some(exit) => return self.ended(&entry, exit, Some(events)).await,
                None => match self.look_again(&entry, &mut tries).await {
                    Again::Follow(again) => events = *again,
                    Again::Ended(exit) => return self.ended(&entry, exit, None).await,
                },
            }
        }
    }

    /// Events up to the end; `None` where the shim broke off.
    async fn until_exit(&self, entry: &Arc<Entry>, events: &mut Events) -> Option<ExitRecord> {
        loop {
            match events.next().await {
                Ok(Some(Event::Exited(exit))) => return Some(exit),
                Ok(Some(event)) => self.happened(entry, event),
                Ok(None) => {
                    let places = self.places(&entry.id);
                    let mut found = [places.exit(), places.run.join("exit.json")].into_iter();
                    return found.find_map(|path| ExitRecord::read(&path).ok().flatten());
                }
                Err(error) => {
                    tracing::debug!(%error, container = %entry.id, "a shim broke off");
                    return None;
                }
            }
        }
    }

    fn happened(&self, entry: &Arc<Entry>, event: Event) {
        match event {
            Event::Oom { .. } => self.tell(entry, Action::Oom),
            Event::Paused => self.stands(entry, Status::Paused),
            Event::Resumed => self.stands(entry, Status::Running),
            Event::ExecStarted { id, pid } => {
                if let Some(exec) = lock(&entry.execs).get_mut(&id) {
                    exec.running = true;
                    exec.pid = u32::try_from(pid).ok();
                }
                self.tell(entry, Action::ExecStarted { exec: id });
            }
            Event::ExecExited { id, exit } => {
                if let Some(exec) = lock(&entry.execs).get_mut(&id) {
                    exec.running = false;
                    exec.pid = None;
                    exec.exit_code = Some(exit.code);
                }
                self.tell(entry, Action::ExecExited { exec: id, code: exit.code });
            }
            Event::LogRotated => self.compress(entry),
            Event::Started { .. } | Event::Exited(_) | Event::Deleted | Event::Unknown => {}
        }
    }

    /// Rotated files of the log, beside everything else.
    fn compress(&self, entry: &Entry) {
        let path = self.log_path(entry);
        self.task(async move {
            let shown = path.clone();
            if let Ok(Err(error)) = tokio::task::spawn_blocking(move || compress_rotated(&path)).await {
                tracing::warn!(%error, log = %shown.display(), "a rotated log stays uncompressed");
            }
        });
    }

    /// Frozen, or thawed: told once, whoever hears of it first.
    pub(super) fn stands(&self, entry: &Arc<Entry>, status: Status) {
        let news = entry.change(|record| {
            let news = record.state.status.is_alive() && record.state.status != status;
            if news {
                record.state.status = status;
            }
            news
        });
        if news {
            self.tell(entry, if status == Status::Paused { Action::Paused } else { Action::Unpaused });
            self.write_soon(entry);
        }
    }

    /// The shim broke off: it was killed, or we were slow.
    async fn look_again(&self, entry: &Arc<Entry>, tries: &mut u32) -> Again {
        let places = self.places(&entry.id);
        *tries += 1;
        if *tries <= FOLLOW_TRIES
            && let Ok((status, events)) = ShimClient::at(&places.run).events().await
        {
            return match status.exit {
                Some(exit) => Again::Ended(exit),
                None => Again::Follow(Box::new(events)),
            };
        }
        let found = tokio::task::spawn_blocking(move || match recover_broken(&places.run, &places.exit())? {
            Recovered::Exited(exit) => Ok(exit),
            Recovered::Lost(lost) => lost.end(),
            // A shim that lives and does not answer is as good as lost; its container goes with it below.
            Recovered::Alive(_) | Recovered::Nothing => Err(std::io::Error::other("its shim does not answer")),
        });
        let exit = match found.await {
            Ok(Ok(exit)) => exit,
            Ok(Err(error)) => {
                tracing::error!(%error, container = %entry.id, "a container is given up for lost");
                lost()
            }
            Err(error) => {
                tracing::error!(%error, container = %entry.id, "a container is given up for lost");
                lost()
            }
        };
        Again::Ended(exit)
    }

    /// Records the end, tells everybody, and takes the remains away.
    pub(super) async fn ended(&self, entry: &Arc<Entry>, exit: ExitRecord, events: Option<Events>) {
        // Held before anybody hears of the end, so that whoever starts it again waits for the remains to go.
        let _gate = entry.gate.lock().await;
        if !entry.status().is_alive() {
            return;
        }
        self.set_ended(entry, &exit);
        if let Some(mut events) = events {
            // Mounts and cgroup are free when the runtime has forgotten it.
            let forgotten = async {
                while let Ok(Some(event)) = events.next().await {
                    if event == Event::Deleted {
                        return;
                    }
                }
            };
            if tokio::time::timeout(FORGET, forgotten).await.is_err() {
                tracing::warn!(container = %entry.id, "the runtime does not forget an ended container; it is removed by force");
            }
        }
        self.take_down(entry, true).await;
        if entry.with(|record| record.spec.auto_remove) {
            self.discard(entry, true).await;
        } else {
            self.again(entry);
        }
    }

    pub(super) fn set_ended(&self, entry: &Arc<Entry>, exit: &ExitRecord) {
        let finished = i64::try_from(exit.finished_at_ns).ok().filter(|at| *at > 0);
        entry.change(|record| {
            let state = &mut record.state;
            state.status = Status::Exited;
            state.pid = None;
            state.exit_code = Some(exit.code);
            state.oom_killed = exit.oom_killed;
            state.finished_ns = Some(finished.unwrap_or_else(crate::event::now_ns));
            state.error = why(exit.reason).map(str::to_owned);
        });
        for exec in lock(&entry.execs).values_mut().filter(|exec| exec.running) {
            exec.running = false;
            exec.pid = None;
            exec.exit_code.get_or_insert(137);
        }
        if exit.oom_killed {
            self.tell(entry, Action::Oom);
        }
        self.tell(entry, Action::Exited { code: exit.code, oom_killed: exit.oom_killed });
        self.write_soon(entry);
    }
}

enum Again {
    Follow(Box<Events>),
    Ended(ExitRecord),
}

/// An end of which nothing is known.
pub(super) fn lost() -> ExitRecord {
    ExitRecord {
        code: 137,
        signal: Some(9),
        oom_killed: false,
        started_at_ns: 0,
        finished_at_ns: u64::try_from(crate::event::now_ns()).unwrap_or(0),
        reason: Reason::ShimLost,
    }
}

/// What is unusual about an end.
pub(super) fn why(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::ShimLost => Some("its shim was killed, so it was ended too and its exit code is not known"),
        Reason::NeverStarted => Some("it was set up and nobody started it in time"),
        Reason::Exited | Reason::OomKilled | Reason::Unknown => None,
    }
}
