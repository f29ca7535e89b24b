//! The outbox over a real log.

use super::{query::Query, *};

fn reading(topic: &str, payload: impl Into<Vec<u8>>) -> NewReading {
    NewReading { topic: topic.into(), payload: payload.into().into() }
}

fn open(dir: &Path, options: Options) -> (Outbox, board::clock::ManualClock) {
    let (clock, hand) = Clock::manual(1_800_000_000_000_000, true);
    let (outbox, _) = Outbox::open(&dir.join("log"), 7, options, clock, &Metrics::new()).unwrap();
    (outbox, hand)
}

fn noise(seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..100_000).map(|_| next()).collect()
}

#[tokio::test]
async fn urgent_readings_are_found_without_reading_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, _) = open(dir.path(), Options { linger: Duration::ZERO, ..Options::default() });
    for n in 0..50 {
        let topic = if n == 33 { "alarm/fire" } else { "lab/t" };
        outbox.put(&[reading(topic, "1")]).await.unwrap();
    }
    let mut cursor = outbox.urgent_cursor(1);
    let mut found = Vec::new();
    while cursor.position() < 51 {
        found.extend(cursor.next(1000).await.unwrap().readings.into_iter().map(|reading| reading.seq));
    }
    assert_eq!(found, [34]);
}

#[tokio::test]
async fn what_one_relay_has_not_released_stays() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { linger: Duration::ZERO, max_bytes: 4 << 20, ..Options::default() };
    let (outbox, _) = open(dir.path(), options.clone());
    let (fast, slow) = (outbox.relay("fast"), outbox.relay("slow"));
    for seed in 0..20 {
        outbox.put(&[reading("a", noise(seed))]).await.unwrap();
    }
    fast.save(21, b"all");
    slow.save(2, b"one");
    outbox.trim().await;
    assert_eq!(outbox.first(), 1, "the slow relay still needs the first segment");
    slow.save_durably(21, b"all").await.unwrap();
    outbox.trim().await;
    assert!(outbox.first() > 1);
    outbox.close();
    let (outbox, _) = open(dir.path(), options);
    assert_eq!(outbox.relay("slow").saved(), (21, b"all".to_vec()));
    assert_eq!(outbox.waiting()[0].readings, 0);
    outbox.forget_relays_except(&["fast"]);
    assert_eq!(outbox.waiting().len(), 1);
}

#[tokio::test]
async fn a_full_outbox_refuses_or_drops_the_oldest_as_told() {
    for on_full in [OnFull::Refuse, OnFull::DropOldest] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { on_full, linger: Duration::ZERO, max_bytes: 2 << 20, ..Options::default() };
        let (outbox, _) = open(dir.path(), options);
        let mut refused = 0;
        for seed in 0..60 {
            match outbox.put(&[reading("a", noise(seed))]).await {
                Ok(_) => {}
                Err(PutError::Full(_)) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
        let dropped = outbox.0.metrics.dropped.get();
        assert_eq!((refused > 0, dropped > 0), (on_full == OnFull::Refuse, on_full == OnFull::DropOldest));
        assert!(outbox.stats().disk_bytes <= 2 << 20);
    }
}

#[tokio::test]
async fn many_senders_that_find_it_full_let_one_segment_go() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { on_full: OnFull::DropOldest, max_bytes: 40 << 20, ..Options::default() };
    let (outbox, _) = open(dir.path(), options);
    let mut seed = 0u8;
    while outbox.0.metrics.dropped.get() == 0 {
        let mut senders = tokio::task::JoinSet::new();
        for _ in 0..32 {
            seed = seed.wrapping_add(1);
            let (outbox, payload) = (outbox.clone(), noise(seed));
            senders.spawn(async move { outbox.put(&[reading("a", payload)]).await.unwrap() });
        }
        while senders.join_next().await.is_some() {}
    }
    let dropped = outbox.0.metrics.dropped.get();
    assert!(dropped < 100, "{dropped} readings of 100 kB are more than one segment of 8 MiB");
}

#[tokio::test]
async fn an_outbox_that_refuses_says_so_and_still_lets_relays_make_progress() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, _) = open(dir.path(), Options { linger: Duration::ZERO, max_bytes: 24 << 20, ..Options::default() });
    let relay = outbox.relay("slow");
    let mut seed = 0u8;
    while outbox.put(&[reading("a", noise(seed))]).await.is_ok() {
        seed += 1;
    }
    assert!(outbox.refusing().unwrap().contains("its limit"), "{:?}", outbox.refusing());
    for n in 0..100u8 {
        relay.save_durably(1, &[n; 300]).await.unwrap();
        assert!(outbox.put(&[reading("a", noise(n))]).await.is_err(), "there is no room for a reading");
    }
    relay.save_durably(outbox.stats().next, b"").await.unwrap();
    outbox.trim().await;
    assert_eq!(outbox.refusing(), None);
    outbox.put(&[reading("a", "1")]).await.unwrap();
}

#[tokio::test]
async fn age_drops_whole_segments_and_a_clock_jump_drops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let max_age = Some(Duration::from_secs(3600));
    let options = Options { max_age, linger: Duration::ZERO, max_bytes: 4 << 20, ..Options::default() };
    let (outbox, hand) = open(dir.path(), options);
    for seed in 0..20 {
        outbox.put(&[reading("a", noise(seed))]).await.unwrap();
    }
    hand.set(1_900_000_000_000_000, true);
    outbox.clock().look();
    outbox.drop_aged().await.unwrap();
    assert_eq!(outbox.first(), 1);
    hand.advance(Duration::from_secs(3601));
    outbox.drop_aged().await.unwrap();
    assert!(outbox.first() > 1);
}

#[tokio::test]
async fn queries_filter_by_topic_and_time() {
    let dir = tempfile::tempdir().unwrap();
    let (outbox, hand) = open(dir.path(), Options { linger: Duration::ZERO, ..Options::default() });
    outbox.put(&[reading("a/1", "x"), reading("b/1", "y")]).await.unwrap();
    let later = outbox.clock().stamp().wall_us + 5_000_000;
    hand.advance(Duration::from_secs(10));
    outbox.put(&[reading("a/2", "z")]).await.unwrap();
    let found = |query: Query| -> Vec<u64> {
        query::run(outbox.log(), outbox.clock(), &query).map(|item| item.unwrap().0.seq).collect()
    };
    assert_eq!(found(Query::default()), [1, 2, 3]);
    assert_eq!(found(Query { topic: Some("a/#".into()), ..Query::default() }), [1, 3]);
    assert_eq!(found(Query { since_us: Some(later), ..Query::default() }), [3]);
    assert_eq!(found(Query { until_us: Some(later), ..Query::default() }), [1, 2]);
}
