//! Pulls against a registry that misbehaves, restarts in between, and what happens to images afterwards.

use std::{sync::Arc, time::Duration};

use super::{
    testing::{Board, Client, bytes, failure, request},
    *,
};

fn host() -> String {
    crate::platform::Platform::host().to_string()
}

async fn board_with(name: &str, sizes: &[usize]) -> (Board, Vec<bytes::Bytes>) {
    let board = Board::new().await;
    let layers: Vec<_> = sizes.iter().zip(1..).map(|(size, seed)| bytes(seed, *size)).collect();
    board.registry.image(&name.parse().unwrap(), &host(), &layers);
    (board, layers)
}

#[tokio::test]
async fn an_image_is_pulled_once() {
    let (board, layers) = board_with("reg.x/app", &[5000, 3000, 0, 1]).await;
    let (pulled, events) = board.pull(&request("reg.x/app")).await;
    let pulled = pulled.unwrap();
    assert!(pulled.changed);
    assert_eq!(pulled.image.layers().len(), 4);
    assert_eq!(pulled.image.record.size, 8001);
    assert_eq!(pulled.image.config.config.cmd, ["true"]);
    for layer in &layers {
        let digest = Digest::of(layer);
        assert_eq!(board.registry.sent_of(&digest), layer.len());
        let last = events.iter().rev().find_map(|event| match event {
            PullEvent::Layer { layer, status } if *layer == digest => Some(status.clone()),
            _ => None,
        });
        assert_eq!(last, Some(LayerStatus::Done));
    }
    let (again, events) = board.pull(&request("reg.x/app")).await;
    assert!(!again.unwrap().changed);
    let exists = |event: &&PullEvent| matches!(event, PullEvent::Layer { status: LayerStatus::Exists, .. });
    assert_eq!(events.iter().filter(exists).count(), 4);
    assert!(layers.iter().all(|layer| board.registry.sent_of(&Digest::of(layer)) == layer.len()));
}

#[tokio::test]
async fn as_many_layers_come_at_once_as_were_asked_for() {
    for parallel in [1, 2, 4] {
        let board = Board::with(|options| options.parallel_downloads = parallel).await;
        let layers: Vec<_> = (1..=4).map(|seed| bytes(seed, 5000)).collect();
        board.registry.image(&"reg.x/app".parse().unwrap(), &host(), &layers);
        // With fewer at once none would begin; that there are no more, the registry counts.
        board.registry.faults().together = Some(Arc::new(tokio::sync::Barrier::new(parallel)));
        board.pull(&request("reg.x/app")).await.0.unwrap();
        let most = board.registry.busy.lock().unwrap().1;
        assert_eq!(most, parallel);
    }
}

#[tokio::test]
async fn a_pull_is_counted_and_told() {
    use crate::event::{Filter, Next};
    let metrics = board::metrics::Metrics::new();
    let (mut board, _) = board_with("reg.x/app", &[5000, 3000]).await;
    board.images.register(&metrics);
    let mut events = board.images.0.events.subscribe(Filter::default(), None);
    board.pull(&request("reg.x/app")).await.0.unwrap();
    board.pull(&request("reg.x/app")).await.0.unwrap();
    board.registry.faults().down = true;
    board.pull(&request("reg.x/app")).await.0.unwrap();
    board.pull(&request("reg.x/other")).await.0.unwrap_err();
    let text = metrics.encode();
    for line in [
        "edge_agent_image_fetched_bytes_total 8000",
        "edge_agent_image_pulls_total{result=\"changed\"} 1",
        "edge_agent_image_pulls_total{result=\"current\"} 1",
        "edge_agent_image_pulls_total{result=\"offline\"} 1",
        "edge_agent_image_pulls_total{result=\"failed\"} 1",
    ] {
        assert!(text.lines().any(|it| it == line), "{line} is not in {text}");
    }
    let stored = text.lines().find_map(|it| it.strip_prefix("edge_agent_image_store_bytes ")).unwrap();
    assert!(stored.parse::<u64>().unwrap() > 16_000, "layers, their blobs and documents: {stored}");
    let mut told = Vec::new();
    while let Some(Next::Event(event)) = events.try_next() {
        told.push((event.id.clone(), event.action.docker(event.kind)));
    }
    assert_eq!(told, [("reg.x/app:latest".to_owned(), "pull"), ("reg.x/app:latest".to_owned(), "pull")]);
    board.restart().await;
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_was() {
    let (board, layers) = board_with("reg.x/app", &[20_000, 10_500]).await;
    *board.registry.faults() = testing::Faults { cut_after: Some(3000), refuse: 2, ..Default::default() };
    // The first two refusals hit the manifest and the configuration, whose retries are the client's.
    assert!(board.pull(&request("reg.x/app")).await.0.is_err());
    assert!(board.pull(&request("reg.x/app")).await.0.is_err());
    board.pull(&request("reg.x/app")).await.0.unwrap();
    for layer in &layers {
        assert_eq!(board.registry.sent_of(&Digest::of(layer)), layer.len(), "no byte twice");
    }
}

#[tokio::test]
async fn a_dropped_pull_and_a_restart_lose_nothing() {
    let (mut board, layers) = board_with("reg.x/app", &[60_000, 40_000]).await;
    board.registry.faults().pause = Duration::from_millis(2);
    for _ in 0..3 {
        let request = request("reg.x/app");
        let dropped = tokio::time::timeout(Duration::from_millis(40), board.pull(&request)).await;
        assert!(dropped.is_err(), "the pull was over too soon for this test");
        tokio::time::sleep(Duration::from_millis(50)).await; // The writers of the dropped pull end.
        board.restart().await;
    }
    board.registry.faults().pause = Duration::ZERO;
    board.pull(&request("reg.x/app")).await.0.unwrap();
    for layer in &layers {
        let sent = board.registry.sent_of(&Digest::of(layer));
        // What was between the registry and the file when the pull was dropped is fetched again: a few pieces each time.
        assert!(sent >= layer.len() && sent <= layer.len() + 3 * 6 * 1000, "{sent} of {}", layer.len());
    }
}

#[tokio::test]
async fn two_pulls_share_a_download_and_survive_each_other() {
    let (board, layers) = board_with("reg.x/app", &[30_000]).await;
    board.registry.faults().pause = Duration::from_millis(1);
    let request = request("reg.x/app");
    let (one, other) = tokio::join!(board.pull(&request), board.pull(&request));
    one.0.unwrap();
    other.0.unwrap();
    assert_eq!(board.registry.sent_of(&Digest::of(&layers[0])), 30_000);

    let (board, layers) = board_with("reg.x/app", &[30_000]).await;
    board.registry.faults().pause = Duration::from_millis(2);
    let first = tokio::time::timeout(Duration::from_millis(20), board.pull(&request));
    let (first, second) = tokio::join!(first, board.pull(&request));
    assert!(first.is_err());
    second.0.unwrap();
    assert!(board.registry.sent_of(&Digest::of(&layers[0])) <= 36_000);
}

#[tokio::test]
async fn wrong_bytes_are_fetched_anew_once() {
    let (board, layers) = board_with("reg.x/app", &[5000]).await;
    board.registry.faults().corrupt = 1;
    board.pull(&request("reg.x/app")).await.0.unwrap();
    assert_eq!(board.registry.sent_of(&Digest::of(&layers[0])), 10_000);

    let (board, _) = board_with("reg.x/app", &[5000]).await;
    board.registry.faults().corrupt = 9;
    let error = board.pull(&request("reg.x/app")).await.0.unwrap_err();
    assert!(error.is_damage() && error.to_string().contains("reg.x/app"), "{error}");
    assert_eq!(board.images.content().partials().unwrap(), []);
    assert!(board.images.list(None).is_empty());
}

#[tokio::test]
async fn damage_found_later_is_mended() {
    let (mut board, layers) = board_with("reg.x/app", &[5000, 2000]).await;
    let image = board.pull(&request("reg.x/app")).await.0.unwrap().image;
    let blob = Digest::of(&layers[0]);
    // The layer is lost, its blob is sound: no byte is fetched.
    board.layers.lose(&blob);
    board.restart().await;
    assert!(board.images.mend(&image.record).await);
    assert_eq!(board.registry.sent_of(&blob), 5000);
    // Both are damaged.
    board.layers.lose(&blob);
    std::fs::write(board.images.content().path(&blob), b"rot").unwrap();
    assert!(!board.images.mend(&image.record).await);
    board.pull(&request("reg.x/app")).await.0.unwrap();
    assert_eq!(board.registry.sent_of(&blob), 10_000);
    // A damaged configuration and a blob that `verify` finds.
    std::fs::write(board.images.content().path(&image.id()), b"{").unwrap();
    std::fs::write(board.images.content().path(&blob), b"rot").unwrap();
    let damage = board.images.verify(&Owner::Local, "reg.x/app").await.unwrap();
    assert_eq!(damage.len(), 2, "{damage:?}");
    assert!(board.images.get(&Owner::Local, "reg.x/app").await.is_err());
    board.pull(&request("reg.x/app")).await.0.unwrap();
    assert_eq!(board.images.verify(&Owner::Local, "reg.x/app").await.unwrap(), []);
}

#[tokio::test]
async fn layers_with_links_into_lower_ones_come_after_them() {
    let (board, layers) = board_with("reg.x/app", &[5000, 6000, 7000]).await;
    let linked = Digest::of(&layers[1]);
    board.layers.linked.lock().unwrap().insert(linked);
    board.pull(&request("reg.x/app")).await.0.unwrap();
    assert!(board.layers.has(&linked));
    assert!(board.registry.sent_of(&linked) <= 6000, "{}", board.registry.sent_of(&linked));
}

#[tokio::test]
async fn policies_and_an_absent_registry() {
    let (board, _) = board_with("reg.x/app", &[500]).await;
    let with = |policy| PullRequest { policy, ..request("reg.x/app") };
    assert!(matches!(board.pull(&with(PullPolicy::Never)).await.0, Err(PullError::Absent { .. })));
    board.pull(&with(PullPolicy::Missing)).await.0.unwrap();
    board.registry.faults().down = true;
    assert!(board.pull(&with(PullPolicy::Missing)).await.0.unwrap().offline.is_none());
    assert!(!board.pull(&with(PullPolicy::Never)).await.0.unwrap().changed);
    let (offline, events) = board.pull(&with(PullPolicy::Always)).await;
    assert!(offline.unwrap().offline.is_some());
    assert!(matches!(events.as_slice(), [PullEvent::Note { .. }]), "{events:?}");
    let error = board.pull(&request("reg.x/other")).await.0.unwrap_err();
    assert!(error.is_transient() && error.code() == "unavailable", "{error}");
    board.registry.faults().down = false;
    assert_eq!(board.pull(&request("reg.x/other")).await.0.unwrap_err().code(), "not_found");
}

#[tokio::test]
async fn platforms_are_chosen_and_refused_by_name() {
    let board = Board::new().await;
    let name = "reg.x/app".parse().unwrap();
    let arm = board.registry.image(&name, "linux/arm/v7", &[bytes(1, 100)]);
    let host_digest = board.registry.image(&name, &host(), &[bytes(2, 200)]);
    let index = board.registry.index(&name, &[("linux/arm/v7", arm), (&host(), host_digest)]);
    let image = board.pull(&request("reg.x/app")).await.0.unwrap().image;
    assert_eq!((image.record.target, image.record.manifest), (index, host_digest));
    let other = PullRequest { platform: Some("linux/arm/v7".parse().unwrap()), ..request("reg.x/app") };
    assert_eq!(board.pull(&other).await.0.unwrap().image.record.manifest, arm);
    let none = PullRequest { platform: Some("linux/s390x".parse().unwrap()), ..request("reg.x/app") };
    let error = board.pull(&none).await.0.unwrap_err().to_string();
    assert!(error.contains("linux/arm/v7") && error.contains("linux/s390x"), "{error}");
    board.registry.image(&"reg.x/s390".parse().unwrap(), "linux/s390x", &[bytes(3, 10)]);
    let error = board.pull(&request("reg.x/s390")).await.0.unwrap_err();
    assert_eq!(error.code(), "platform");
    assert!(error.to_string().contains(&host()), "{error}");
    assert_eq!(board.registry.sent_of(&Digest::of(&bytes(3, 10))), 0);
}

#[tokio::test]
async fn manifests_that_lie_are_refused() {
    let board = Board::new().await;
    let name: crate::reference::ImageRef = "reg.x/app".parse().unwrap();
    let layer = Descriptor { media_type: manifest::OCI_LAYER.into(), ..Descriptor::of("", &bytes(1, 50)) };
    board.registry.blob_put(&bytes(1, 50));
    for config in [&b"{"[..], br#"{"os":"linux","architecture":"X","rootfs":{"diff_ids":[]}}"#] {
        let config = String::from_utf8_lossy(config).replace('X', &crate::platform::Platform::host().architecture);
        board.registry.blob_put(config.as_bytes());
        let config = Descriptor::of(manifest::OCI_CONFIG, config.as_bytes());
        board.registry.manifest_put(&name, &config, std::slice::from_ref(&layer));
        let error = board.pull(&request("reg.x/app")).await.0.unwrap_err();
        assert!(matches!(error, PullError::Document { .. }) && error.code() == "invalid", "{error}");
    }
    assert!(board.images.list(None).is_empty());
}

#[tokio::test]
async fn what_does_not_fit_is_refused_before_and_during() {
    let board = Board::with_quota(Some(10 << 20)).await;
    let big = bytes(1, 6 << 20);
    board.registry.image(&"reg.x/big".parse().unwrap(), &host(), std::slice::from_ref(&big));
    let error = board.pull(&request("reg.x/big")).await.0.unwrap_err();
    let PullError::NoSpace { free, need, .. } = &error else { panic!("{error}") };
    assert!(need > free && error.code() == "no_space" && error.to_string().contains("reg.x/big"), "{error}");
    assert_eq!(board.registry.sent_of(&Digest::of(&big)), 0);
    // What fits goes in once older images made room for it.
    board.registry.image(&"reg.x/a".parse().unwrap(), &host(), &[bytes(2, 2 << 20)]);
    board.registry.image(&"reg.x/b".parse().unwrap(), &host(), &[bytes(3, 3 << 20)]);
    board.pull(&request("reg.x/a")).await.0.unwrap();
    board.pull(&request("reg.x/b")).await.0.unwrap();
    assert_eq!(board.images.list(None).len(), 1);
    assert!(!board.layers.has(&Digest::of(&bytes(2, 2 << 20))));
}

struct Used(Digest);

impl InUse for Used {
    fn images(&self) -> Vec<(Digest, String)> {
        vec![(self.0, "web".into())]
    }
}

#[tokio::test]
async fn names_come_and_go() {
    let (board, layers) = board_with("reg.x/app:1", &[500]).await;
    let image = board.pull(&request("reg.x/app:1")).await.0.unwrap().image;
    let images = &board.images;
    images.tag(&Owner::Local, "reg.x/app:1", "app").await.unwrap();
    let job = Owner::Job("7".into());
    images.tag(&job, "app", "mine").await.unwrap();
    assert!(images.get(&Owner::Local, "mine").await.is_err(), "another owner's name");
    assert_eq!(images.get(&job, "mine").await.unwrap().id(), image.id());
    let hex = image.id().hex();
    for name in ["app", "app:latest", &hex[..8], &image.id().to_string(), &format!("reg.x/app@{}", image.record.target)]
    {
        assert_eq!(images.get(&Owner::Local, name).await.unwrap().id(), image.id(), "{name}");
    }
    assert!(matches!(images.get(&Owner::Local, "nope").await, Err(ImageError::NotFound(_))));
    let told = images.inspect(&Owner::Local, "app").await.unwrap();
    assert_eq!(told["RepoTags"], serde_json::json!(["app:latest", "reg.x/app:1"]));
    assert_eq!(told["RepoDigests"][0], format!("reg.x/app@{}", image.record.target));
    assert_eq!(told["Config"]["Cmd"][0], "true");
    assert_eq!(images.history(&Owner::Local, "app").await.unwrap()[0].size, 500);

    images.set_in_use(Arc::new(Used(image.id())));
    assert!(matches!(images.remove(&Owner::Local, &hex[..12], false).await, Err(ImageError::Names { .. })));
    assert_eq!(images.remove(&Owner::Local, "app", false).await.unwrap(), [Change::Untagged("app:latest".into())]);
    images.remove(&job, "mine", false).await.unwrap();
    let error = images.remove(&Owner::Local, "reg.x/app:1", false).await.unwrap_err();
    assert!(matches!(&error, ImageError::InUse { by, .. } if by == "web"), "{error}");
    images.remove(&Owner::Local, "reg.x/app:1", true).await.unwrap();
    assert!(board.layers.has(&Digest::of(&layers[0])), "a container stands on it");
    images.set_in_use(Arc::new(Used(Digest::of(b"other"))));
    let gone = images.remove(&Owner::Local, &hex, false).await.unwrap();
    assert_eq!(gone, [Change::Deleted(image.id())]);
    assert!(!board.layers.has(&Digest::of(&layers[0])));
    assert_eq!(images.content().list().unwrap(), []);
}

#[tokio::test]
async fn a_name_that_moves_leaves_its_old_image_for_prune() {
    let (board, _) = board_with("reg.x/app", &[500]).await;
    board.pull(&request("reg.x/app")).await.0.unwrap();
    board.registry.image(&"reg.x/app".parse().unwrap(), &host(), &[bytes(9, 900)]);
    board.pull(&request("reg.x/app")).await.0.unwrap();
    assert_eq!(board.images.list(None).len(), 2);
    let report = board.images.prune(false).await.unwrap();
    assert_eq!((report.images.len(), report.layers), (1, 1));
    assert_eq!(board.images.list(None).len(), 1);
    assert_eq!(board.images.prune(true).await.unwrap().images, ["reg.x/app:latest"]);
    let _ = (failure("x", false), Client(board.registry.clone()));
}
