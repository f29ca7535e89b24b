//! The registry client before Debian's docker-registry, in all the ways that users have one, and behind a proxy that misbehaves.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use anyhow::{Context, Result, ensure};
use container_engine::{
    content::Digest,
    reference::ImageRef,
    registry::{
        Credentials, Descriptor, Document, ImageManifest, Options, Pushed, Registry as Client, RegistryError, Retry,
        Secret,
    },
};
use tests::{
    Certificates, images,
    registry::{Fault, Login, Proxy, Registry, USER},
};

fn ada() -> Credentials {
    Credentials::basic(USER.0, USER.1)
}

fn client(options: Options) -> Result<Client> {
    let _ = rustls::crypto::ring::default_provider().install_default(); // By another test of this program, perhaps.
    Ok(Client::new(options)?)
}

async fn manifest(
    client: &Client,
    image: &ImageRef,
    credentials: &Credentials,
) -> Result<ImageManifest, RegistryError> {
    match client.manifest(image, credentials).await?.document {
        Document::Image(manifest) => Ok(manifest),
        Document::Index(_) => panic!("an index where an image was pushed"),
    }
}

/// A blob whole, going on after each cut; with the number of connections.
async fn whole(client: &Client, image: &ImageRef, blob: &Descriptor, who: &Credentials) -> Result<(Vec<u8>, u32)> {
    let (mut bytes, mut retry, mut connections) = (Vec::new(), Retry::default(), 0);
    while (bytes.len() as u64) < blob.size {
        connections += 1;
        let error = match client.blob(image, blob, bytes.len() as u64, who).await {
            Ok(mut stream) => {
                bytes.truncate(usize::try_from(stream.start())?);
                loop {
                    match stream.next().await {
                        Ok(Some(chunk)) => {
                            bytes.extend_from_slice(&chunk);
                            retry.progress();
                        }
                        Ok(None) => break None,
                        Err(error) => break Some(error),
                    }
                }
            }
            Err(error) => Some(error),
        };
        if let Some(error) = error {
            retry.wait(error).await?;
        }
    }
    Ok((bytes, connections))
}

#[tokio::test]
async fn registry_pulls_and_pushes_with_every_login() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let layout = images::random(dir.path(), "image", 2, 3)?;
    let certificates = Certificates::make(&dir.path().join("certificates"))?;
    for (login, tls) in [(Login::None, false), (Login::Basic, true), (Login::Token, false), (Login::Token, true)] {
        let place = dir.path().join(format!("{login:?}-{tls}"));
        let server = Registry::start_with(&place, login, tls.then_some(&certificates))?;
        let image: ImageRef = server.push(&layout, "group/image:one")?.parse()?;
        let certs = place.join("certs");
        fs::create_dir_all(certs.join(&server.address))?;
        fs::copy(&certificates.ca, certs.join(&server.address).join("ca.crt"))?;
        let client = client(Options { certs_dir: Some(certs), ..Options::default() })?;
        client.login(&image, &ada()).await?;
        let found = manifest(&client, &image, &ada()).await?;
        let copy: ImageRef = format!("{}/other/copy:two", server.address).parse()?;
        for blob in found.layers.iter().chain([&found.config]) {
            let (bytes, _) = whole(&client, &image, blob, &ada()).await?;
            ensure!(Digest::of(&bytes) == blob.digest, "{login:?}: other bytes");
            push(&client, &copy, blob, &bytes, &place, login).await?;
        }
        let whole = client.manifest(&image, &ada()).await?;
        client.push_manifest(&copy, whole.bytes.clone(), &whole.media_type, &ada()).await?;
        ensure!(manifest(&client, &copy, &ada()).await? == found, "{login:?}: another image");
        ensure!(client.tags(&copy, &ada()).await? == ["two"]);
        refused(&client, &image, login).await?;
    }
    Ok(())
}

/// Uploaded, then there; from there mounted into a third repository.
async fn push(client: &Client, to: &ImageRef, blob: &Descriptor, bytes: &[u8], dir: &Path, login: Login) -> Result<()> {
    let file = dir.join("blob");
    fs::write(&file, bytes)?;
    let quiet = || Arc::new(|_| ());
    let first = client.push_blob(to, blob, &file, &[], &ada(), quiet()).await?;
    ensure!(first == Pushed::Uploaded, "{login:?}: {first:?}");
    let again = client.push_blob(to, blob, &file, &[], &ada(), quiet()).await?;
    ensure!(again == Pushed::Existed, "{login:?}: {again:?}");
    let third: ImageRef = format!("{}/third:x", to.registry()).parse()?;
    let mounted = client.push_blob(&third, blob, &file, &[to.repository().to_owned()], &ada(), quiet()).await?;
    ensure!(mounted == Pushed::Mounted, "{login:?}: {mounted:?}");
    Ok(())
}

async fn refused(client: &Client, image: &ImageRef, login: Login) -> Result<()> {
    let missing = image.with_tag("missing")?;
    let error = client.manifest(&missing, &ada()).await.err().context("a missing tag was found")?;
    ensure!(matches!(error, RegistryError::NotFound { .. }), "{error}");
    if login == Login::None {
        return Ok(());
    }
    let wrong = Credentials::basic(USER.0, "not the secret");
    let error = client.login(image, &wrong).await.err().context("a wrong password was taken")?;
    ensure!(matches!(error, RegistryError::Denied { .. }), "{error:?}");
    ensure!(!format!("{error} {error:?}").contains("not the secret"), "a secret in {error:?}");
    if login == Login::Basic {
        let error = client.manifest(image, &Credentials::Anonymous).await.err().context("let in without a login")?;
        ensure!(matches!(error, RegistryError::Unauthorized { .. }), "{error:?}");
        ensure!(error.to_string().contains("image login"), "{error}");
    } else {
        manifest(client, image, &Credentials::Anonymous).await?;
    }
    Ok(())
}

#[tokio::test]
async fn registry_cuts_are_survived_without_a_byte_twice() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Registry::start(dir.path())?;
    let layout = images::random(dir.path(), "image", 1, 4)?;
    server.push(&layout, "image:latest")?;
    let proxy = Proxy::start(&dir.path().join("proxy"), server.port())?;
    let image: ImageRef = format!("{}/image", proxy.address).parse()?;
    let client = client(Options::default())?;
    let who = Credentials::Anonymous;
    let found = manifest(&client, &image, &who).await?;
    let layer = &found.layers[0];
    let half = layer.size / 3;
    proxy.fault(&Fault::Cut { after: half, times: 2 })?;
    let (bytes, connections) = whole(&client, &image, layer, &who).await?;
    ensure!(Digest::of(&bytes) == layer.digest && connections == 3, "{connections} connections");
    let seen = &proxy.seen()[&layer.digest.to_string()];
    ensure!(seen.bytes == layer.size, "{seen:?} of {} bytes", layer.size);
    proxy.fault(&Fault::NoRange { after: half })?;
    let (bytes, _) = whole(&client, &image, layer, &who).await?;
    ensure!(Digest::of(&bytes) == layer.digest, "without ranges: other bytes");
    proxy.fault(&Fault::Refuse { status: 429, times: 3 })?;
    manifest(&client, &image, &who).await?;
    proxy.fault(&Fault::Refuse { status: 503, times: 2 })?;
    let (bytes, _) = whole(&client, &image, layer, &who).await?;
    ensure!(Digest::of(&bytes) == layer.digest, "after 503: other bytes");
    proxy.fault(&Fault::Cut { after: half, times: 2 })?;
    let (file, copy) = (dir.path().join("blob"), format!("{}/copy:x", proxy.address).parse()?);
    fs::write(&file, &bytes)?;
    let pushed = client.push_blob(&copy, layer, &file, &[], &who, Arc::new(|_| ())).await?;
    ensure!(pushed == Pushed::Uploaded, "{pushed:?}");
    let (again, _) = whole(&client, &copy, layer, &who).await?;
    ensure!(again == bytes, "pushed other bytes");
    Ok(())
}

#[tokio::test]
async fn registry_mirrors_come_first_and_are_not_needed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (origin, mirror) = (Registry::start(&dir.path().join("a"))?, Registry::start(&dir.path().join("b"))?);
    let layout = images::random(dir.path(), "image", 1, 1)?;
    let both: ImageRef = origin.push(&layout, "both:latest")?.parse()?;
    mirror.push(&layout, "both:latest")?;
    let single: ImageRef = origin.push(&layout, "single:latest")?.parse()?;
    let dead = "127.0.0.1:1".to_owned();
    let mirrors = BTreeMap::from([(origin.address.clone(), vec![dead, format!("http://{}", mirror.address)])]);
    let client = client(Options { mirrors, ..Options::default() })?;
    let who = Credentials::Anonymous;
    ensure!(client.manifest(&both, &who).await?.source == mirror.address);
    let found = client.manifest(&single, &who).await?;
    ensure!(found.source == origin.address, "{}", found.source);
    Ok(())
}

#[tokio::test]
async fn registry_problems_say_what_to_do() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut certificates = Certificates::make(&dir.path().join("certificates"))?;
    // An address that leads here and is not loopback, which is trusted without a certificate.
    certificates.server = certificates.issue_server("any", &["0.0.0.0"], false)?;
    let tls = Registry::start_with(&dir.path().join("tls"), Login::Basic, Some(&certificates))?;
    let plain = Registry::start(&dir.path().join("plain"))?;
    let certs = dir.path().join("certs.d");
    let who = Credentials::Anonymous;
    let told = async |options: Options, credentials: &Credentials, address: &str| -> Result<RegistryError> {
        let image: ImageRef = format!("{address}/none").parse()?;
        let options = Options { certs_dir: Some(certs.clone()), ..options };
        client(options)?.manifest(&image, credentials).await.err().context("no error")
    };
    let nowhere = told(Options::default(), &who, "127.0.0.1:1").await?;
    ensure!(nowhere.to_string().contains("cannot reach 127.0.0.1:1") && nowhere.is_transient(), "{nowhere}");

    let address = format!("0.0.0.0:{}", plain.port());
    let mix_up = told(Options::default(), &who, &address).await?;
    ensure!(matches!(mix_up, RegistryError::PlainHttp { .. }), "{mix_up}");
    let insecure = || Options { insecure: [address.clone()].into(), ..Options::default() };
    let found = told(insecure(), &who, &address).await?;
    ensure!(matches!(found, RegistryError::NotFound { .. }), "{found}");

    let address = format!("0.0.0.0:{}", tls.port());
    let unknown = told(Options::default(), &ada(), &address).await?;
    ensure!(matches!(unknown, RegistryError::Tls { .. }), "{unknown}");
    ensure!(unknown.to_string().contains(&format!("certs.d/{address}/ca.crt")), "{unknown}");
    let insecure = Options { insecure: ["0.0.0.0".to_owned()].into(), ..Options::default() };
    let found = told(insecure, &ada(), &address).await?;
    ensure!(matches!(found, RegistryError::NotFound { .. }), "{found}");
    fs::create_dir_all(certs.join(&address))?;
    fs::copy(&certificates.ca, certs.join(&address).join("ca.crt"))?;
    let found = told(Options::default(), &ada(), &address).await?;
    ensure!(matches!(found, RegistryError::NotFound { .. }), "with its CA: {found}");
    fs::write(certs.join(&address).join("ca.crt"), "nonsense")?;
    let broken = told(Options::default(), &ada(), &address).await?;
    ensure!(broken.to_string().contains("no certificate"), "{broken}");
    Ok(())
}

#[tokio::test]
async fn registry_tokens_come_for_an_identity_token_too() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = Registry::start_with(dir.path(), Login::Token, None)?;
    let image: ImageRef = format!("{}/made/here:one", server.address).parse()?;
    let client = client(Options::default())?;
    let (file, blob) = (dir.path().join("blob"), Descriptor::of("l", b"blob"));
    fs::write(&file, "blob")?;
    let push = async |token: &str| {
        let who = Credentials::IdentityToken { token: Secret::new(token) };
        client.push_blob(&image, &blob, &file, &[], &who, Arc::new(|_| ())).await
    };
    ensure!(push("identity").await? == Pushed::Uploaded);
    let error = push("hush-hush").await.err().context("any identity token is taken")?;
    ensure!(matches!(error, RegistryError::Denied { .. }), "{error}");
    ensure!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
    let (other, who) = (Descriptor::of("l", b"BLOB"), Credentials::Anonymous);
    let anonymous = client.push_blob(&image, &other, &file, &[], &who, Arc::new(|_| ())).await;
    ensure!(matches!(anonymous, Err(RegistryError::Unauthorized { .. })), "{anonymous:?}");
    Ok(())
}
