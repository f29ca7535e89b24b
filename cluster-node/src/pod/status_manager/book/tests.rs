//! The book of statuses, by table.

use serde_json::json;

use super::*;

fn pod(uid: &str, version: u64, status: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": uid,
        "resourceVersion": version.to_string()}, "spec": {"nodeName": "board", "containers": [{"name": "c"}]},
        "status": status}))
    .unwrap()
}

fn deleted(mut pod: Pod) -> Pod {
    pod.metadata.deletion_timestamp = Some(jiff::Timestamp::UNIX_EPOCH.into());
    pod
}

fn phase(phase: &str) -> PodStatus {
    PodStatus { phase: Some(phase.to_owned()), ..PodStatus::default() }
}

/// A node that knows of this pod.
fn known(pod: Pod) -> Known {
    let known = Known::default();
    known.test_bound(vec![pod], "board");
    known
}

#[track_caller]
fn patched(work: Option<Work>) -> (Work, Value) {
    let work = work.expect("nothing to be sent");
    match &work.task {
        Task::Patch(patch) => {
            let patch = patch.clone();
            (work, patch)
        }
        Task::Delete => panic!("a deletion"),
    }
}

fn book(known: &Known, status: PodStatus) -> Book {
    let mut book = Book::default();
    book.set(&known.get("u").unwrap(), false, status);
    book
}

#[test]
fn the_latest_status_is_sent_and_one_at_a_time() {
    let known = known(pod("u", 1, json!({"phase": "Pending"})));
    let mut book = book(&known, phase("Running"));
    let now = Instant::now();
    let (work, patch) = patched(book.next(&known, now));
    assert_eq!(patch, json!({"metadata": {"uid": "u"}, "status": {"phase": "Running"}}));
    assert!(book.next(&known, now).is_none());
    let (holds, is_new) = book.set(&known.get("u").unwrap(), false, phase("Succeeded"));
    assert!(is_new && holds.phase.as_deref() == Some("Succeeded"));
    assert!(!book.set(&known.get("u").unwrap(), false, phase("Succeeded")).1);
    // No life after the end.
    assert_eq!(book.set(&known.get("u").unwrap(), false, phase("Running")).0.phase.as_deref(), Some("Succeeded"));
    assert!(book.next(&known, now).is_none());

    assert_eq!(book.answered(&work, Answer::Taken(Box::new(pod("u", 2, json!({"phase": "Running"})))), now), None);
    assert_eq!(book.waiting(), (1, 1));
    let (work, patch) = patched(book.next(&known, now));
    assert_eq!(patch["status"], json!({"phase": "Succeeded"}));
    book.answered(&work, Answer::Taken(Box::new(pod("u", 3, json!({"phase": "Succeeded"})))), now);
    // The watch is behind: what was answered is newer.
    assert!(book.next(&known, now).is_none());
    assert_eq!(book.waiting(), (0, 1));
}

#[test]
fn what_others_make_of_it_is_put_right_but_not_without_end() {
    let known = known(pod("u", 1, json!({"phase": "Pending"})));
    let mut book = book(&known, phase("Running"));
    let now = Instant::now();
    let (work, _) = patched(book.next(&known, now));
    // The server made something else of it: so be it.
    let made = json!({"phase": "Running", "message": "the server's"});
    book.answered(&work, Answer::Taken(Box::new(pod("u", 2, made.clone()))), now);
    known.test_bound(vec![pod("u", 2, made.clone())], "board");
    assert!(book.next(&known, now).is_none());

    // Somebody else changed it.
    known.test_bound(vec![pod("u", 5, json!({"phase": "Unknown"}))], "board");
    let (work, patch) = patched(book.next(&known, now));
    assert_eq!(patch["status"], json!({"phase": "Running"}));
    book.answered(&work, Answer::Taken(Box::new(pod("u", 6, json!({"phase": "Running"})))), now);
    known.test_bound(vec![pod("u", 7, json!({"phase": "Unknown"}))], "board");
    assert!(book.next(&known, now).is_none());
    assert!(book.pause(now).is_some_and(|it| it <= AGAIN));
    patched(book.next(&known, now + AGAIN));
}

#[test]
fn failures_are_waited_out() {
    let known = known(pod("u", 1, json!({})));
    let mut book = book(&known, phase("Running"));
    let now = Instant::now();
    let (work, _) = patched(book.next(&known, now));
    assert_eq!(book.answered(&work, Answer::Later("busy".into()), now), None);
    assert!(book.next(&known, now).is_none());
    let (work, _) = patched(book.next(&known, now + LATER.1));
    assert_eq!(book.answered(&work, Answer::Refused("no".into()), now).as_deref(), Some("no"));
    let (work, _) = patched(book.next(&known, now + REFUSED.1));
    assert_eq!(book.answered(&work, Answer::Refused("no".into()), now), None);
    // A new status does not wait for the old one's troubles.
    book.set(&known.get("u").unwrap(), false, phase("Succeeded"));
    let (work, _) = patched(book.next(&known, now));
    assert_eq!(book.answered(&work, Answer::Refused("no".into()), now).as_deref(), Some("no"));
    assert_eq!(book.answered(&work, Answer::Gone, now), None);
    assert_eq!(book.waiting(), (0, 0));
}

#[test]
fn the_last_word_comes_before_the_deletion() {
    let now = Instant::now();
    let at_server = |version: u64, phase: &str| deleted(pod("u", version, json!({"phase": phase})));
    let known = known(pod("u", 1, json!({"phase": "Running"})));
    let mut book = book(&known, phase("Failed"));
    book.finish("u", None);
    let (work, _) = patched(book.next(&known, now));
    book.answered(&work, Answer::Taken(Box::new(pod("u", 2, json!({"phase": "Failed"})))), now);
    // A pod that has ended is only deleted where that is wanted.
    assert!(book.next(&known, now).is_none());
    known.test_bound(vec![at_server(3, "Failed")], "board");
    let work = book.next(&known, now).unwrap();
    assert_eq!((work.target.uid.as_str(), &work.task), ("u", &Task::Delete));
    book.answered(&work, Answer::Gone, now);
    assert!(book.unsaved().unwrap().is_some());
    assert!(book.unsaved().unwrap().is_none());

    // A pod that never had a status here.
    known.test_bound(vec![at_server(3, "Pending")], "board");
    let mut book = Book::default();
    book.finish("u", known.get("u").as_deref());
    assert_eq!(book.next(&known, now).unwrap().task, Task::Delete);
}

#[test]
fn what_is_kept_is_told_by_the_next_agent() {
    let known = known(pod("u", 1, json!({"phase": "Running"})));
    let mut book = book(&known, phase("Failed"));
    let (kept, version) = book.kept("u").unwrap();
    book.stored("u", version);
    assert!(book.kept("u").is_none() && book.unsaved().unwrap().is_none());

    let mut next = Book::of([("u".to_owned(), kept.clone()), ("lost".to_owned(), kept)].into());
    assert_eq!(next.status("u").unwrap().phase.as_deref(), Some("Failed"));
    next.sweep(&known);
    assert!(next.status("lost").is_none());
    let (_, patch) = patched(next.next(&known, Instant::now()));
    assert_eq!(patch["status"], json!({"phase": "Failed"}));
}
