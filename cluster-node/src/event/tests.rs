//! Correlation, the outbox, and what is told.

use std::time::Duration;

use board::clock::{Clock, ManualClock, Stamp};
use k8s_openapi::{
    api::core::v1::{ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use store::state::State;

use super::{
    Recorder, Type,
    correlate::Correlator,
    outbox::{self, MAX_WAITING, Outbox},
    record::Occurrence,
};
use crate::api::{Api, Wire};

const NOW_US: i64 = 1_800_000_000_000_000;

fn stamp(at_s: u64) -> Stamp {
    Stamp { wall_us: NOW_US, boot: 1, uptime_us: at_s * 1_000_000, trusted: true }
}

fn happened(name: &str, reason: &str, message: &str) -> Occurrence {
    let about = ObjectReference {
        kind: Some("Pod".into()),
        namespace: Some("ns".into()),
        name: Some(name.into()),
        uid: Some(format!("uid-{name}")),
        ..ObjectReference::default()
    };
    let (reason, message) = (reason.to_owned(), message.to_owned());
    Occurrence { about, kind: Type::Normal, reason, message, at: stamp(1) }
}

fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

#[test]
fn an_object_gets_25_events_and_one_more_every_five_minutes() {
    let mut correlator = Correlator::default();
    let mut takes = |name: &str, at: u64| correlator.observe(&happened(name, "R", "m"), seconds(at)).is_some();
    assert!((0..25).all(|_| takes("a", 0)));
    assert!(!takes("a", 0));
    assert!(takes("b", 0));
    assert!(!takes("a", 299));
    assert!(takes("a", 301));
    assert!(!takes("a", 301));
}

#[test]
fn what_is_the_same_has_one_key() {
    let mut correlator = Correlator::default();
    let mut key = |it: &Occurrence| correlator.observe(it, seconds(0)).unwrap().key;
    let first = key(&happened("a", "R", "m"));
    assert_eq!(key(&happened("a", "R", "m")), first);
    let mut container = happened("a", "R", "m");
    container.about.field_path = Some("spec.containers{c}".into());
    let others = [happened("a", "R", "n"), happened("a", "S", "m"), happened("b", "R", "m"), container];
    let keys: Vec<u64> = others.iter().map(key).collect();
    assert!(!keys.contains(&first) && keys.iter().all(|it| keys.iter().filter(|other| *other == it).count() == 1));
}

#[test]
fn many_of_one_reason_become_one() {
    let mut correlator = Correlator::default();
    let mut observe = |n: u32, at: u64| correlator.observe(&happened("a", "R", &format!("m{n}")), seconds(at)).unwrap();
    let single: Vec<_> = (0..9).map(|n| observe(n, 0)).collect();
    assert!(single.iter().all(|it| !it.message.contains("combined")));
    let (tenth, eleventh) = (observe(10, 1), observe(11, 2));
    assert_eq!(tenth.message, "(combined from similar events): m10");
    assert_eq!(tenth.key, eleventh.key);
    assert_eq!(observe(12, 700).message, "m12");
}

#[test]
fn memory_of_objects_is_bounded() {
    let mut correlator = Correlator::default();
    for n in 0..5_000 {
        assert!(correlator.observe(&happened(&n.to_string(), "R", "m"), seconds(n)).is_some());
    }
    let size = format!("{correlator:?}").len();
    for n in 5_000..6_000 {
        correlator.observe(&happened(&n.to_string(), "R", "m"), seconds(n));
    }
    assert!(format!("{correlator:?}").len() < size * 11 / 10);
}

#[test]
fn the_same_again_is_counted_before_and_after_it_was_sent() {
    let mut outbox = Outbox::default();
    outbox.add(7, "m".into(), happened("a", "R", "m"));
    outbox.add(7, "m".into(), happened("a", "R", "m"));
    let (number, record) = outbox.first().unwrap();
    assert_eq!((record.count, record.known, outbox.waiting()), (2, false, 1));
    // It happens once more while it is sent: the rest is told, too.
    outbox.add(7, "m".into(), happened("a", "R", "m"));
    outbox.is_sent(number, &record);
    let (number, record) = outbox.first().unwrap();
    assert_eq!((record.count, record.known), (3, true));
    outbox.is_sent(number, &record);
    assert_eq!(outbox.first(), None);
    outbox.add(7, "m".into(), happened("a", "R", "m"));
    let (number, again) = outbox.first().unwrap();
    assert_eq!((again.count, again.known, &again.name), (4, true, &record.name));
    // The API server has forgotten it.
    outbox.is_gone(number);
    let (_, renewed) = outbox.first().unwrap();
    assert!(!renewed.known && renewed.name != record.name && renewed.count == 4);
    assert_eq!(outbox.about("uid-a").len(), 1);
    assert_eq!(outbox.about("uid-b").len(), 0);
}

#[test]
fn a_refused_one_is_dropped_and_one_that_is_there_is_patched() {
    let mut outbox = Outbox::default();
    outbox.add(1, "m".into(), happened("a", "R", "m"));
    outbox.add(2, "m".into(), happened("b", "R", "m"));
    let (number, _) = outbox.first().unwrap();
    outbox.is_refused(number);
    let (number, record) = outbox.first().unwrap();
    assert_eq!(record.about.name.as_deref(), Some("b"));
    outbox.is_known(number);
    assert!(outbox.first().unwrap().1.known);
    outbox.add(1, "m".into(), happened("a", "R", "m"));
    assert_eq!(outbox.waiting(), 2);
}

#[test]
fn warnings_are_dropped_last() {
    let mut outbox = Outbox::default();
    let mut warning = happened("w", "R", "m");
    warning.kind = Type::Warning;
    outbox.add(0xffff, "m".into(), warning);
    for n in 0..MAX_WAITING as u64 + 100 {
        outbox.add(n, "m".into(), happened(&n.to_string(), "R", "m"));
    }
    assert_eq!((outbox.waiting(), outbox.dropped()), (MAX_WAITING, 101));
    assert_eq!(outbox.first().unwrap().1.about.name.as_deref(), Some("w"));
    // What was sent is forgotten in the end.
    while let Some((number, record)) = outbox.first() {
        outbox.is_sent(number, &record);
    }
    assert!(outbox.about("uid-w").is_empty() && outbox.about("uid-599").len() == 1);
}

#[tokio::test]
async fn what_was_not_sent_is_there_after_a_restart_and_what_was_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = State::open(&dir.path().join("state")).unwrap();
    let mut outbox = Outbox::open(&state);
    for (key, name) in [(1, "late"), (2, "early")] {
        let mut happened = happened(name, "R", "m");
        happened.at = stamp(10 - key);
        outbox.add(key, "m".into(), happened);
    }
    let unkept = outbox.unkept();
    outbox::keep(&state, &unkept).await.unwrap();
    outbox.are_kept(&unkept);
    assert!(outbox.unkept().is_empty());

    let mut outbox = Outbox::open(&state);
    let (number, record) = outbox.first().unwrap();
    assert_eq!((record.about.name.as_deref(), outbox.waiting()), (Some("early"), 2));
    outbox.is_sent(number, &record);
    let stale = outbox.stale();
    outbox::keep(&state, &stale).await.unwrap();
    outbox.are_kept(&stale);
    assert!(outbox.stale().is_empty());
    assert_eq!(Outbox::open(&state).waiting(), 1);
}

fn recorder(trusted: bool) -> (Recorder, Clock, ManualClock, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = State::open(&dir.path().join("state")).unwrap();
    let (clock, hand) = Clock::manual(if trusted { NOW_US } else { 1_000_000 }, trusted);
    let api = Api::nowhere(clock.clone(), Wire::default());
    (Recorder::new(api, state, "board", clock.clone()), clock, hand, dir)
}

#[tokio::test]
async fn events_as_the_kubelet_has_them() {
    let (recorder, _, _, _dir) = recorder(true);
    let meta = ObjectMeta {
        name: Some("p".into()),
        namespace: Some("ns".into()),
        uid: Some("u".into()),
        ..Default::default()
    };
    let pod = Pod { metadata: meta, ..Pod::default() };
    recorder.pod(&pod, Type::Warning, "BackOff", "ü".repeat(1000), Some("spec.containers{c}".into()));
    recorder.node(Type::Normal, "NodeReady", "Node board status is now: NodeReady".into());
    let event = &recorder.about("u")[0];
    assert!(event.metadata.name.as_ref().unwrap().starts_with("p."));
    assert_eq!(event.metadata.namespace.as_deref(), Some("ns"));
    assert_eq!(event.involved_object.field_path.as_deref(), Some("spec.containers{c}"));
    assert_eq!((event.type_.as_deref(), event.reason.as_deref()), (Some("Warning"), Some("BackOff")));
    assert!(event.message.as_ref().unwrap().len() <= 1024 && event.message.as_ref().unwrap().ends_with("..."));
    let source = event.source.as_ref().unwrap();
    assert_eq!((source.component.as_deref(), source.host.as_deref()), (Some("kubelet"), Some("board")));
    assert_eq!(event.first_timestamp.as_ref().unwrap().0.as_microsecond(), NOW_US);
    let node = &recorder.about("board")[0];
    assert_eq!(node.metadata.namespace.as_deref(), Some("default"));
    assert_eq!(node.involved_object.uid.as_deref(), Some("board"));
}

#[tokio::test]
async fn times_of_an_unknown_clock_are_right_once_it_is_known() {
    let (recorder, clock, hand, _dir) = recorder(false);
    recorder.node(Type::Normal, "Starting", "Starting kubelet.".into());
    hand.advance(Duration::from_secs(60));
    hand.set(NOW_US, true);
    assert!(clock.look());
    let at = recorder.about("board")[0].last_timestamp.as_ref().unwrap().0;
    assert_eq!(at.as_microsecond(), NOW_US - 60_000_000);
}

#[tokio::test]
async fn a_board_without_a_cluster_keeps_its_events_when_it_is_stopped() {
    let (recorder, _, _, dir) = recorder(true);
    recorder.node(Type::Normal, "Starting", "Starting kubelet.".into());
    let state = recorder.0.state.clone();
    let context = board::tasks::Context::detached();
    context.stop.cancel();
    recorder.run(context).await.unwrap();
    assert_eq!(Outbox::open(&state).waiting(), 1);
    drop(dir);
}
