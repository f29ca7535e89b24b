//! Reading an archive: each file goes through the ingest as it arrives, what it is for is known at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read},
};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::{
    super::{
        Image, Images, Record,
        flight::Pins,
        manifest::{
            self, Descriptor, Document, ImageConfig, MAX_CONFIG, MAX_LAYERS, MAX_MANIFEST, Manifest, OCI_CONFIG,
            OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST,
        },
        platforms,
    },
    ArchiveError, invalid, listing,
    tarball::{self, Header, Kind},
};
use crate::{
    content::{CHUNK, Content, Digest},
    event::Action,
    lease,
    owner::Owner,
    platform::Platform,
    reference::ImageRef,
};

/// Bytes between two looks at the disk.
const LOOK: u64 = 8 << 20;
/// How deep an index may lie in an index.
const MAX_DEPTH: usize = 3;
/// Files of an archive that are remembered by name.
const MAX_FILES: usize = 20_000;

/// What to load.
#[derive(Debug, Clone, Default)]
pub struct LoadRequest {
    /// Who gets the names.
    pub owner: Owner,
    /// A name for the one image of an archive, where it has none or another.
    pub name: Option<ImageRef>,
    /// For what; this machine where absent.
    pub platform: Option<Platform>,
    /// What is for other platforms is kept too, so that it can be pushed.
    pub all_platforms: bool,
}

/// What a load tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum LoadEvent {
    /// So much of the archive was read.
    Reading {
        /// Bytes, decompressed.
        bytes: u64,
    },
    /// A layer is being unpacked.
    Unpacking {
        /// Of which image.
        image: String,
        /// Which, of its compressed blobs.
        layer: Digest,
    },
}

/// One image that was loaded.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Its names; none where the archive has none.
    pub names: Vec<String>,
    /// It.
    pub image: Image,
}

/// What was found in an archive, all of it blobs by now.
#[derive(Debug, Default)]
struct Found {
    files: BTreeMap<String, Digest>,
    links: BTreeMap<String, String>,
    listings: BTreeMap<&'static str, Vec<u8>>,
    pins: Vec<Pins>,
    bytes: u64,
}

/// An image that is ready to be unpacked and named.
struct Ready {
    names: Vec<ImageRef>,
    target: Digest,
    manifest_digest: Digest,
    manifest: Manifest,
    config: ImageConfig,
    others: Vec<Digest>,
}

impl Images {
    /// Loads every image of an archive, which may be under gzip or zstd.
    ///
    /// * `source` is read from a thread of its own, in one pass, whatever the order of the archive.
    /// * Cancelled: the archive is read on to its end or error, and what came is garbage for the next collection.
    pub async fn load(
        &self,
        request: &LoadRequest,
        source: impl Read + Send + 'static,
        events: &mpsc::Sender<LoadEvent>,
    ) -> Result<Vec<Loaded>, ArchiveError> {
        let (images, told) = (self.clone(), events.clone());
        let want = request.platform.clone().unwrap_or_else(Platform::host);
        let owned = request.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut found = Found::default();
            let mut source = tarball::open(source).map_err(|source| ArchiveError::Stream { action: "read", source })?;
            tarball::entries(&mut *source, |header, data| take(&images, &mut found, header, data, &told))?;
            let mut ready = understand(&images, &mut found, &want)?;
            name(&owned, &mut ready)?;
            for ready in ready.iter_mut().filter(|_| owned.all_platforms) {
                ready.others = platforms::here(images.content(), ready.target)?.blobs();
            }
            Ok::<_, ArchiveError>((ready, found.pins))
        });
        let failed = |error| ArchiveError::Stream { action: "read", source: io::Error::other(error) };
        let (ready, _pins) = read.await.map_err(failed)??;
        let mut loaded = Vec::new();
        for ready in ready {
            loaded.push(self.keep(request, ready, events).await?);
        }
        self.grew().await;
        Ok(loaded)
    }

    /// Unpacks an image and gives it its names.
    async fn keep(
        &self,
        request: &LoadRequest,
        ready: Ready,
        events: &mpsc::Sender<LoadEvent>,
    ) -> Result<Loaded, ArchiveError> {
        let label = ready.names.first().map_or_else(|| ready.manifest.config.digest.to_string(), ImageRef::familiar);
        let blobs: Vec<_> = ready.manifest.layers.iter().map(|it| it.digest).collect();
        for layer in &blobs {
            let _ = events.try_send(LoadEvent::Unpacking { image: label.clone(), layer: *layer });
        }
        let layers = ready.config.rootfs.diff_ids.clone();
        let _pins = self.pin(layers.iter().chain(&blobs).copied()).await;
        let size = self.unpack_present(&ready.manifest, &layers, &label).await?;
        let now = lease::now();
        let nameless = Record {
            name: String::new(),
            owner: request.owner.clone(),
            target: ready.target,
            manifest: ready.manifest_digest,
            config: ready.manifest.config.digest,
            layers,
            blobs,
            platform: ready.config.platform(),
            size,
            created_s: now,
            used_s: now,
            repositories: Vec::new(),
            others: ready.others,
        };
        let names = ready.names.iter().map(ToString::to_string);
        let names: Vec<_> = if ready.names.is_empty() { vec![String::new()] } else { names.collect() };
        let mut record = nameless.clone();
        for name in names {
            record = self.name(Record { name, ..nameless.clone() }).await?;
        }
        let names = ready.names.iter().map(ImageRef::familiar).collect();
        self.tell(&request.owner, &record.config.to_string(), &label, Action::Loaded);
        Ok(Loaded { names, image: Image { record, config: ready.config.into() } })
    }
}

/// Takes one entry in.
fn take(
    images: &Images,
    found: &mut Found,
    header: &Header,
    data: &mut dyn Read,
    events: &mpsc::Sender<LoadEvent>,
) -> Result<(), ArchiveError> {
    if found.files.len() + found.links.len() > MAX_FILES {
        return Err(invalid(format!("it has over {MAX_FILES} files")));
    }
    let name = header.name.as_str();
    match header.kind {
        Kind::Link => _ = found.links.insert(name.to_owned(), header.link.clone()),
        Kind::Other => {}
        Kind::File => {
            let listing =
                ["manifest.json", "index.json", "repositories", "oci-layout"].into_iter().find(|it| *it == name);
            if let Some(listing) = listing {
                found.listings.insert(listing, whole(listing, header.size, data)?);
            } else if !name.ends_with("/VERSION") {
                let digest = ingest(images, found, header, data, events)?;
                found.files.insert(name.to_owned(), digest);
            }
        }
    }
    Ok(())
}

fn whole(name: &str, size: u64, data: &mut dyn Read) -> Result<Vec<u8>, ArchiveError> {
    if size > listing::MAX_LISTING {
        return Err(invalid(format!("its {name} has {size} bytes, over the limit of {}", listing::MAX_LISTING)));
    }
    let mut bytes = Vec::new();
    let read = data.take(listing::MAX_LISTING).read_to_end(&mut bytes);
    read.map_err(|source| ArchiveError::Stream { action: "read", source })?;
    Ok(bytes)
}

/// Writes an entry as a blob; one under `blobs/` must be what its name says.
fn ingest(
    images: &Images,
    found: &mut Found,
    header: &Header,
    data: &mut dyn Read,
    events: &mpsc::Sender<LoadEvent>,
) -> Result<Digest, ArchiveError> {
    let space = &images.0.space;
    let room = |need: u64| {
        let free = space.left();
        if free < need { Err(ArchiveError::NoSpace { path: images.content().dir().to_owned(), free }) } else { Ok(()) }
    };
    if header.size >= LOOK {
        room(header.size)?;
    }
    let mut ingest = images.content().ingest_new()?;
    let mut buffer = vec![0; CHUNK];
    let mut looked = 0;
    loop {
        let n = data.read(&mut buffer).map_err(|source| ArchiveError::Stream { action: "read", source })?;
        if n == 0 {
            break;
        }
        ingest.append(&buffer[..n])?;
        found.bytes += n as u64;
        looked += n as u64;
        if looked >= LOOK {
            looked = 0;
            room(1)?;
            let _ = events.try_send(LoadEvent::Reading { bytes: found.bytes });
        }
    }
    let want = match header.name.strip_prefix("blobs/") {
        Some(name) => {
            Some(name.replace('/', ":").parse().map_err(|_| invalid(format!("{} names no SHA-256", header.name)))?)
        }
        None => None,
    };
    // Pinned before it is there, so that no collection takes it for garbage.
    let digest = ingest.digest()?;
    found.pins.push(images.0.flights.pin([digest]));
    Ok(ingest.commit(want)?)
}

impl Found {
    /// The blob that a path of the archive stands for, over links.
    fn blob(&self, path: &str) -> Result<Digest, ArchiveError> {
        let mut path = tarball::normal("", path);
        for _ in 0..8 {
            if let Some(digest) = self.files.get(&path) {
                return Ok(*digest);
            }
            match self.links.get(&path) {
                Some(to) => path.clone_from(to),
                None => break,
            }
        }
        Err(invalid(format!("it names {path:?}, which is not in it")))
    }
}

/// Finds out which images the archive has. The OCI layout counts first: it has the manifests as they were made.
fn understand(images: &Images, found: &mut Found, want: &Platform) -> Result<Vec<Ready>, ArchiveError> {
    let take = |found: &mut Found, name| found.listings.remove(name);
    let (index, docker, old) = (take(found, "index.json"), take(found, "manifest.json"), take(found, "repositories"));
    let content = images.content();
    if let Some(index) = index {
        return from_layout(content, &listing::layout(&index)?, want);
    }
    if let Some(docker) = docker {
        return listing::docker(&docker)?.iter().map(|it| from_docker(images, found, it, want)).collect();
    }
    if let Some(old) = old {
        let named = listing::old(&old)?;
        return named.iter().map(|(name, top)| from_old(images, found, name, top, want)).collect();
    }
    Err(invalid("it has none of index.json, manifest.json and repositories: it is no archive of images"))
}

fn from_layout(content: &Content, index: &listing::LayoutIndex, want: &Platform) -> Result<Vec<Ready>, ArchiveError> {
    let mut ready: Vec<Ready> = Vec::new();
    for entry in &index.manifests {
        let names: Vec<_> = listing::name_of(entry).into_iter().collect();
        if let Some(same) = ready.iter_mut().find(|it| it.target == entry.digest) {
            same.names.extend(names);
            continue;
        }
        let label = names.first().map_or_else(|| entry.digest.to_string(), ImageRef::familiar);
        let (digest, manifest) = image_of(content, entry, want, &label, 0)?;
        let config = config(content, &manifest, want, &label)?;
        let others = Vec::new();
        ready.push(Ready { names, target: entry.digest, manifest_digest: digest, manifest, config, others });
    }
    Ok(ready)
}

/// The manifest that an entry leads to, through indexes.
fn image_of(
    content: &Content,
    entry: &Descriptor,
    want: &Platform,
    label: &str,
    depth: usize,
) -> Result<(Digest, Manifest), ArchiveError> {
    let bytes = content.read(&entry.digest, MAX_MANIFEST).map_err(|_| missing(&entry.digest))?;
    match manifest::document(entry.digest, &entry.media_type, &bytes)? {
        Document::Image(manifest) => Ok((entry.digest, manifest)),
        Document::Index(_) if depth >= MAX_DEPTH => Err(invalid("its indexes lie too deep in each other")),
        Document::Index(index) => {
            let entries: Vec<_> = index.manifests.iter().filter(|it| it.platform.is_some()).collect();
            let chosen = want.choose(entries.iter().filter_map(|it| it.platform.as_ref())).map(|n| entries[n]);
            let only = index.manifests.first().filter(|_| index.manifests.len() == 1);
            if let Some(entry) = chosen.or(only) {
                return image_of(content, entry, want, label, depth + 1);
            }
            let has = entries.iter().filter_map(|it| it.platform.as_ref().map(ToString::to_string));
            let has = has.collect::<Vec<_>>().join(", ");
            Err(ArchiveError::Platform { image: label.to_owned(), has, want: want.to_string() })
        }
    }
}

fn missing(digest: &Digest) -> ArchiveError {
    invalid(format!("it names {digest}, which is not in it"))
}

fn config(content: &Content, manifest: &Manifest, want: &Platform, label: &str) -> Result<ImageConfig, ArchiveError> {
    let digest = manifest.config.digest;
    let bytes = content.read(&digest, MAX_CONFIG).map_err(|_| missing(&digest))?;
    let config = ImageConfig::parse(digest, &bytes)?;
    let has = config.platform();
    if want.fit(&has).is_none() {
        return Err(ArchiveError::Platform { image: label.to_owned(), has: has.to_string(), want: want.to_string() });
    }
    let (ids, layers) = (config.rootfs.diff_ids.len(), manifest.layers.len());
    if ids != layers {
        return Err(invalid(format!("{label} has {layers} layers and its configuration names {ids}")));
    }
    match manifest.layers.iter().find(|it| content.size(&it.digest) != Some(it.size)) {
        Some(layer) => {
            Err(invalid(format!("layer {} of {label} is not in it, or not of the announced size", layer.digest)))
        }
        None => Ok(config),
    }
}

fn from_docker(
    images: &Images,
    found: &mut Found,
    image: &listing::DockerImage,
    want: &Platform,
) -> Result<Ready, ArchiveError> {
    let config_digest = found.blob(&image.config)?;
    let layers = image.layers.iter().flatten().map(|it| found.blob(it)).collect::<Result<Vec<_>, _>>()?;
    let names = image.repo_tags.iter().flatten().filter(|it| *it != "<none>:<none>");
    let names = names.map(|it| it.parse().map_err(|error| invalid(format!("{error}"))));
    let names = names.collect::<Result<Vec<ImageRef>, _>>()?;
    assemble(images, found, names, config_digest, &layers, want)
}

/// Docker's oldest form: a chain of layers, each with a `json` that names its parent; the configuration is made of the top one.
fn from_old(images: &Images, found: &mut Found, name: &str, top: &str, want: &Platform) -> Result<Ready, ArchiveError> {
    let content = images.content();
    let (mut chain, mut seen) = (Vec::new(), BTreeSet::new());
    let mut next = Some(top.to_owned());
    while let Some(id) = next {
        if chain.len() >= MAX_LAYERS || !seen.insert(id.clone()) {
            return Err(invalid(format!("{name} has a chain of layers without an end")));
        }
        let json = found.blob(&format!("{id}/json"))?;
        let layer = listing::old_layer(&content.read(&json, MAX_CONFIG)?)?;
        next = layer.parent.clone().filter(|it| !it.is_empty());
        chain.push((found.blob(&format!("{id}/layer.tar"))?, layer));
    }
    chain.reverse();
    let layers: Vec<_> = chain.iter().map(|(digest, _)| *digest).collect();
    let diff_ids = layers.iter().map(|it| diff_id(content, it)).collect::<Result<Vec<_>, _>>()?;
    let newest = chain.pop().map(|(_, layer)| layer).unwrap_or_default();
    let config = serde_json::json!({
        "created": newest.created, "author": newest.author.unwrap_or_default(),
        "architecture": newest.architecture.unwrap_or_else(|| want.architecture.clone()),
        "os": newest.os.unwrap_or_else(|| "linux".into()),
        "config": newest.config.or(newest.container_config),
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = put(images, found, config.to_string().as_bytes())?;
    let name = name.parse().map_err(|error| invalid(format!("{error}")))?;
    assemble(images, found, vec![name], config, &layers, want)
}

/// An image of blobs that have no manifest: one is made.
fn assemble(
    images: &Images,
    found: &mut Found,
    names: Vec<ImageRef>,
    config_digest: Digest,
    layers: &[Digest],
    want: &Platform,
) -> Result<Ready, ArchiveError> {
    let content = images.content();
    let descriptor = |media_type: &str, digest: Digest| Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size: content.size(&digest).unwrap_or(0),
        platform: None,
        annotations: BTreeMap::new(),
        artifact_type: None,
    };
    let kind = |digest: &Digest| Ok::<_, ArchiveError>(descriptor(layer_type(content, digest)?, *digest));
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.to_owned()),
        config: descriptor(OCI_CONFIG, config_digest),
        layers: layers.iter().map(kind).collect::<Result<_, _>>()?,
        annotations: BTreeMap::new(),
    };
    let label = names.first().map_or_else(|| config_digest.to_string(), ImageRef::familiar);
    let config = config(content, &manifest, want, &label)?;
    let json = serde_json::to_vec(&manifest).map_err(|error| invalid(error.to_string()))?;
    let digest = put(images, found, &json)?;
    Ok(Ready { names, target: digest, manifest_digest: digest, manifest, config, others: Vec::new() })
}

fn put(images: &Images, found: &mut Found, bytes: &[u8]) -> Result<Digest, ArchiveError> {
    found.pins.push(images.0.flights.pin([Digest::of(bytes)]));
    Ok(images.content().put(bytes)?)
}

fn layer_type(content: &Content, digest: &Digest) -> Result<&'static str, ArchiveError> {
    let mut magic = Vec::new();
    let read = content.reader(digest)?.take(4).read_to_end(&mut magic);
    read.map_err(|source| ArchiveError::Stream { action: "read", source })?;
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => OCI_LAYER_GZIP,
        [0x28, 0xb5, 0x2f, 0xfd] => OCI_LAYER_ZSTD,
        _ => OCI_LAYER,
    })
}

/// What a layer hashes to without its compression.
fn diff_id(content: &Content, digest: &Digest) -> Result<Digest, ArchiveError> {
    if layer_type(content, digest)? == OCI_LAYER {
        return Ok(*digest);
    }
    let broken = |source| ArchiveError::Stream { action: "read", source };
    let mut plain = tarball::open(content.reader(digest)?).map_err(broken)?;
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = plain.read(&mut buffer).map_err(broken)?;
        if n == 0 {
            return Ok(Digest::finish(hash));
        }
        hash.update(&buffer[..n]);
    }
}

/// Gives the one image of an archive the name that was asked for.
fn name(request: &LoadRequest, ready: &mut [Ready]) -> Result<(), ArchiveError> {
    match (&request.name, ready) {
        (None, _) => Ok(()),
        (Some(name), [one]) => {
            one.names = vec![name.clone()];
            Ok(())
        }
        (Some(_), many) => Err(invalid(format!("it has {} images, and one name was given", many.len()))),
    }
}
