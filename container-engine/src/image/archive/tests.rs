//! Archives of others and ours, and hostile ones.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use tokio::sync::mpsc;

use super::{
    super::testing::{Board, bytes, request},
    *,
};
use crate::{owner::Owner, platform::Platform, reference::ImageRef};

/// A writer whose bytes are seen afterwards.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn save(board: &Board, names: &[&str], format: Format) -> Result<Vec<u8>, ArchiveError> {
    let out = Shared::default();
    let names: Vec<_> = names.iter().map(|it| (*it).to_owned()).collect();
    board.images.save(&Owner::Local, &names, format, out.clone()).await?;
    let bytes = out.0.lock().unwrap().clone();
    Ok(bytes)
}

async fn load(board: &Board, archive: Vec<u8>) -> Result<Vec<Loaded>, ArchiveError> {
    load_as(board, archive, LoadRequest::default()).await
}

async fn load_as(board: &Board, archive: Vec<u8>, request: LoadRequest) -> Result<Vec<Loaded>, ArchiveError> {
    let (events, _told) = mpsc::channel(10);
    board.images.load(&request, io::Cursor::new(archive), &events).await
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, *bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

fn config(layers: &[&[u8]]) -> String {
    let diff_ids: Vec<_> = layers.iter().map(|it| Digest::of(it)).collect();
    let platform = Platform::host();
    serde_json::json!({"architecture": platform.architecture, "os": "linux", "variant": platform.variant,
        "config": {"Cmd": ["sh"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
    .to_string()
}

#[tokio::test]
async fn what_is_saved_is_loaded() {
    let from = Board::new().await;
    let host = Platform::host().to_string();
    from.registry.image(&"reg.x/a".parse().unwrap(), &host, &[bytes(1, 100_000), bytes(2, 10)]);
    from.registry.image(&"reg.x/b:2".parse().unwrap(), &host, &[bytes(1, 100_000)]);
    let a = from.pull(&request("reg.x/a")).await.0.unwrap().image;
    from.pull(&request("reg.x/b:2")).await.0.unwrap();
    from.images.tag(&Owner::Local, "reg.x/a", "short").await.unwrap();
    for format in [Format::DockerArchive, Format::OciArchive] {
        let archive = save(&from, &["reg.x/a", "short", "reg.x/b:2"], format).await.unwrap();
        assert_eq!(archive, save(&from, &["reg.x/a", "short", "reg.x/b:2"], format).await.unwrap());
        let to = Board::new().await;
        let loaded = load(&to, archive).await.unwrap();
        let mut names: Vec<_> = loaded.iter().flat_map(|it| it.names.clone()).collect();
        names.sort_unstable();
        assert_eq!(names, ["reg.x/a:latest", "reg.x/b:2", "short:latest"], "{format:?}");
        assert_eq!(to.images.get(&Owner::Local, "short").await.unwrap().id(), a.id());
        assert_eq!(to.images.get(&Owner::Local, "reg.x/a").await.unwrap().record.manifest, a.record.manifest);
        assert!(to.images.is_whole(&a.record).await);
        assert_eq!(to.images.prune(false).await.unwrap().blobs, 0, "nothing is left over");
    }
    // By id there is no name; an archive of one image takes one.
    let archive = save(&from, &[&a.id().to_string()], Format::DockerArchive).await.unwrap();
    let to = Board::new().await;
    assert_eq!(load(&to, archive.clone()).await.unwrap()[0].names, Vec::<String>::new());
    let named = LoadRequest { name: Some("mine".parse::<ImageRef>().unwrap()), ..LoadRequest::default() };
    assert_eq!(load_as(&to, archive, named).await.unwrap()[0].names, ["mine:latest"]);
    assert_eq!(to.images.list(None).len(), 1, "the nameless one has a name now");
    std::fs::remove_file(from.images.content().path(&a.record.blobs[0])).unwrap();
    assert!(matches!(save(&from, &["short"], Format::OciArchive).await, Err(ArchiveError::Missing { .. })));
}

#[tokio::test]
async fn archives_of_docker_old_and_new() {
    let (one, two) = (&b"layer one"[..], &b"layer two"[..]);
    let config = config(&[one, two]);
    let manifest =
        br#"[{"Config":"abc.json","RepoTags":["app:1","reg.x/app:2"],"Layers":["1/layer.tar","2/layer.tar"]}]"#;
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    // skopeo writes the layer once and links to it.
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    archive.append_link(&mut header, "2/layer.tar", "../two.tar").unwrap();
    let mut bytes = archive.into_inner().unwrap();
    bytes.truncate(bytes.len() - 1024);
    bytes.extend(tar(&[
        ("1/layer.tar", one),
        ("./two.tar", two),
        ("1/VERSION", b"1.0"),
        ("abc.json", config.as_bytes()),
        ("manifest.json", manifest),
    ]));
    let board = Board::new().await;
    let loaded = load(&board, bytes.clone()).await.unwrap();
    assert_eq!(loaded[0].names, ["app:1", "reg.x/app:2"]);
    assert_eq!(loaded[0].image.config.config.cmd, ["sh"]);
    assert_eq!(loaded[0].image.layers(), [Digest::of(one), Digest::of(two)]);
    // Under gzip and zstd.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).unwrap();
    load(&board, gzip.finish().unwrap()).await.unwrap();
    load(&board, zstd::encode_all(&bytes[..], 1).unwrap()).await.unwrap();

    let old = tar(&[
        ("repositories", br#"{"old":{"7":"b"}}"#),
        ("a/json", br#"{"id":"a"}"#),
        ("a/layer.tar", one),
        ("b/json", br#"{"id":"b","parent":"a","config":{"Cmd":["old"]}}"#),
        ("b/layer.tar", two),
    ]);
    let loaded = load(&board, old).await.unwrap();
    assert_eq!(loaded[0].names, ["old:7"]);
    assert_eq!(loaded[0].image.config.config.cmd, ["old"]);
    assert_eq!(loaded[0].image.layers(), [Digest::of(one), Digest::of(two)]);
}

#[tokio::test]
async fn hostile_archives_are_refused_and_leave_nothing() {
    #[track_caller]
    fn check(result: Result<Vec<Loaded>, ArchiveError>, want: &str) {
        match result {
            Ok(_) => panic!("it was loaded; wanted {want:?}"),
            Err(error) => assert!(error.to_string().contains(want), "{error}; wanted {want:?}"),
        }
    }
    let board = Board::new().await;
    let layer = &b"layer"[..];
    let config = config(&[layer]);
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let index = |digest: Digest, kind: &str| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":[{{"mediaType":"{kind}","digest":"{digest}","size":1}}]}}"#
        )
    };
    let oci = "application/vnd.oci.image.index.v1+json";
    check(load(&board, vec![]).await, "none of index.json");
    check(load(&board, b"not an archive".repeat(100)).await, "cannot read");
    check(load(&board, tar(&[("manifest.json", b"{")])).await, "not understood");
    check(load(&board, tar(&[("manifest.json", &vec![b' '; 5 << 20])])).await, "over the limit");
    let up = br#"[{"Config":"../../../etc/passwd","Layers":[]}]"#;
    check(load(&board, tar(&[("manifest.json", up)])).await, "not in it");
    check(load(&board, tar(&[(&blob(b"x"), b"y")])).await, "thrown away");
    check(load(&board, tar(&[("blobs/sha512/00", b"y")])).await, "no SHA-256");
    let few = r#"[{"Config":"c.json","Layers":[]}]"#;
    check(load(&board, tar(&[("c.json", config.as_bytes()), ("manifest.json", few.as_bytes())])).await, "names 1");
    let many: Vec<_> = (0..=listing::MAX_IMAGES).map(|_| serde_json::json!({"Config": "c"})).collect();
    let many = serde_json::to_vec(&many).unwrap();
    check(load(&board, tar(&[("manifest.json", &many)])).await, "over 1000 images");
    let loops = br#"{"a":{"b":"x"}}"#;
    check(
        load(&board, tar(&[("repositories", loops), ("x/json", br#"{"parent":"x"}"#), ("x/layer.tar", b"")])).await,
        "without an end",
    );
    // Indexes in indexes.
    let mut files = Vec::new();
    let mut inner = index(Digest::of(b"nothing"), oci);
    for _ in 0..5 {
        let outer = index(Digest::of(inner.as_bytes()), oci);
        files.push((blob(inner.as_bytes()), inner));
        inner = outer;
    }
    files.push(("index.json".to_owned(), inner));
    let files: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_bytes())).collect();
    check(load(&board, tar(&files)).await, "too deep");
    // A name of many megabytes, which must not be held in memory.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(64 << 20);
    header.set_cksum();
    let mut long = header.as_bytes().to_vec();
    long.resize(1 << 20, b'a');
    check(load(&board, long).await, "name or header of over");
    // One that ends in the midst of a layer.
    let cut = tar(&[("layer.tar", &vec![7; 100_000])]);
    check(load(&board, cut[..50_000].to_vec()).await, "cannot read");
    // Symbolic links in a circle.
    let mut archive = tar::Builder::new(Vec::new());
    for (from, to) in [("a", "b"), ("b", "a")] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, from, to).unwrap();
    }
    let mut circle = archive.into_inner().unwrap();
    circle.truncate(circle.len() - 1024);
    circle.extend(tar(&[("manifest.json", br#"[{"Config":"a"}]"#)]));
    check(load(&board, circle).await, "not in it");
    // Another platform's.
    let other = config.replace(&Platform::host().architecture, "s390x");
    let manifest = br#"[{"Config":"c","RepoTags":["x:1"],"Layers":["l"]}]"#;
    let foreign = tar(&[("c", other.as_bytes()), ("l", layer), ("manifest.json", manifest)]);
    check(load(&board, foreign).await, "is for linux/s390x");

    assert!(board.images.list(None).is_empty());
    board.images.prune(false).await.unwrap();
    assert_eq!(board.images.content().list().unwrap(), []);
    assert_eq!(std::fs::read_dir(board.dir.path().join("images/ingest")).unwrap().count(), 0);
}

#[tokio::test]
async fn an_archive_beyond_the_quota_stops_early() {
    let board = Board::with_quota(Some(1 << 20)).await;
    let error = load(&board, tar(&[("l", &vec![1; 20 << 20])])).await.unwrap_err();
    assert!(matches!(error, ArchiveError::NoSpace { .. }) && error.code() == "no_space", "{error}");
}
