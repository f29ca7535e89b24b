//! Images against Debian's docker-registry, a proxy that misbehaves, and the archives and images of other people's tools.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use container_engine::{
    commit::CommitRequest,
    container::{ContainerSpec, Status, WaitFor},
    content::Digest,
    engine::Engine,
    event::{Action, Filter, Kind, Next},
    image::{
        Format, Images, LayerStatus, LoadRequest, Options, PullError, PullEvent, PullPolicy, PullRequest, Pulled,
        PushEvent, PushRequest, PushStatus, Water,
    },
    lease::{Leases, Resource},
    network::NetworkSpec,
    owner::Owner,
    registry::{self, Credentials},
    snapshot::Snapshots,
    volume::NewVolume,
};
use store::state::State;
use tests::{
    engine::Bench,
    images,
    registry::{Fault, Proxy, Registry},
};
use tokio::sync::mpsc;

/// A board's images below a folder.
struct Board {
    images: Images,
    snapshots: Snapshots,
    state: State,
    data: PathBuf,
}

impl Board {
    async fn open(data: &Path) -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default(); // By another test of this program, perhaps.
        fs::create_dir_all(data)?;
        let state = State::open(&data.join("state"))?.0;
        let snapshots = Snapshots::open(data, Path::new(env!("CARGO_BIN_EXE_verbs")))?;
        let registry = registry::Registry::new(registry::Options::default())?;
        let options = Options::new(data);
        let leases = Leases::new(state.clone());
        let images = Images::open(options, state.clone(), leases, registry, snapshots.clone()).await?;
        Ok(Self { images, snapshots, state, data: data.to_owned() })
    }

    /// Lets go of the store, as an agent that ends.
    fn close(self) {
        self.state.close();
    }

    async fn pull(&self, name: &str) -> Result<Pulled, PullError> {
        self.pull_telling(name).await.0
    }

    async fn pull_telling(&self, name: &str) -> (Result<Pulled, PullError>, Vec<PullEvent>) {
        let request = PullRequest {
            name: name.parse().expect("a name"),
            owner: Owner::Local,
            platform: None,
            policy: PullPolicy::Always,
            credentials: Credentials::Anonymous,
        };
        let (events, mut told) = mpsc::channel(16);
        let pull = async {
            let result = self.images.pull(&request, &events).await;
            drop(events);
            result
        };
        let listen = async {
            let mut all = Vec::new();
            while let Some(event) = told.recv().await {
                all.push(event);
            }
            all
        };
        tokio::join!(pull, listen)
    }

    /// Where a file of an image lies, in whichever layer.
    fn file(&self, pulled: &Pulled, path: &str) -> Result<PathBuf> {
        let layers = pulled.image.layers();
        let found = layers.iter().enumerate().rev().find_map(|(n, it)| {
            let file = self.snapshots.layer_path(&self.snapshots.layer(it, &layers[..n])?).join(path);
            file.symlink_metadata().is_ok().then_some(file)
        });
        found.with_context(|| format!("no layer has {path}"))
    }
}

/// Where nobody watches.
fn nobody<T>() -> mpsc::Sender<T> {
    mpsc::channel(1).0
}

fn push_request(name: &str) -> Result<PushRequest> {
    let (name, owner, credentials) = (name.parse()?, Owner::Local, Credentials::Anonymous);
    Ok(PushRequest { name, owner, credentials, all_platforms: false })
}

fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().with_context(|| format!("{program} does not start"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{program} {args:?}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn skopeo(args: &[&str]) -> Result<String> {
    run("skopeo", &[&["--insecure-policy"], args].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_every_maker_are_pulled() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Registry::start(&dir.path().join("server"))?;
    let layout = images::busybox(dir.path())?;
    let source = format!("oci:{}:latest", layout.display());
    let target = |name: &str| format!("docker://{}/{name}", server.address);
    let copy = |name: &str, options: &[&str]| {
        let target = target(name);
        let options = [&["copy", "--quiet", "--dest-tls-verify=false"], options, &[&source, &target]].concat();
        skopeo(&options)
    };
    copy("oci", &[])?;
    copy("docker", &["--format", "v2s2"])?;
    copy("zstd", &["--dest-compress-format", "zstd"])?;
    // buildah: two layers, the second with a whiteout.
    let built = format!("{}/built", server.address);
    let storage = dir.path().join("storage");
    let buildah = |args: &[&str]| {
        let place = storage.display().to_string();
        let root = ["--root", &place, "--runroot", &place, "--storage-driver", "vfs"];
        run("buildah", &[&root, args].concat())
    };
    let (signature, from) = (policy(dir.path())?, target("oci"));
    let container = buildah(&["from", "--tls-verify=false", "--signature-policy", &signature, &from])?;
    let container = container.trim().to_owned();
    let root = buildah(&["mount", &container])?.trim().to_owned();
    fs::remove_file(Path::new(&root).join("etc/group"))?;
    fs::write(Path::new(&root).join("etc/made-by"), "buildah")?;
    buildah(&["umount", &container])?;
    let destination = format!("docker://{built}");
    buildah(&["commit", "--quiet", "--signature-policy", &signature, "--tls-verify=false", &container, &destination])?;

    for name in ["oci", "docker", "zstd"] {
        let board = Board::open(&dir.path().join(format!("board-{name}"))).await?;
        let pulled = board.pull(&format!("{}/{name}", server.address)).await?;
        assert!(board.file(&pulled, "bin/busybox")?.metadata()?.len() > 100_000, "{name}");
        assert_eq!(fs::read_link(board.file(&pulled, "bin/sh")?)?, Path::new("busybox"), "{name}");
        assert!(board.images.verify(&Owner::Local, &pulled.image.id().to_string()).await?.is_empty());
    }
    let board = Board::open(&dir.path().join("board")).await?;
    let pulled = board.pull(&built).await?;
    assert_eq!(fs::read_to_string(board.file(&pulled, "etc/made-by")?)?, "buildah");
    let told = board.images.inspect(&Owner::Local, &built).await?;
    let theirs: serde_json::Value = serde_json::from_str(&skopeo(&["inspect", "--tls-verify=false", &destination])?)?;
    assert_eq!(told["Architecture"], theirs["Architecture"]);
    assert_eq!(told["RepoDigests"][0], format!("{built}@{}", theirs["Digest"].as_str().unwrap_or_default()));
    Ok(())
}

fn policy(dir: &Path) -> Result<String> {
    let file = dir.join("policy.json");
    fs::write(&file, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
    Ok(file.display().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn images_whatever_the_network_does_no_byte_comes_twice() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Registry::start(&dir.path().join("server"))?;
    let proxy = Proxy::start(&dir.path().join("proxy"), server.port())?;
    let layout = images::random(dir.path(), "image", 3, 4)?;
    server.push(&layout, "image")?;
    let name = format!("{}/image", proxy.address);
    let faults = [
        ("cut", Fault::Cut { after: 1_000_000, times: 12 }),
        ("busy", Fault::Refuse { status: 429, times: 3 }),
        ("down", Fault::Refuse { status: 503, times: 3 }),
        ("corrupt", Fault::Corrupt { times: 1 }),
        ("no ranges", Fault::NoRange { after: 1_000_000 }),
    ];
    for (what, fault) in faults {
        proxy.fault(&fault)?;
        proxy.forget()?;
        let data = tempfile::tempdir_in(dir.path())?;
        let board = Board::open(data.path()).await?;
        let (pulled, events) = board.pull_telling(&name).await;
        let pulled = pulled.with_context(|| format!("{what}: {events:?}"))?;
        assert!(board.images.is_whole(&pulled.image.record).await, "{what}");
        let sent = proxy.seen();
        for blob in &pulled.image.record.blobs {
            let size = board.images.content().size(blob).context("the blob is here")?;
            let bytes = sent.get(&blob.to_string()).map_or(0, |it| it.bytes);
            // What a cut connection had under way may be lost; a server without ranges, or wrong bytes, cost a second time.
            let most = if matches!(what, "corrupt" | "no ranges") { 2 * size + (1 << 20) } else { size };
            assert!(bytes >= size && bytes <= most, "{what}: {bytes} of {size} for {blob}");
        }
    }
    proxy.fault(&Fault::Corrupt { times: 99 })?;
    let board = Board::open(&dir.path().join("corrupt")).await?;
    let error = board.pull(&name).await.expect_err("wrong bytes are no image");
    let text = board::tasks::chain(&error);
    assert!(text.contains("sha256:") && text.contains("image"), "{text}");
    assert!(board.images.list(None).is_empty());
    assert!(board.snapshots.layers()?.is_empty(), "nothing half-installed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn images_a_killed_pull_goes_on_where_it_was() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Registry::start(&dir.path().join("server"))?;
    let proxy = Proxy::start(&dir.path().join("proxy"), server.port())?;
    let layout = images::random(dir.path(), "image", 2, 8)?;
    server.push(&layout, "image")?;
    let name = format!("{}/image", proxy.address);
    let data = dir.path().join("data");
    fs::create_dir_all(&data)?;
    proxy.fault(&Fault::Slow(3_000_000))?;
    let puller = || Command::new(env!("CARGO_BIN_EXE_puller")).arg(&data).arg(&name).stdout(Stdio::piped()).spawn();
    for _ in 0..4 {
        let mut child = puller()?;
        std::thread::sleep(Duration::from_millis(1100));
        child.kill()?;
        child.wait()?;
    }
    proxy.fault(&Fault::None)?;
    let output = puller()?.wait_with_output()?;
    ensure!(output.status.success(), "the last pull failed");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let sent = proxy.seen();
    let board = Board::open(&data).await?;
    let image = board.images.get(&Owner::Local, &name).await?;
    assert_eq!(told["id"], image.id().to_string());
    assert!(board.images.is_whole(&image.record).await);
    for blob in &image.record.blobs {
        let size = board.images.content().size(blob).context("the blob is here")?;
        let seen = sent.get(&blob.to_string()).context("the blob was fetched")?;
        // Four times what was in the network's buffers and never reached the disk.
        assert!(seen.requests > 1 && seen.bytes <= size + 4 * (400 << 10), "{seen:?} for {size} bytes");
    }
    // A power cut leaves what was synced: here nothing of the third image, and the first two stay.
    assert!(board.images.verify(&Owner::Local, &name).await?.is_empty());
    board.close();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn images_shared_damaged_and_mended() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Registry::start(&dir.path().join("server"))?;
    let proxy = Proxy::start(&dir.path().join("proxy"), server.port())?;
    let layout = images::random(dir.path(), "image", 2, 2)?;
    server.push(&layout, "one")?;
    server.push(&layout, "two")?;
    let (one, two) = (format!("{}/one", proxy.address), format!("{}/two", proxy.address));
    let board = Board::open(&dir.path().join("data")).await?;
    let (first, second) = tokio::join!(board.pull(&one), board.pull(&two));
    let (first, _) = (first?, second?);
    let requests = |proxy: &Proxy, blob: &Digest| proxy.seen().get(&blob.to_string()).map_or(0, |it| it.requests);
    for blob in &first.image.record.blobs {
        assert_eq!(requests(&proxy, blob), 1, "{blob} was fetched once for both");
    }
    let (again, events) = board.pull_telling(&one).await;
    assert!(!again?.changed);
    let exists = |it: &&PullEvent| matches!(it, PullEvent::Layer { status: LayerStatus::Exists, .. });
    assert_eq!(events.iter().filter(exists).count(), 2);
    // A tree that went away is unpacked from its blob; with the blob damaged it is fetched again.
    let (blob, layer) = (first.image.record.blobs[0], first.image.layers()[0]);
    board.images.remove_layer(layer).await?;
    assert!(!board.images.is_whole(&first.image.record).await);
    board.pull(&one).await?;
    assert_eq!(requests(&proxy, &blob), 1);
    board.images.remove_layer(layer).await?;
    let path = board.images.content().path(&blob);
    let mut bytes = fs::read(&path)?;
    bytes[100] ^= 1;
    fs::write(&path, bytes)?;
    board.pull(&one).await?;
    assert_eq!(requests(&proxy, &blob), 2);
    assert!(board.images.is_whole(&first.image.record).await);
    assert!(board.images.verify(&Owner::Local, &one).await?.is_empty());
    assert!(fs::read_dir(board.data.join("set-aside"))?.count() == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_pushed_once_and_mounted() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Registry::start(&dir.path().join("server"))?;
    let source = Registry::start(&dir.path().join("source"))?;
    let layout = images::random(dir.path(), "image", 2, 3)?;
    let name = source.push(&layout, "image")?;
    let board = Board::open(&dir.path().join("data")).await?;
    let pulled = board.pull(&name).await?;
    let push = |target: String| {
        let board = &board;
        let name = name.clone();
        async move {
            board.images.tag(&Owner::Local, &name, &target).await?;
            let request = push_request(&target)?;
            let (events, mut told) = mpsc::channel(1000);
            let digest = board.images.push(&request, &events).await?;
            drop(events);
            let mut ends = Vec::new();
            while let Some(PushEvent::Layer { status, .. }) = told.recv().await {
                if !matches!(status, PushStatus::Waiting | PushStatus::Uploading { .. }) {
                    ends.push(status);
                }
            }
            anyhow::Ok((digest, ends))
        }
    };
    let first = format!("{}/group/first:1", server.address);
    let (digest, ends) = push(first.clone()).await?;
    assert_eq!(digest, pulled.image.record.manifest);
    assert!(ends.iter().all(|it| *it == PushStatus::Done), "{ends:?}");
    let (_, ends) = push(first.clone()).await?;
    assert!(ends.iter().all(|it| *it == PushStatus::Exists), "{ends:?}");
    let (_, ends) = push(format!("{}/group/second:1", server.address)).await?;
    assert!(ends.iter().all(|it| *it == PushStatus::Mounted), "{ends:?}");
    let theirs = skopeo(&["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &format!("docker://{first}")])?;
    assert_eq!(theirs.trim(), digest.to_string());
    // What was pushed is pulled by another board.
    let other = Board::open(&dir.path().join("other")).await?;
    assert_eq!(other.pull(&first).await?.image.id(), pulled.image.id());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn images_archives_are_exchanged_with_skopeo() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let layout = images::busybox(dir.path())?;
    let board = Board::open(&dir.path().join("data")).await?;
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (events, _told) = mpsc::channel(16);
    let load = async |name: &str, path: String| {
        let request = LoadRequest { name: Some(name.parse()?), ..LoadRequest::default() };
        let loaded = board.images.load(&request, fs::File::open(path)?, &events).await?;
        anyhow::Ok(loaded.into_iter().next().context("an image")?.image)
    };
    let source = format!("oci:{}:latest", layout.display());
    skopeo(&["copy", "--quiet", &source, &format!("docker-archive:{}:theirs:1", file("docker.tar"))])?;
    skopeo(&["copy", "--quiet", &source, &format!("oci-archive:{}:theirs:1", file("oci.tar"))])?;
    let docker = load("docker:1", file("docker.tar")).await?;
    let oci = load("oci:1", file("oci.tar")).await?;
    assert_eq!(docker.layers(), oci.layers());
    load("layout:1", images::archive(&layout)?.display().to_string()).await?;
    for (format, transport) in [(Format::DockerArchive, "docker-archive"), (Format::OciArchive, "oci-archive")] {
        let ours = file(&format!("ours-{transport}.tar"));
        let out = fs::File::create(&ours)?;
        board.images.save(&Owner::Local, &["oci:1".to_owned()], format, out).await?;
        let from = match transport {
            "docker-archive" => format!("{transport}:{ours}:oci:1"),
            _ => format!("{transport}:{ours}"),
        };
        let to = file(&format!("back-{transport}"));
        skopeo(&["copy", "--quiet", &from, &format!("dir:{to}")]).with_context(|| transport.to_owned())?;
        let config: serde_json::Value = serde_json::from_str(&skopeo(&["inspect", "--config", &format!("dir:{to}")])?)?;
        assert_eq!(config["rootfs"]["diff_ids"][0], oci.layers()[0].to_string(), "{transport}");
        // And ours by us.
        let other = Board::open(&dir.path().join(transport)).await?;
        let loaded = other.images.load(&LoadRequest::default(), fs::File::open(&ours)?, &events).await?;
        assert_eq!(loaded[0].names, ["oci:1"]);
        assert_eq!(loaded[0].image.id(), oci.id());
    }
    Ok(())
}

/// The engine's own images: a name, and pulls for it.
async fn pull(bench: &Bench, name: &str) -> Result<Pulled> {
    let request = PullRequest {
        name: name.parse()?,
        owner: Owner::Local,
        platform: None,
        policy: PullPolicy::Always,
        credentials: Credentials::Anonymous,
    };
    Ok(bench.engine.images().pull(&request, &nobody()).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn images_go_by_water_and_those_that_are_held_stay() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Registry::start(&dir.path().join("server"))?;
    let mut names = Vec::new();
    for name in ["a", "b", "c", "d"] {
        // 8 MiB compressed and as many unpacked.
        names.push(server.push(&images::random(dir.path(), name, 2, 4)?, name)? + ":latest");
    }
    let [used, leased, idle, newest] = &names[..] else { unreachable!() };
    let bench = Bench::with(|options| {
        options.quota = Some(200 << 20);
        // Images go at 60 MiB, which the fourth reaches, down to 40 MiB.
        options.water = Water { high: 30, low: 20, min_age_s: 0 };
    })
    .await?;
    let engine = &bench.engine;
    let mut events = engine.events().subscribe(Filter { kinds: vec![Kind::Image], ..Filter::default() }, None);
    pull(&bench, used).await?;
    let spec = ContainerSpec { image: used.clone(), ..Bench::shell("") };
    let container = engine.containers().create(spec).await?.id;
    let held = pull(&bench, leased).await?.image;
    engine.leases().create("test", Owner::Local, Duration::from_secs(3600)).await?;
    engine.leases().add("test", [Resource::Image(held.id())]).await?;
    pull(&bench, idle).await?;
    let all = |engine: &Engine| engine.images().list(None).into_iter().map(|it| it.name).collect::<Vec<_>>();
    ensure!(all(engine).len() == 4, "nothing goes below the mark: {:?}", all(engine));
    pull(&bench, newest).await?;
    // By itself, in its own time.
    let gone = async {
        while let Some(next) = events.next().await {
            if let Next::Event(event) = next
                && event.action == Action::Untagged
                && event.attributes.get("name") == Some(idle)
            {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.context("no image was collected")?;
    let left = all(engine);
    for name in [used, leased, newest] {
        ensure!(left.contains(name), "{name} went: {left:?}");
    }
    // A closed engine has ended what it was at.
    engine.close().await;
    for name in [used, leased] {
        let image = engine.images().get(&Owner::Local, name).await?;
        ensure!(engine.images().is_whole(&image.record).await, "{name} has lost layers");
    }
    for blob in &held.record.blobs {
        ensure!(engine.images().content().size(blob).is_some(), "a lease holds the whole image");
    }
    let blobs: u64 = engine.images().content().list()?.iter().map(|it| it.size).sum();
    let layers: u64 = engine.snapshots().layers()?.iter().map(|it| it.bytes).sum();
    ensure!(blobs + layers <= 40 << 20, "{blobs} + {layers} bytes are left");
    ensure!(engine.containers().inspect(&container)?.image.name == *used);
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn images_networks_and_volumes_tell_what_happens() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Registry::start(&dir.path().join("server"))?;
    let name = server.push(&images::random(dir.path(), "image", 1, 1)?, "image")? + ":latest";
    let further = format!("{}/further:2", server.address);
    let bench = Bench::new().await?;
    let engine = &bench.engine;
    let mut events = engine.events().subscribe(Filter::default(), None);
    let id = pull(&bench, &name).await?.image.id().to_string();
    engine.images().tag(&Owner::Local, &name, &further).await?;
    let request = push_request(&further)?;
    engine.images().push(&request, &nobody()).await?;
    engine.images().save(&Owner::Local, std::slice::from_ref(&further), Format::OciArchive, std::io::sink()).await?;
    engine.images().remove(&Owner::Local, &further, false).await?;
    engine.images().remove(&Owner::Local, &name, false).await?;
    let job = Owner::Job("7".into());
    engine.networks().create(&job, NetworkSpec { name: "lab".into(), ..NetworkSpec::default() }).await?;
    engine.networks().remove(&job, "lab").await?;
    let (volumes, of) = (engine.volumes().clone(), job.clone());
    tokio::task::spawn_blocking(move || {
        volumes.create(&of, "data", NewVolume::default())?;
        volumes.create(&of, "data", NewVolume::default())?; // There already: nothing to tell.
        volumes.remove(&of, "data", |_| None)
    })
    .await??;
    let mut told = Vec::new();
    while let Some(Next::Event(event)) = events.try_next() {
        told.push((event.owner.clone(), event.action.docker(event.kind), event.id.clone(), event.kind));
    }
    let local = Owner::Local;
    let want = [
        (local.clone(), "pull", name, Kind::Image),
        (local.clone(), "tag", id.clone(), Kind::Image),
        (local.clone(), "push", further, Kind::Image),
        (local.clone(), "save", id.clone(), Kind::Image),
        (local.clone(), "untag", id.clone(), Kind::Image),
        (local.clone(), "untag", id.clone(), Kind::Image),
        (local, "delete", id, Kind::Image),
        (job.clone(), "create", "lab".to_owned(), Kind::Network),
        (job.clone(), "destroy", "lab".to_owned(), Kind::Network),
        (job.clone(), "create", "data".to_owned(), Kind::Volume),
        (job, "destroy", "data".to_owned(), Kind::Volume),
    ];
    assert_eq!(told, want);
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_made_of_containers() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let bench = Bench::new().await?;
    let (engine, containers) = (&bench.engine, bench.engine.containers());
    let ended = async |spec: ContainerSpec| {
        let id = containers.create(spec).await?.id;
        containers.start(&id).await?;
        anyhow::Ok((containers.wait(&id, WaitFor::NotRunning).await?.code, id))
    };
    let script = "mkdir /new && echo made > /new/file && rm /data/seed && chown 7:8 /new/file";
    let spec = ContainerSpec { env: vec!["A=1".into()], user: Some("0:0".into()), ..Bench::shell(script) };
    let (code, id) = ended(spec).await?;
    ensure!(code == 0, "the container ended with {code}");
    let check = r"test $(cat /new/file) = made && test $(stat -c %u:%g /new/file) = 7:8 && test ! -e /data/seed \
        && test $A$B = 12 && test $(pwd) = /new";
    let request = CommitRequest {
        image: Some("made:1".into()),
        author: "ann".into(),
        message: "with a file".into(),
        changes: vec![
            format!("CMD {}", serde_json::to_string(&["sh", "-c", check])?),
            "ENV B=2".into(),
            "WORKDIR /new".into(),
        ],
        ..CommitRequest::default()
    };
    let image = engine.commit(&id, Owner::Local, request.clone()).await?;
    let base = engine.images().get(&Owner::Local, "busybox").await?;
    ensure!(image.layers().len() == base.layers().len() + 1 && image.layers().starts_with(base.layers()));
    let newest = engine.images().history(&Owner::Local, "made:1").await?.remove(0);
    ensure!(newest.comment == "with a file" && newest.created_by.contains("chown"), "{newest:?}");
    // It runs what it was told to, on what the first wrote.
    let spec = ContainerSpec { image: "made:1".into(), command: None, ..Bench::shell("") };
    let (code, _) = ended(spec).await?;
    ensure!(code == 0, "a container of the new image ended with {code}");
    // Nothing of it goes with garbage, and others read it.
    engine.images().prune(false).await?;
    ensure!(engine.images().verify(&Owner::Local, "made:1").await?.is_empty());
    let archive = dir.path().join("made.tar");
    engine.images().save(&Owner::Local, &["made:1".into()], Format::OciArchive, fs::File::create(&archive)?).await?;
    let theirs = skopeo(&["inspect", "--config", &format!("oci-archive:{}", archive.display())])?;
    let theirs: serde_json::Value = serde_json::from_str(&theirs)?;
    ensure!(theirs["author"] == "ann" && theirs["config"]["WorkingDir"] == "/new", "{theirs}");
    ensure!(theirs["rootfs"]["diff_ids"][1] == image.layers()[1].to_string(), "{theirs}");
    // One that runs stands still meanwhile, and one that never ran has no layer to add.
    let running = containers.create(Bench::shell("exec sleep 1000")).await?.id;
    let idle = engine.commit(&running, Owner::Local, CommitRequest::default()).await?;
    ensure!(idle.layers() == base.layers() && idle.record.name.is_empty());
    containers.start(&running).await?;
    let mut events = engine.events().subscribe(Filter::default(), None);
    engine.commit(&running, Owner::Local, CommitRequest::default()).await?;
    let mut told = Vec::new();
    while let Some(Next::Event(event)) = events.try_next() {
        told.push(event.action.docker(event.kind));
    }
    ensure!(told == ["pause", "unpause", "commit"], "{told:?}");
    ensure!(containers.inspect(&running)?.state.status == Status::Running);
    // What is no change is refused, and nothing is made.
    let before = engine.images().list(None).len();
    let wrong = CommitRequest { image: Some("wrong".into()), changes: vec!["RUN make".into()], ..request };
    let refused = engine.commit(&running, Owner::Local, wrong).await.err().context("it was made")?;
    ensure!(refused.code() == "invalid" && refused.to_string().contains("RUN make"), "{refused}");
    ensure!(engine.images().list(None).len() == before);
    bench.clear().await
}

#[tokio::test(flavor = "multi_thread")]
async fn images_for_several_platforms_are_pushed_whole_where_they_are_here() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let source = Registry::start(&dir.path().join("source"))?;
    let target = Registry::start(&dir.path().join("target"))?;
    let layout = images::for_architectures(dir.path(), "wide", &[images::architecture(), "s390x"])?;
    let (from, name) = (format!("oci:{}:latest", layout.display()), format!("{}/wide:1", source.address));
    skopeo(&["copy", "--all", "--quiet", "--dest-tls-verify=false", &from, &format!("docker://{name}")])?;
    let raw = |name: &str| {
        let text = skopeo(&["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")])?;
        anyhow::Ok((Digest::of(text.as_bytes()), serde_json::from_str::<serde_json::Value>(&text)?))
    };
    let (index, _) = raw(&name)?;
    let board = Board::open(&dir.path().join("data")).await?;
    let push = async |board: &Board, to: &str, all_platforms: bool| {
        board.images.tag(&Owner::Local, &name, to).await?;
        let (events, mut told) = mpsc::channel(1000);
        let pushed = board.images.push(&PushRequest { all_platforms, ..push_request(to)? }, &events).await;
        drop(events);
        let mut notes = String::new();
        while let Some(event) = told.recv().await {
            if let PushEvent::Note { text } = event {
                notes += &text;
            }
        }
        anyhow::Ok((pushed, notes))
    };
    // Pulled for this board alone: that is what can be pushed, and it is said.
    let pulled = board.pull(&name).await?;
    ensure!(pulled.image.record.target == index, "the name means the index");
    let to = format!("{}/wide:whole", target.address);
    let refused = push(&board, &to, true).await?.0.err().context("half an image was pushed as a whole")?;
    ensure!(refused.code() == "not_found" && refused.to_string().contains("linux/s390x"), "{refused}");
    let to = format!("{}/wide:one", target.address);
    let (pushed, notes) = push(&board, &to, false).await?;
    ensure!(pushed? == pulled.image.record.manifest && raw(&to)?.1["layers"].is_array());
    ensure!(notes.contains("2 platforms") && notes.contains("--all-platforms"), "{notes:?}");
    // Pulled whole: pushed whole, also after a collection of what nobody needs.
    let request = PullRequest {
        name: name.parse()?,
        owner: Owner::Local,
        platform: None,
        policy: PullPolicy::Always,
        credentials: Credentials::Anonymous,
    };
    let whole = board.images.pull_all(&request, &nobody()).await?.image;
    ensure!(whole.record.others.len() == 3, "a manifest, a configuration and a layer: {:?}", whole.record.others);
    ensure!(board.pull(&name).await?.image.record.others == whole.record.others, "a further pull forgets nothing");
    board.images.prune(false).await?;
    let to = format!("{}/wide:whole", target.address);
    let (pushed, notes) = push(&board, &to, true).await?;
    ensure!(pushed? == index && notes.is_empty() && raw(&to)?.0 == index, "{notes:?}");
    let copy = format!("dir:{}", dir.path().join("copy").display());
    skopeo(&["copy", "--all", "--quiet", "--src-tls-verify=false", &format!("docker://{to}"), &copy])?;
    // With its name goes what only it had.
    for name in [name.clone(), to, format!("{}/wide:one", target.address)] {
        board.images.remove(&Owner::Local, &name, false).await?;
    }
    ensure!(board.images.content().list()?.is_empty(), "{:?}", board.images.content().list()?);
    // The same from an archive.
    let loaded = Board::open(&dir.path().join("loaded")).await?;
    let load = LoadRequest { name: Some(name.parse()?), all_platforms: true, ..LoadRequest::default() };
    loaded.images.load(&load, fs::File::open(images::archive(&layout)?)?, &nobody()).await?;
    loaded.images.prune(false).await?;
    let to = format!("{}/loaded:1", target.address);
    ensure!(push(&loaded, &to, true).await?.0? == index && raw(&to)?.0 == index);
    Ok(())
}
