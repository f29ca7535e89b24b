//! Routing without a network.

use super::{inbox::CHANNEL, *};

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
    let mut attached = router.attach_now("c", true, Duration::ZERO).unwrap();
    router.subscribe("c", subscription("a/#", 0), Retained::Always).unwrap();
    router.subscribe("c", subscription("a/+", 2), Retained::Always).unwrap();
    router.publish(&message("a/b", "x"));
    router.publish(&message("b", "y"));
    let delivery = attached.inbox.try_recv().unwrap();
    assert_eq!((delivery.qos, delivery.message.topic.as_str()), (1, "a/b"));
    assert!(attached.inbox.try_recv().is_none());
}

#[test]
fn a_sleeping_session_finds_its_messages_in_order() {
    let router = router();
    let attached = router.attach_now("c", false, DAY).unwrap();
    assert!(!attached.present);
    router.subscribe("c", subscription("#", 1), Retained::Always).unwrap();
    router.publish(&message("a", "unacked"));
    let mut inbox = attached.inbox;
    let open = vec![Open { id: 3, delivery: inbox.try_recv() }];
    let left = Left { open: open.clone(), unsent: Vec::new(), inbound: HashSet::from([7]) };
    router.detach("c", attached.link_id, DAY, left);
    router.publish(&message("a", "while away"));
    let mut again = router.attach_now("c", false, DAY).unwrap();
    assert!(again.present);
    assert_eq!(again.left, Left { open, unsent: Vec::new(), inbound: HashSet::from([7]) });
    assert_eq!(waiting(&router, "c", &mut again), ["while away"]);
}

fn waiting(router: &Router, client: &str, attached: &mut Attached) -> Vec<String> {
    let next = || router.next(client, attached.link_id, &mut attached.inbox);
    std::iter::from_fn(next).map(|it| String::from_utf8_lossy(&it.message.payload).into_owned()).collect()
}

#[tokio::test]
async fn who_takes_over_waits_for_what_the_former_connection_leaves() {
    let router = router();
    let first = router.attach("c", false, DAY).await.unwrap();
    let ousted = first.taken_over.clone();
    let leaving = router.clone();
    let leave = tokio::spawn(async move {
        ousted.cancelled().await;
        let left = Left { inbound: HashSet::from([9]), ..Left::default() };
        leaving.detach("c", first.link_id, DAY, left);
    });
    let second = router.attach("c", false, DAY).await.unwrap();
    leave.await.unwrap();
    assert!(second.present && second.left.inbound == HashSet::from([9]) && !second.taken_over.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_former_connection_that_hangs_is_not_waited_for_for_ever() {
    let router = router();
    let first = router.attach("c", false, DAY).await.unwrap();
    let second = router.attach("c", false, DAY).await.unwrap();
    assert!(second.present && first.link_id != second.link_id);
}

#[test]
fn a_session_whose_time_is_over_is_not_resumed() {
    let router = router();
    let first = router.attach_now("c", false, Duration::from_millis(1)).unwrap();
    router.subscribe("c", subscription("#", 1), Retained::Always).unwrap();
    router.detach("c", first.link_id, Duration::from_millis(1), Left::default());
    std::thread::sleep(Duration::from_millis(2));
    router.publish(&message("a", "late"));
    let mut second = router.attach_now("c", false, DAY).unwrap();
    assert!(!second.present && waiting(&router, "c", &mut second).is_empty());
}

#[test]
fn a_second_connection_takes_over_and_the_first_cannot_end_it() {
    let router = router();
    let first = router.attach_now("c", false, DAY).unwrap();
    let second = router.attach_now("c", false, DAY).unwrap();
    assert!(first.taken_over.is_cancelled() && !second.taken_over.is_cancelled());
    router.detach("c", first.link_id, Duration::ZERO, Left::default());
    assert_eq!(router.held().0, 1);
}

#[test]
fn retained_messages_reach_later_subscribers_and_an_empty_one_clears() {
    let router = router();
    let retained = |payload: &str| Message { retain: true, ..message("a/b", payload) };
    router.publish(&retained("kept"));
    let _attached = router.attach_now("c", true, Duration::ZERO).unwrap();
    let wanted = subscription("a/#", 1);
    assert!(router.subscribe("c", wanted.clone(), Retained::IfNew).unwrap());
    let got = router.retained(&wanted, None).unwrap();
    assert!(got.retain && router.retained(&wanted, Some("a/b")).is_none());
    assert!(!router.subscribe("c", wanted.clone(), Retained::IfNew).unwrap());
    router.publish(&retained(""));
    assert!(router.retained(&wanted, None).is_none());
}

#[test]
fn what_is_kept_shares_no_memory_with_the_packet_and_counts_its_properties() {
    let router = router();
    let buffer = Bytes::from(vec![b'x'; 100_000]);
    let properties = Properties {
        correlation_data: Some(buffer.slice(0..5)),
        user_properties: vec![("k".into(), "v".repeat(1 << 20))],
        ..Properties::default()
    };
    let retained = |topic: &str| Message {
        retain: true,
        properties: Some(Arc::new(properties.clone())),
        ..Message::plain(topic.into(), buffer.slice(0..5))
    };
    router.publish(&retained("a"));
    router.publish(&retained("b"));
    assert_eq!(router.held().1, 1, "the second is over the limit of bytes");
    drop(properties);
    let inner = router.inner();
    let kept = inner.retained.get("a").unwrap();
    let own = |bytes: &Bytes| !buffer.as_ptr_range().contains(&bytes.as_ptr());
    assert!(own(&kept.payload) && own(kept.properties.as_ref().unwrap().correlation_data.as_ref().unwrap()));
}

#[test]
fn a_slow_subscriber_holds_nobody_up_and_hears_the_rest_in_order() {
    let router = router();
    let mut attached = router.attach_now("c", true, DAY).unwrap();
    router.subscribe("c", subscription("#", 1), Retained::Always).unwrap();
    for n in 0..5000 {
        router.publish(&message("a", &n.to_string()));
    }
    assert_eq!(router.0.dropped.get(), 5000 - 1000 - CHANNEL as u64);
    let heard: Vec<usize> = waiting(&router, "c", &mut attached).iter().map(|text| text.parse().unwrap()).collect();
    assert_eq!(heard, (0..CHANNEL).chain(4000..5000).collect::<Vec<_>>());
}

#[tokio::test]
async fn sessions_and_retained_messages_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (state, _) = store::state::State::open(&dir.path().join("state")).unwrap();
    let before = router();
    let attached = before.attach_now("c", false, DAY).unwrap();
    before.subscribe("c", subscription("a", 1), Retained::Always).unwrap();
    let properties =
        Properties { content_type: Some("text".into()), message_expiry_interval: Some(60), ..Properties::default() };
    let properties = Some(Arc::new(properties));
    let open = |id| Open { id, delivery: None };
    let left = Left { open: vec![open(5)], unsent: Vec::new(), inbound: HashSet::from([2]) };
    before.detach("c", attached.link_id, DAY, left);
    before.publish(&Message { retain: true, properties, ..message("a", "kept") });
    let long = "long/".repeat(200);
    before.publish(&Message { retain: true, ..message(&long, "on a topic longer than a key") });
    let context = board::tasks::Context::detached();
    context.stop.cancel();
    before.run(state.clone(), context.clone()).await.unwrap();
    let after = router();
    after.load(&state);
    assert_eq!(after.held(), (1, 2));
    let mut again = after.attach_now("c", false, DAY).unwrap();
    assert!(again.present && again.left.open == [open(5)] && again.left.inbound == HashSet::from([2]));
    let waiting = after.next("c", again.link_id, &mut again.inbox).unwrap();
    let properties = waiting.message.properties.as_ref().unwrap();
    assert!(properties.content_type.as_deref() == Some("text") && waiting.message.expires_in().is_some());
    after.publish(&Message { retain: true, ..message(&long, "") });
    after.run(state.clone(), context).await.unwrap();
    let last = router();
    last.load(&state);
    assert_eq!(last.held(), (1, 1));
}
