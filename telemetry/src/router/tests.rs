//! Routing without a network.

use super::*;

const DAY: Duration = Duration::from_secs(86_400);

fn router() -> Router {
    Router::new(&board::metrics::Metrics::new())
}

fn subscription(filter: &str, qos: u8) -> Subscription {
    Subscription { filter: filter.into(), qos, no_local: false, retain_as_published: false, id: None }
}

fn message(topic: &str, payload: &str) -> Message {
    Message::plain(topic.into(), payload.to_owned().into())
}

#[test]
fn overlapping_subscriptions_hear_once_at_the_highest_qos() {
    let router = router();
    let mut attached = router.attach("c", true, Duration::ZERO).unwrap();
    router.subscribe("c", subscription("a/#", 0), Retained::Always).unwrap();
    router.subscribe("c", subscription("a/+", 2), Retained::Always).unwrap();
    router.publish(&message("a/b", "x"));
    router.publish(&message("b", "y"));
    let delivery = attached.receiver.try_recv().unwrap();
    assert_eq!((delivery.qos, delivery.message.topic.as_str()), (1, "a/b"));
    assert!(attached.receiver.try_recv().is_err());
}

#[test]
fn a_sleeping_session_finds_its_messages_in_order() {
    let router = router();
    let attached = router.attach("c", false, DAY).unwrap();
    assert!(!attached.present);
    router.subscribe("c", subscription("#", 1), Retained::Always).unwrap();
    router.publish(&message("a", "unacked"));
    let mut receiver = attached.receiver;
    let unacked = vec![receiver.try_recv().unwrap()];
    router.detach("c", attached.link_id, None, unacked, HashSet::from([7]));
    router.publish(&message("a", "while away"));
    let again = router.attach("c", false, DAY).unwrap();
    assert!(again.present);
    assert_eq!(again.inbound, HashSet::from([7]));
    let queued = router.take_queued("c", again.link_id, 100);
    let texts: Vec<_> = queued.iter().map(|it| String::from_utf8_lossy(&it.message.payload).into_owned()).collect();
    assert_eq!(texts, ["unacked", "while away"]);
}

#[test]
fn a_second_connection_takes_over_and_the_first_cannot_end_it() {
    let router = router();
    let first = router.attach("c", false, DAY).unwrap();
    let second = router.attach("c", false, DAY).unwrap();
    assert!(first.taken_over.is_cancelled() && !second.taken_over.is_cancelled());
    router.detach("c", first.link_id, Some(Duration::ZERO), Vec::new(), HashSet::new());
    assert_eq!(router.held().0, 1);
}

#[test]
fn retained_messages_reach_later_subscribers_and_an_empty_one_clears() {
    let router = router();
    let retained = |payload: &str| Message { retain: true, ..message("a/b", payload) };
    router.publish(&retained("kept"));
    let _attached = router.attach("c", true, Duration::ZERO).unwrap();
    let got = router.subscribe("c", subscription("a/#", 1), Retained::IfNew).unwrap();
    assert!(got.len() == 1 && got[0].retain);
    assert!(router.subscribe("c", subscription("a/#", 1), Retained::IfNew).unwrap().is_empty());
    router.publish(&retained(""));
    assert!(router.subscribe("c", subscription("a/#", 1), Retained::Always).unwrap().is_empty());
}

#[test]
fn a_slow_subscriber_holds_nobody_up() {
    let router = router();
    let attached = router.attach("c", true, DAY).unwrap();
    router.subscribe("c", subscription("#", 1), Retained::Always).unwrap();
    for _ in 0..5000 {
        router.publish(&message("a", "x"));
    }
    assert!(router.0.dropped.get() >= 5000 - 1000 - CHANNEL as u64);
    assert_eq!(router.take_queued("c", attached.link_id, usize::MAX).len(), 1000);
}

#[tokio::test]
async fn sessions_and_retained_messages_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = store::state::State::open(&dir.path().join("state")).unwrap();
    let before = router();
    let attached = before.attach("c", false, DAY).unwrap();
    before.subscribe("c", subscription("a", 1), Retained::Always).unwrap();
    before.detach("c", attached.link_id, None, Vec::new(), HashSet::new());
    before.publish(&Message { retain: true, ..message("a", "kept") });
    let context = board::tasks::Context::detached();
    context.stop.cancel();
    before.run(state.clone(), context).await.unwrap();
    let after = router();
    after.load(&state);
    let again = after.attach("c", false, DAY).unwrap();
    assert!(again.present);
    assert_eq!(after.take_queued("c", again.link_id, 9).len(), 1);
    assert_eq!(after.held(), (1, 1));
}
