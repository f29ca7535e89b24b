//! The registry client before servers that do what no real registry can be brought to do: lie, leak, hang, forget.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use container_engine::{
    content::Digest,
    reference::ImageRef,
    registry::{Credentials, Descriptor, Options, Pushed, Registry as Client, RegistryError},
};
use tests::registry::{Answer, Asked, Scripted};

const SECRET: &str = "hush-hush";
const POISONED: &str = "another thread of the test panicked";

fn ada() -> Credentials {
    Credentials::basic("ada", SECRET)
}

fn client(options: Options) -> Result<Client> {
    let _ = rustls::crypto::ring::default_provider().install_default(); // By another test of this program, perhaps.
    Ok(Client::with_silence(options, Duration::from_millis(400))?)
}

fn image(server: &Scripted) -> Result<ImageRef> {
    Ok(format!("{}/app:one", server.address).parse()?)
}

/// A name from which the client tells that the server is a registry.
fn is_probe(asked: &Asked) -> bool {
    asked.path == "/v2/"
}

fn manifest() -> String {
    let entry = |kind: &str| format!(r#"{{"mediaType":"{kind}","digest":"{}","size":4}}"#, Digest::of(b"blob"));
    format!(r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#, entry("c"), entry("l"))
}

/// Basic login, or the answer.
fn with_login(asked: &Asked, answer: impl FnOnce() -> Answer) -> Answer {
    if asked.header("authorization").is_empty() {
        return Answer::status(401).with("www-authenticate", "Basic realm=\"x\"");
    }
    answer()
}

#[tokio::test]
async fn registry_redirects_carry_no_login() -> Result<()> {
    let refuse = Arc::new(AtomicU32::new(0));
    let refuses = refuse.clone();
    let storage = Scripted::start(move |asked| {
        if refuses.load(Ordering::SeqCst) == 0 {
            return Answer::body("blob");
        }
        let realm = format!("Bearer realm=\"http://{}/token\",service=\"x\"", asked.header("host"));
        Answer::status(401).with("www-authenticate", realm)
    })?;
    let to = format!("http://{}/blob?signature={SECRET}", storage.address);
    let server = Scripted::start(move |asked| with_login(asked, || Answer::status(307).with("location", to.clone())))?;
    let (client, name, blob) = (client(Options::default())?, image(&server)?, Descriptor::of("l", b"blob"));
    let bytes = client.small_blob(&name, &blob, &ada()).await?;
    ensure!(&bytes[..] == b"blob");
    ensure!(server.asked().iter().any(|it| !it.header("authorization").is_empty()), "never logged in");
    refuse.store(1, Ordering::SeqCst);
    let error = client.blob(&name, &blob, 0, &ada()).await.err().context("refused by the storage")?;
    ensure!(error.is_transient() && !format!("{error} {error:?}").contains(SECRET), "{error:?}");
    let asked = storage.asked();
    ensure!(asked.len() >= 2, "{asked:?}");
    for it in asked {
        ensure!(it.header("authorization").is_empty() && it.path.starts_with("/blob"), "{it:?}");
    }
    Ok(())
}

#[tokio::test]
async fn registry_wrong_answers_are_told() -> Result<()> {
    async fn check(manifest: Answer, blob: Answer, from: u64, want: &str, transient: bool) -> Result<()> {
        let server = Scripted::start(move |asked| match asked.path.contains("/blobs/") {
            _ if is_probe(asked) => Answer::status(200),
            true => blob.clone(),
            false => manifest.clone(),
        })?;
        let (client, name) = (client(Options::default())?, image(&server)?);
        let who = Credentials::Anonymous;
        let got = async {
            client.manifest(&name, &who).await?;
            let mut stream = client.blob(&name, &Descriptor::of("l", b"blob"), from, &who).await?;
            while stream.next().await?.is_some() {}
            Ok::<_, RegistryError>(())
        };
        let error = got.await.err().with_context(|| format!("no error: {want}"))?;
        let text = error.to_string();
        ensure!(text.contains(want) && text.contains(&server.address), "{text}: not {want}");
        ensure!(error.is_transient() == transient, "{text}: transient");
        Ok(())
    }
    let good = || Answer::body(manifest());
    let part = |range: &str| Answer { status: 206, ..Answer::body("lob") }.with("content-range", range);
    let none = || Answer::status(404);
    check(none(), none(), 0, "has no image", false).await?;
    check(Answer::body("<html>"), none(), 0, "wrong answer", false).await?;
    check(Answer::body(vec![b' '; 5 << 20]), none(), 0, "is over 4194304 bytes", false).await?;
    check(Answer::status(403), none(), 0, "wants a login", false).await?;
    check(Answer::status(418), none(), 0, "HTTP 418", false).await?;
    check(good(), none(), 0, "lacks sha256:", false).await?;
    check(good(), part("bytes 2-3/4"), 1, "asked for bytes from 1, it sends them from 2", false).await?;
    check(good(), part("bytes 1-3/9"), 1, "it has 9 bytes, the manifest says 4", false).await?;
    check(good(), Answer { status: 206, ..Answer::body("lob") }, 1, "206 without a range", false).await?;
    check(good(), Answer::status(416), 1, "HTTP 416", false).await?;
    check(good(), Answer::body("longer"), 0, "it has 6 bytes, the manifest says 4", false).await?;
    check(good(), Answer::body("bl").with("content-length", "4"), 0, "does not answer", true).await?;
    let schema_1 = Answer::body(r#"{"schemaVersion":1,"name":"app"}"#)
        .with("content-type", "application/vnd.docker.distribution.manifest.v1+prettyjws");
    let server = Scripted::start(move |_| schema_1.clone())?;
    let error = client(Options::default())?.manifest(&image(&server)?, &ada()).await.err().context("schema 1 read")?;
    ensure!(error.code() == "invalid" && error.to_string().contains("schema 2"), "{error}");
    let name = image(&server)?.with_digest(Digest::of(b"other"));
    let error = client(Options::default())?.manifest(&name, &ada()).await.err().context("other bytes taken")?;
    ensure!(matches!(error, RegistryError::WrongDigest { .. }), "{error}");
    let web = Scripted::start(|_| Answer::status(404))?;
    let error = client(Options::default())?.login(&image(&web)?, &ada()).await.err().context("logged in nowhere")?;
    ensure!(error.to_string().contains("no registry"), "{error}");
    Ok(())
}

#[tokio::test]
async fn registry_that_hangs_is_given_up_and_one_that_is_busy_is_waited_for() -> Result<()> {
    let server = Scripted::start(|asked| {
        let pause = if is_probe(asked) { Duration::ZERO } else { Duration::from_secs(60) };
        Answer { pause, ..Answer::status(200) }
    })?;
    let begin = Instant::now();
    let hangs = client(Options::default())?.manifest(&image(&server)?, &ada()).await.err().context("an answer")?;
    ensure!(matches!(hangs, RegistryError::Silent { .. }) && hangs.is_transient(), "{hangs}");
    ensure!(begin.elapsed() < Duration::from_secs(20) && server.asked().len() == 3, "{:?}", begin.elapsed());

    let waits = Mutex::new(vec![
        Answer::status(429).with("retry-after", "1"),
        Answer::status(503)
            .with("date", "Wed, 21 Oct 2015 07:28:00 GMT")
            .with("retry-after", "Wed, 21 Oct 2015 07:28:02 GMT"),
    ]);
    let server = Scripted::start(move |asked| {
        let next = (!is_probe(asked)).then(|| waits.lock().expect(POISONED).pop()).flatten();
        next.unwrap_or_else(|| Answer::body(manifest()))
    })?;
    let begin = Instant::now();
    client(Options::default())?.manifest(&image(&server)?, &ada()).await?;
    ensure!(begin.elapsed() >= Duration::from_secs(3), "asked again after {:?}", begin.elapsed());
    ensure!(server.asked().len() == 3);
    Ok(())
}

#[tokio::test]
async fn registry_mirrors_get_no_login_and_their_damage_is_mended() -> Result<()> {
    let origin =
        Scripted::start(|asked| {
            with_login(asked, || {
                if asked.path.contains("/blobs/") { Answer::body("blob") } else { Answer::body(manifest()) }
            })
        })?;
    let mirror = Scripted::start(|asked| {
        if asked.path.contains("/blobs/") {
            return Answer::body("blub");
        }
        Answer::status(401).with("www-authenticate", "Basic realm=\"x\"")
    })?;
    let mirrors = BTreeMap::from([(origin.address.clone(), vec![format!("http://{}/hub/", mirror.address)])]);
    let (client, name) = (client(Options { mirrors, ..Options::default() })?, image(&origin)?);
    ensure!(client.manifest(&name, &ada()).await?.source == origin.address);
    let bytes = client.small_blob(&name, &Descriptor::of("c", b"blob"), &ada()).await?;
    ensure!(&bytes[..] == b"blob", "the mirror's bytes were believed");
    let asked = mirror.asked();
    ensure!(asked.len() == 2, "{asked:?}");
    for it in asked {
        ensure!(it.header("authorization").is_empty() && it.path.starts_with("/hub/v2/app/"), "{it:?}");
    }
    Ok(())
}

/// A registry that takes uploads in its own way; what it was given.
struct Uploads {
    server: Scripted,
    stored: Arc<Mutex<Option<Vec<u8>>>>,
}

impl Uploads {
    fn start(special: impl Fn(&Asked, &mut Option<Vec<u8>>) -> Option<Answer> + Send + Sync + 'static) -> Result<Self> {
        let stored = Arc::new(Mutex::new(None));
        let inside = stored.clone();
        let part = Mutex::new(Vec::new());
        let server = Scripted::start(move |asked| {
            let mut stored = inside.lock().expect(POISONED);
            if let Some(answer) = special(asked, &mut stored) {
                return answer;
            }
            let place = || Answer::status(202).with("location", "/v2/app/blobs/uploads/1?state=x");
            match asked.method.as_str() {
                "HEAD" => Answer::status(if stored.is_some() { 200 } else { 404 }),
                "POST" => place(),
                "PATCH" => {
                    part.lock().expect(POISONED).extend_from_slice(&asked.body);
                    place()
                }
                "PUT" => {
                    *stored = Some([part.lock().expect(POISONED).split_off(0), asked.body.clone()].concat());
                    Answer::status(201)
                }
                _ => Answer::status(404),
            }
        })?;
        Ok(Self { server, stored })
    }

    async fn push(&self, client: &Client, dir: &Path, bytes: &[u8], from: &[String]) -> Result<Pushed> {
        let file = dir.join("blob");
        fs::write(&file, bytes)?;
        let blob = Descriptor::of("l", bytes);
        let pushed = client.push_blob(&image(&self.server)?, &blob, &file, from, &ada(), Arc::new(|_| ())).await?;
        let stored = self.stored.lock().expect(POISONED);
        ensure!(stored.as_deref() == Some(bytes), "{:?} bytes stored", stored.as_ref().map(Vec::len));
        Ok(pushed)
    }

    fn methods(&self) -> Vec<String> {
        self.server.asked().into_iter().map(|it| it.method).collect()
    }
}

#[tokio::test]
async fn registry_uploads_find_a_way() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let client = client(Options::default())?;
    let large = vec![7; 3 << 20];

    let plain = Uploads::start(|_, _| None)?;
    ensure!(plain.push(&client, dir.path(), &large, &[]).await? == Pushed::Uploaded);
    ensure!(plain.methods() == ["HEAD", "POST", "PATCH", "PUT"], "{:?}", plain.methods());

    let denied = |asked: &Asked, _: &mut Option<Vec<u8>>| asked.path.contains("mount=").then(|| Answer::status(403));
    let denied = Uploads::start(denied)?;
    ensure!(denied.push(&client, dir.path(), b"small", &["secret/base".to_owned()]).await? == Pushed::Uploaded);
    ensure!(denied.methods() == ["HEAD", "POST", "POST", "PUT"], "{:?}", denied.methods());

    let begun = Uploads::start(|_, _| None)?;
    ensure!(begun.push(&client, dir.path(), b"small", &["base".to_owned()]).await? == Pushed::Uploaded);
    ensure!(
        begun.methods() == ["HEAD", "POST", "PUT"],
        "an upload begun instead of a mount goes on: {:?}",
        begun.methods()
    );

    let whole = Uploads::start(|asked, _| (asked.method == "PATCH").then(|| Answer::status(405)))?;
    ensure!(whole.push(&client, dir.path(), &large, &[]).await? == Pushed::Uploaded);
    ensure!(whole.methods().ends_with(&["POST".to_owned(), "PUT".to_owned()]), "{:?}", whole.methods());

    let lost = AtomicU32::new(0);
    let lost = Uploads::start(move |asked, stored| {
        if asked.method == "PUT" && lost.fetch_add(1, Ordering::SeqCst) == 0 {
            *stored = Some(vec![7; 3 << 20]); // It has all; only its answer is lost.
            return Some(Answer::status(502));
        }
        None
    })?;
    ensure!(lost.push(&client, dir.path(), &large, &[]).await? == Pushed::Uploaded);
    let sent = lost.methods().iter().filter(|it| *it == "PATCH").count();
    ensure!(sent == 1, "sent {sent} times");

    let error = client
        .push_blob(
            &image(&plain.server)?,
            &Descriptor::of("l", b"x"),
            &dir.path().join("none"),
            &[],
            &ada(),
            Arc::new(|_| ()),
        )
        .await;
    ensure!(matches!(error, Err(RegistryError::File { .. })), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn registry_uploads_go_elsewhere_without_a_login() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let storage = Scripted::start(|_| Answer::status(201))?;
    let to = format!("http://{}/upload", storage.address);
    let server = Scripted::start(move |asked| {
        with_login(asked, || match asked.method.as_str() {
            "POST" => Answer::status(202).with("location", to.clone()),
            _ => Answer::status(404),
        })
    })?;
    let file = dir.path().join("blob");
    fs::write(&file, "small")?;
    let blob = Descriptor::of("l", b"small");
    let client = client(Options::default())?;
    let pushed = client.push_blob(&image(&server)?, &blob, &file, &[], &ada(), Arc::new(|_| ())).await?;
    ensure!(pushed == Pushed::Uploaded);
    let asked = storage.asked();
    ensure!(asked.len() == 1 && asked[0].body == b"small", "{asked:?}");
    ensure!(asked[0].header("authorization").is_empty(), "the login went to {}", storage.address);
    Ok(())
}

#[tokio::test]
async fn registry_uploads_may_take_longer_than_silence() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let client = client(Options { bandwidth: Some(1 << 20), ..Options::default() })?;
    let slow = Uploads::start(|_, _| None)?;
    let begin = Instant::now();
    slow.push(&client, dir.path(), &vec![7; 3 << 20], &[]).await?;
    ensure!(begin.elapsed() >= Duration::from_millis(1500), "the cap was not kept: {:?}", begin.elapsed());
    ensure!(slow.methods().iter().filter(|it| *it == "PATCH").count() == 1, "{:?}", slow.methods());
    Ok(())
}
