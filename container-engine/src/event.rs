//! What happens to containers, images, networks and volumes, as a stream.
//!
//! Always true:
//! - Numbers grow by one with each event and never repeat while the agent runs; they begin anew with the agent.
//! - Memory is bounded: the last [`KEPT`] events are kept, each at most a few hundred bytes. Who reads too slowly is
//!   told how many it missed ([`Next::Missed`]); nobody is slowed down by a reader.
//! - No reader, no work: publishing is a push to a ring and a wake-up.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::owner::Owner;

/// Events kept for replay.
pub const KEPT: usize = 1024;
/// Longest name or attribute kept of an event, bytes.
const MAX_TEXT: usize = 512;

/// What an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A container.
    Container,
    /// An image.
    Image,
    /// A network.
    Network,
    /// A volume.
    Volume,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// Made: container, network, volume.
    Created,
    /// A container's first process runs.
    Started {
        /// In the host's pid namespace.
        pid: u32,
    },
    /// A container's first process ended.
    Exited {
        /// As a shell tells it: 128 + signal where a signal ended it.
        code: i32,
        /// The kernel killed it for want of memory.
        oom_killed: bool,
    },
    /// The kernel killed a process of a container for want of memory.
    Oom,
    /// All its processes stand still.
    Paused,
    /// They go on.
    Unpaused,
    /// A signal was sent on somebody's request.
    Killed {
        /// Number of the signal.
        signal: i32,
    },
    /// It was asked to stop.
    Stopping,
    /// It has another name now.
    Renamed {
        /// The former one.
        from: String,
    },
    /// Its limits were changed.
    Updated,
    /// It is gone: container, image, network, volume.
    Removed,
    /// Somebody attached.
    Attached,
    /// Its terminal has another size.
    Resized,
    /// A further process was started in it.
    ExecStarted {
        /// Which.
        exec: String,
    },
    /// A further process ended.
    ExecExited {
        /// Which.
        exec: String,
        /// As a shell tells it.
        code: i32,
    },
    /// Files were copied out of it or into it.
    Copied {
        /// Path in the container.
        path: String,
        /// Whether into it.
        inward: bool,
    },
    /// An image was made of it.
    Committed {
        /// The image.
        image: String,
    },
    /// An image is here now.
    Pulled,
    /// An image was sent to a registry.
    Pushed,
    /// An image has a further name.
    Tagged,
    /// An image has a name less.
    Untagged,
    /// An image came from an archive.
    Loaded,
    /// An image went to an archive.
    Saved,
    /// A container joined a network.
    Connected {
        /// The container.
        container: String,
    },
    /// A container left a network.
    Disconnected {
        /// The container.
        container: String,
    },
}

impl Action {
    /// Its name, as in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Started { .. } => "started",
            Self::Exited { .. } => "exited",
            Self::Oom => "oom",
            Self::Paused => "paused",
            Self::Unpaused => "unpaused",
            Self::Killed { .. } => "killed",
            Self::Stopping => "stopping",
            Self::Renamed { .. } => "renamed",
            Self::Updated => "updated",
            Self::Removed => "removed",
            Self::Attached => "attached",
            Self::Resized => "resized",
            Self::ExecStarted { .. } => "exec_started",
            Self::ExecExited { .. } => "exec_exited",
            Self::Copied { .. } => "copied",
            Self::Committed { .. } => "committed",
            Self::Pulled => "pulled",
            Self::Pushed => "pushed",
            Self::Tagged => "tagged",
            Self::Untagged => "untagged",
            Self::Loaded => "loaded",
            Self::Saved => "saved",
            Self::Connected { .. } => "connected",
            Self::Disconnected { .. } => "disconnected",
        }
    }

    /// Docker's name of it; of what was removed it depends on what that was.
    pub fn docker(&self, kind: Kind) -> &'static str {
        match self {
            Self::Created => "create",
            Self::Started { .. } => "start",
            Self::Exited { .. } => "die",
            Self::Oom => "oom",
            Self::Paused => "pause",
            Self::Unpaused => "unpause",
            Self::Killed { .. } => "kill",
            Self::Stopping => "stop",
            Self::Renamed { .. } => "rename",
            Self::Updated => "update",
            Self::Removed if kind == Kind::Image => "delete",
            Self::Removed => "destroy",
            Self::Attached => "attach",
            Self::Resized => "resize",
            Self::ExecStarted { .. } => "exec_start",
            Self::ExecExited { .. } => "exec_die",
            Self::Copied { inward: true, .. } => "extract-to-dir",
            Self::Copied { inward: false, .. } => "archive-path",
            Self::Committed { .. } => "commit",
            Self::Pulled => "pull",
            Self::Pushed => "push",
            Self::Tagged => "tag",
            Self::Untagged => "untag",
            Self::Loaded => "load",
            Self::Saved => "save",
            Self::Connected { .. } => "connect",
            Self::Disconnected { .. } => "disconnect",
        }
    }

    fn is_called(&self, name: &str, kind: Kind) -> bool {
        name == self.name() || name == self.docker(kind)
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Grows by one.
    pub seq: u64,
    /// Wall clock, nanoseconds since 1970 UTC.
    pub time_ns: i64,
    /// Whose it is.
    pub owner: Owner,
    /// What it is about.
    pub kind: Kind,
    /// Id of a container or image (the reference, where it was pulled or pushed), name of a network or volume.
    pub id: String,
    /// What happened.
    #[serde(flatten)]
    pub action: Action,
    /// Further facts: the `name`; a container's `image` and labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// Which events are wanted: each field that is not empty must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Whose.
    pub owner: Option<Owner>,
    /// Any of these kinds.
    pub kinds: Vec<Kind>,
    /// Any of these actions, by their name here or Docker's.
    pub actions: Vec<String>,
    /// Any of these ids or names; a prefix of an id is enough.
    pub ids: Vec<String>,
    /// All of these: `KEY` or `KEY=VALUE`.
    pub labels: Vec<String>,
}

impl Filter {
    /// Whether the event is wanted.
    pub fn matches(&self, event: &Event) -> bool {
        let any = |empty: bool, hit: bool| empty || hit;
        let name = event.attributes.get("name");
        let named = |want: &String| !want.is_empty() && (event.id.starts_with(want.as_str()) || name == Some(want));
        self.owner.as_ref().is_none_or(|owner| *owner == event.owner)
            && any(self.kinds.is_empty(), self.kinds.contains(&event.kind))
            && any(self.actions.is_empty(), self.actions.iter().any(|name| event.action.is_called(name, event.kind)))
            && any(self.ids.is_empty(), self.ids.iter().any(named))
            && self.labels.iter().all(|label| has_label(&event.attributes, label))
    }
}

/// Whether `labels` has `KEY` or `KEY=VALUE`.
pub fn has_label(labels: &BTreeMap<String, String>, want: &str) -> bool {
    match want.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|have| have == value),
        None => labels.contains_key(want),
    }
}

/// What a reader gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// An event.
    Event(Arc<Event>),
    /// So many events passed while the reader was away; wanted ones may have been among them.
    Missed(u64),
}

/// All events; cheap to clone.
#[derive(Clone)]
pub struct Events(Arc<Inner>);

struct Inner {
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
}

#[derive(Default)]
struct Ring {
    events: VecDeque<Arc<Event>>,
    /// Number of the newest event; 0 before the first.
    newest: u64,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("newest", &*self.0.newest.borrow()).finish()
    }
}

impl Default for Events {
    fn default() -> Self {
        Self(Arc::new(Inner { ring: Mutex::default(), newest: watch::Sender::new(0) }))
    }
}

impl Events {
    /// No events yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Tells everybody of something that has a name and nothing else to say.
    pub fn tell(&self, owner: &Owner, kind: Kind, id: &str, name: &str, action: Action) {
        self.publish(owner, kind, id, action, BTreeMap::from([("name".to_owned(), name.to_owned())]));
    }

    /// Tells everybody.
    pub fn publish(&self, owner: &Owner, kind: Kind, id: &str, action: Action, attributes: BTreeMap<String, String>) {
        let attributes = attributes.into_iter().map(|(key, value)| (cut(key), cut(value))).collect();
        let mut ring = self.ring();
        ring.newest += 1;
        let (seq, time_ns) = (ring.newest, now_ns());
        let event = Event { seq, time_ns, owner: owner.clone(), kind, id: cut(id.to_owned()), action, attributes };
        if ring.events.len() >= KEPT {
            ring.events.pop_front();
        }
        ring.events.push_back(Arc::new(event));
        drop(ring);
        self.0.newest.send_if_modified(|newest| {
            *newest = (*newest).max(seq);
            true
        });
    }

    /// The events from now on that `filter` wants; with `since_ns` (wall clock) those still kept from then on come first.
    pub fn subscribe(&self, filter: Filter, since_ns: Option<i64>) -> Subscription {
        // Subscribed before the ring is read: an event in between is seen in the ring, not lost.
        let newest = self.0.newest.subscribe();
        let ring = self.ring();
        let old = |since: i64| ring.events.iter().find(|event| event.time_ns >= since).map(|event| event.seq - 1);
        let last = since_ns.and_then(old).unwrap_or(ring.newest);
        drop(ring);
        Subscription { inner: self.0.clone(), newest, filter, last }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One reader's place in the stream.
pub struct Subscription {
    inner: Arc<Inner>,
    newest: watch::Receiver<u64>,
    filter: Filter,
    /// Number of the last event looked at.
    last: u64,
}

impl Subscription {
    /// The next wanted event; waits for it. Cancel-safe. `None` when the engine is gone.
    pub async fn next(&mut self) -> Option<Next> {
        loop {
            self.newest.borrow_and_update();
            if let Some(next) = self.try_next() {
                return Some(next);
            }
            // The sender lives in `inner`, which this reader holds: an error cannot come, and would mean the end.
            self.newest.changed().await.ok()?;
        }
    }

    /// The next wanted event that has already happened.
    pub fn try_next(&mut self) -> Option<Next> {
        let ring = self.inner.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let first = ring.events.front()?.seq;
        if self.last + 1 < first {
            let missed = first - self.last - 1;
            self.last = first - 1;
            return Some(Next::Missed(missed));
        }
        while self.last < ring.newest {
            self.last += 1;
            let place = usize::try_from(self.last - first).ok()?;
            let event = ring.events.get(place)?;
            if self.filter.matches(event) {
                return Some(Next::Event(event.clone()));
            }
        }
        None
    }
}

/// Now, nanoseconds since 1970 UTC by the host's clock.
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// At most [`MAX_TEXT`] bytes of a text.
fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(events: &Events, id: &str, action: Action) {
        let attributes =
            BTreeMap::from([("name".to_owned(), format!("n-{id}")), ("tier".to_owned(), "web".to_owned())]);
        events.publish(&Owner::Local, Kind::Container, id, action, attributes);
    }

    fn seq(next: Option<Next>) -> Option<u64> {
        match next {
            Some(Next::Event(event)) => Some(event.seq),
            _ => None,
        }
    }

    #[tokio::test]
    async fn a_reader_gets_what_comes_after_it_and_replay_what_came_before() {
        let events = Events::new();
        publish(&events, "a", Action::Created);
        let mut live = events.subscribe(Filter::default(), None);
        let mut replay = events.subscribe(Filter::default(), Some(0));
        publish(&events, "b", Action::Created);
        assert_eq!(seq(live.next().await), Some(2));
        assert_eq!(live.try_next(), None);
        assert_eq!(seq(replay.next().await), Some(1));
        assert_eq!(seq(replay.next().await), Some(2));
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken() {
        let events = Events::new();
        let mut reader = events.subscribe(Filter { actions: vec!["oom".into()], ..Filter::default() }, None);
        let ((), next) = tokio::join!(
            async {
                publish(&events, "a", Action::Created);
                tokio::task::yield_now().await;
                publish(&events, "a", Action::Oom);
            },
            reader.next()
        );
        assert_eq!(seq(next), Some(2));
    }

    #[test]
    fn a_slow_reader_is_told_what_it_missed_and_memory_stays() {
        let events = Events::new();
        let mut slow = events.subscribe(Filter::default(), None);
        for n in 0..KEPT + 10 {
            publish(&events, &n.to_string(), Action::Created);
        }
        assert_eq!(slow.try_next(), Some(Next::Missed(10)));
        assert_eq!(seq(slow.try_next()), Some(11));
        let rest = std::iter::from_fn(|| slow.try_next()).count();
        assert_eq!(rest, KEPT - 1);
        assert_eq!(events.ring().events.len(), KEPT);
    }

    #[test]
    fn filters() {
        let events = Events::new();
        publish(&events, "abc", Action::Exited { code: 3, oom_killed: false });
        let event = events.ring().events[0].clone();
        #[track_caller]
        fn check(event: &Event, filter: Filter, want: bool) {
            assert_eq!(filter.matches(event), want, "{filter:?}");
        }
        let none = Filter::default;
        check(&event, none(), true);
        check(&event, Filter { kinds: vec![Kind::Image], ..none() }, false);
        check(&event, Filter { kinds: vec![Kind::Image, Kind::Container], ..none() }, true);
        check(&event, Filter { actions: vec!["exited".into()], ..none() }, true);
        check(&event, Filter { actions: vec!["die".into()], ..none() }, true);
        check(&event, Filter { actions: vec!["started".into()], ..none() }, false);
        check(&event, Filter { ids: vec!["ab".into()], ..none() }, true);
        check(&event, Filter { ids: vec!["n-abc".into()], ..none() }, true);
        check(&event, Filter { ids: vec![String::new()], ..none() }, false);
        check(&event, Filter { owner: Some(Owner::Job("1".into())), ..none() }, false);
        check(&event, Filter { labels: vec!["tier".into(), "tier=web".into()], ..none() }, true);
        check(&event, Filter { labels: vec!["tier=db".into()], ..none() }, false);
    }

    #[test]
    fn names_of_actions_are_those_in_json() {
        for action in
            [Action::Oom, Action::Exited { code: 1, oom_killed: true }, Action::ExecStarted { exec: "x".into() }]
        {
            let json = serde_json::to_value(&action).unwrap();
            assert_eq!(json["action"], action.name());
        }
    }
}
