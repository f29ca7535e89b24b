//! containerLogs: a container's log as it was written, across rotations.

use std::{io, time::SystemTime};

use bytes::{Bytes, BytesMut};
use container_engine::logs::{Entry, ReadOptions, Reader, rfc3339};
use futures_util::FutureExt;
use hyper::StatusCode;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use tokio::sync::mpsc;

use super::{
    answer::{self, Answer},
    directory::{Instance, Instances},
    query::Query,
};

/// Bytes sent at once where there are as many.
const BATCH: usize = 32 << 10;
/// Pieces on their way to a client.
pub const QUEUE: usize = 4;

/// What is wanted of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is a parameter of the request")]
pub struct Options {
    /// Goes on until the container ends.
    pub follow: bool,
    /// Of the attempt before the last.
    pub previous: bool,
    /// Each line begins with its time.
    pub timestamps: bool,
    since: Since,
    tail: Option<u64>,
    limit: Option<u64>,
    stdout: bool,
    stderr: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Since {
    Begin,
    SecondsAgo(u64),
    Time(u64),
}

impl Options {
    /// Of a request. Texts are the kubelet's: clients show them.
    pub fn of(query: &Query) -> Result<Self, Answer> {
        let undecodable = || answer::text(StatusCode::BAD_REQUEST, r#"{"message": "Unable to decode query."}"#);
        let invalid = || answer::text(StatusCode::UNPROCESSABLE_ENTITY, r#"{"message": "Invalid request."}"#);
        let number = |name| query.get(name).map(|value| value.parse::<i64>().map_err(|_| undecodable())).transpose();
        // The older name goes before; all lines are no limit.
        let tail = match query.get("tail").filter(|tail| !tail.is_empty()) {
            Some("all") => None,
            Some(_) => number("tail")?,
            None => number("tailLines")?,
        };
        let (limit, seconds) = (number("limitBytes")?, number("sinceSeconds")?);
        let time = match query.get("sinceTime").filter(|time| !time.is_empty()) {
            Some(text) => Some(text.parse::<jiff::Timestamp>().map_err(|_| undecodable())?),
            None => None,
        };
        let stream = query.get("stream").unwrap_or("All");
        let (stdout, stderr) = match stream {
            "All" => (true, true),
            "Stdout" => (true, false),
            "Stderr" => (false, true),
            _ => return Err(invalid()),
        };
        let is_bad = tail.is_some_and(|tail| tail < 0)
            || limit.is_some_and(|limit| limit < 1)
            || seconds.is_some_and(|seconds| seconds < 1)
            || (seconds.is_some() && time.is_some())
            || (stream != "All" && tail.is_some());
        if is_bad {
            return Err(invalid());
        }
        let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
        let since = match (seconds, time) {
            (Some(seconds), _) => Since::SecondsAgo(unsigned(seconds)),
            (None, Some(time)) => Since::Time(u64::try_from(time.as_nanosecond()).unwrap_or(0)),
            (None, None) => Since::Begin,
        };
        Ok(Self {
            follow: query.is_true("follow"),
            previous: query.is_true("previous"),
            timestamps: query.is_true("timestamps"),
            since,
            tail: tail.map(unsigned),
            limit: limit.map(unsigned),
            stdout,
            stderr,
        })
    }

    /// What the engine is to read.
    pub fn read(&self, now: SystemTime) -> ReadOptions {
        let now_ns = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
        let now_ns = u64::try_from(now_ns).unwrap_or(u64::MAX);
        let since_ns = match self.since {
            Since::Begin => None,
            Since::SecondsAgo(seconds) => Some(now_ns.saturating_sub(seconds.saturating_mul(1_000_000_000))),
            Since::Time(time) => Some(time),
        };
        ReadOptions {
            follow: self.follow,
            tail: self.tail,
            since_ns,
            until_ns: None,
            stdout: self.stdout,
            stderr: self.stderr,
            // Bytes of what is sent are counted here, times included.
            limit_bytes: None,
        }
    }
}

/// Whether the pod has a container of that name, of whatever kind.
pub fn has_container(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.containers.iter().any(|it| it.name == name)
        || spec.init_containers.iter().flatten().any(|it| it.name == name)
        || spec.ephemeral_containers.iter().flatten().any(|it| it.name == name)
}

/// The status of a container of whatever kind.
pub fn status_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    all.into_iter().flatten().flatten().find(|it| it.name == name)
}

/// Which attempt's log is meant; else why there is none.
pub fn choose(
    pod: &str,
    container: &str,
    status: Option<&ContainerStatus>,
    instances: Instances,
    previous: bool,
) -> Result<Instance, String> {
    let state = status.and_then(|status| status.state.as_ref());
    let waiting = state.and_then(|state| state.waiting.as_ref());
    let Instances { last, previous: before } = instances;
    if previous {
        // One that waits to be started again: its last attempt is the previous one of the one to come.
        let is_down = waiting.is_some() && last.as_ref().is_some_and(|last| !last.running);
        let found = if is_down { last } else { before };
        return found.ok_or_else(|| format!("previous terminated container {container:?} in pod {pod:?} not found"));
    }
    if let Some(last) = last {
        return Ok(last);
    }
    let Some(_) = status else {
        return Err(format!("container {container:?} in pod {pod:?} is not available"));
    };
    let named = format!("container {container:?} in pod {pod:?}");
    Err(match waiting.map(|waiting| waiting.reason.as_deref().unwrap_or_default()) {
        Some("ErrImagePull") => format!("{named} is waiting to start: image can't be pulled"),
        Some("ImagePullBackOff") => format!("{named} is waiting to start: trying and failing to pull image"),
        Some(reason) => format!("{named} is waiting to start: {reason}"),
        None if state.is_some_and(|state| state.terminated.is_some()) => format!("{named} is terminated"),
        None => format!("{named} is waiting to start - no logs yet"),
    })
}

/// Text of a log, as it goes to a client.
struct Writer {
    timestamps: bool,
    left: Option<u64>,
    begins_line: bool,
    text: BytesMut,
}

impl Writer {
    fn new(options: &Options) -> Self {
        Self { timestamps: options.timestamps, left: options.limit, begins_line: true, text: BytesMut::new() }
    }

    /// `false`: the limit is reached.
    fn add(&mut self, entry: &Entry) -> bool {
        let before = self.text.len();
        if self.timestamps && self.begins_line {
            self.text.extend_from_slice(rfc3339(entry.time_ns).as_bytes());
            self.text.extend_from_slice(b" ");
        }
        self.text.extend_from_slice(&entry.text);
        if !entry.partial {
            self.text.extend_from_slice(b"\n");
        }
        self.begins_line = !entry.partial;
        let Some(left) = &mut self.left else { return true };
        let added = self.text.len() - before;
        let allowed = added.min(usize::try_from(*left).unwrap_or(usize::MAX));
        self.text.truncate(before + allowed);
        *left -= allowed as u64;
        *left > 0
    }
}

/// Sends a log until its end, its limit, or until nobody listens.
pub async fn send(mut reader: Reader, options: Options, to: mpsc::Sender<io::Result<Bytes>>) {
    let mut writer = Writer::new(&options);
    let mut goes_on = true;
    while goes_on {
        // What is there goes together; what is waited for goes alone, at once.
        let next = match reader.next().now_or_never() {
            Some(next) if writer.text.len() < BATCH => next,
            ready => {
                if !writer.text.is_empty() && to.send(Ok(writer.text.split().freeze())).await.is_err() {
                    return;
                }
                if let Some(next) = ready {
                    next
                } else {
                    tokio::select! {
                        next = reader.next() => next,
                        () = to.closed() => return,
                    }
                }
            }
        };
        match next {
            Ok(Some(entry)) => goes_on = writer.add(&entry),
            Ok(None) => goes_on = false,
            Err(error) => {
                tracing::warn!(error = %board::tasks::chain(&error), "a log that is being read cannot be read on");
                let _ = to.send(Err(io::Error::other("the log cannot be read on"))).await;
                return;
            }
        }
    }
    if !writer.text.is_empty() {
        let _ = to.send(Ok(writer.text.freeze())).await;
    }
}

#[cfg(test)]
mod tests {
    use container_engine::container::ContainerId;
    use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStateWaiting};
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn options(query: &str) -> Result<Options, u16> {
        Options::of(&Query::parse(query)).map_err(|answer| answer.status().as_u16())
    }

    #[test]
    fn options_are_read() {
        let all = options("follow=true&previous=1&timestamps=&sinceSeconds=60&tailLines=5&limitBytes=100").unwrap();
        assert!(all.follow && all.previous && all.timestamps && all.stdout && all.stderr);
        let read = all.read(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(100));
        assert_eq!((read.since_ns, read.tail, read.follow), (Some(40_000_000_000), Some(5), true));
        let none = options("").unwrap().read(SystemTime::now());
        assert_eq!(none, ReadOptions::default());
        let time = options("sinceTime=1970-01-01T01:00:01%2B01:00").unwrap().read(SystemTime::now());
        assert_eq!(time.since_ns, Some(1_000_000_000));
        assert_eq!(options("tail=all&tailLines=3").unwrap().tail, None);
        assert_eq!(options("tail=7&tailLines=3").unwrap().tail, Some(7));
        let out = options("stream=Stdout").unwrap();
        assert_eq!((out.stdout, out.stderr), (true, false));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        #[track_caller]
        fn check(query: &str, status: u16) {
            assert_eq!(options(query), Err(status), "{query}");
        }
        check("tailLines=x", 400);
        check("sinceTime=yesterday", 400);
        check("limitBytes=99999999999999999999", 400);
        check("tailLines=-1", 422);
        check("limitBytes=0", 422);
        check("sinceSeconds=0", 422);
        check("sinceSeconds=5&sinceTime=1970-01-01T00:00:01Z", 422);
        check("stream=stdin", 422);
        check("stream=Stdout&tailLines=5", 422);
    }

    fn instance(attempt: u32, running: bool) -> Instance {
        Instance { id: ContainerId::random().unwrap(), attempt, running }
    }

    fn status(waiting: Option<&str>, terminated: bool) -> ContainerStatus {
        let waiting = waiting.map(|reason| ContainerStateWaiting { reason: Some(reason.into()), message: None });
        let terminated = terminated.then(ContainerStateTerminated::default);
        let state = ContainerState { running: None, terminated, waiting };
        ContainerStatus { name: "c".into(), state: Some(state), ..ContainerStatus::default() }
    }

    #[test]
    fn an_attempt_is_chosen_or_the_reason_told() {
        let pick = |status: Option<&ContainerStatus>, last: Option<&Instance>, before: Option<&Instance>, previous| {
            let instances = Instances { last: last.cloned(), previous: before.cloned() };
            choose("p", "c", status, instances, previous).map(|it| it.attempt)
        };
        let (first, second) = (instance(0, false), instance(1, true));
        let down = instance(1, false);
        let backing_off = status(Some("CrashLoopBackOff"), false);
        let plain = status(None, false);
        assert_eq!(pick(Some(&plain), Some(&second), Some(&first), false), Ok(1));
        assert_eq!(pick(Some(&plain), Some(&second), Some(&first), true), Ok(0));
        assert_eq!(pick(Some(&backing_off), Some(&down), Some(&first), true), Ok(1));
        assert_eq!(pick(Some(&backing_off), Some(&down), Some(&first), false), Ok(1));
        assert_eq!(pick(Some(&status(None, true)), Some(&down), Some(&first), true), Ok(0));
        let text = |status: Option<ContainerStatus>, previous| pick(status.as_ref(), None, None, previous).unwrap_err();
        let waits = |reason| text(Some(status(Some(reason), false)), false);
        assert_eq!(waits("ErrImagePull"), "container \"c\" in pod \"p\" is waiting to start: image can't be pulled");
        assert_eq!(
            waits("ImagePullBackOff"),
            "container \"c\" in pod \"p\" is waiting to start: trying and failing to pull image"
        );
        assert_eq!(waits("ContainerCreating"), "container \"c\" in pod \"p\" is waiting to start: ContainerCreating");
        assert_eq!(text(Some(plain), false), "container \"c\" in pod \"p\" is waiting to start - no logs yet");
        assert_eq!(text(Some(status(None, true)), false), "container \"c\" in pod \"p\" is terminated");
        assert_eq!(text(None, false), "container \"c\" in pod \"p\" is not available");
        assert_eq!(text(None, true), "previous terminated container \"c\" in pod \"p\" not found");
    }

    async fn sent(log: &str, query: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, log).unwrap();
        let options = options(query).unwrap();
        let read = options.read(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(10));
        let ended = CancellationToken::new();
        ended.cancel();
        let reader = Reader::open(&path, read, ended).await.unwrap();
        let (to, mut from) = mpsc::channel::<io::Result<Bytes>>(QUEUE);
        let mut text = Vec::new();
        let receive = async {
            while let Some(piece) = from.recv().await {
                text.extend_from_slice(&piece.unwrap());
            }
        };
        tokio::join!(send(reader, options, to), receive);
        String::from_utf8(text).unwrap()
    }

    const LOG: &str = "1970-01-01T00:00:01Z stdout F one\n1970-01-01T00:00:02Z stderr P tw\n\
                       1970-01-01T00:00:02.5Z stderr F o\n1970-01-01T00:00:09Z stdout F three\n";

    #[tokio::test]
    async fn logs_are_sent_as_asked_for() {
        assert_eq!(sent(LOG, "").await, "one\ntwo\nthree\n");
        assert_eq!(sent(LOG, "follow=true").await, "one\ntwo\nthree\n");
        assert_eq!(sent(LOG, "tailLines=1").await, "three\n");
        assert_eq!(sent(LOG, "tailLines=0").await, "");
        assert_eq!(sent(LOG, "sinceSeconds=2").await, "three\n");
        assert_eq!(sent(LOG, "stream=Stderr").await, "two\n");
        assert_eq!(sent(LOG, "limitBytes=6").await, "one\ntw");
        let stamped = sent(LOG, "timestamps=true").await;
        let want = "1970-01-01T00:00:01.000000000Z one\n1970-01-01T00:00:02.000000000Z two\n\
                    1970-01-01T00:00:09.000000000Z three\n";
        assert_eq!(stamped, want);
        assert_eq!(sent(LOG, "timestamps=true&limitBytes=33").await, want[..33]);
    }

    #[tokio::test]
    async fn many_lines_arrive_whole() {
        let line = |number: u32| format!("1970-01-01T00:00:01Z stdout F line {number}\n");
        let log: String = (0..20_000).map(line).collect();
        let text = sent(&log, "").await;
        assert_eq!(text.lines().count(), 20_000);
        assert_eq!(text.lines().last(), Some("line 19999"));
    }
}
