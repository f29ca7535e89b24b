//! Writing an archive: one pass over blobs that lie on disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Write},
};

use super::{
    super::{
        Images, Record,
        local::familiar,
        manifest::{Descriptor, Manifest, OCI_INDEX, OCI_MANIFEST},
    },
    ArchiveError, Format,
    listing::{DockerImage, FULL_NAME, LayoutIndex, REF_NAME},
};
use crate::{
    content::{Content, Digest},
    event::Action,
    owner::Owner,
    reference::ImageRef,
};

/// One image to write.
struct Item {
    record: Record,
    manifest: Manifest,
    size: u64,
    names: Vec<ImageRef>,
}

impl Images {
    /// Writes images into one archive. Each is named by what it was asked for as; one asked for by its id has no name there.
    ///
    /// * `out` is written from a thread of its own; its error ends the archive.
    /// * Cancelled: the archive is cut off at the next write that fails.
    pub async fn save(
        &self,
        owner: &Owner,
        names: &[String],
        format: Format,
        out: impl Write + Send + 'static,
    ) -> Result<(), ArchiveError> {
        let mut items: BTreeMap<Digest, Item> = BTreeMap::new();
        let mut pins = Vec::new();
        for name in names {
            let record = self.find(owner, name)?;
            let documents = [record.manifest, record.config];
            pins.push(self.pin(documents.into_iter().chain(record.blobs.iter().copied())).await);
            let manifest = self.manifest(&record).await?;
            let size = self.content().size(&record.manifest).unwrap_or(0);
            if let Some(layer) = record.blobs.iter().find(|it| self.content().size(it).is_none()) {
                return Err(ArchiveError::Missing { layer: *layer, image: familiar(&record.name) });
            }
            let named =
                name.parse::<ImageRef>().ok().filter(|it| it.to_string() == record.name && it.digest().is_none());
            let item = items.entry(record.manifest).or_insert(Item { record, manifest, size, names: Vec::new() });
            item.names.extend(named);
        }
        let saved: Vec<_> = items.values().map(|it| (it.record.config.to_string(), it.record.name.clone())).collect();
        let content = self.content().clone();
        let write = tokio::task::spawn_blocking(move || {
            let _pins = pins;
            let items: Vec<_> = items.into_values().collect();
            write(&content, &items, format, out)
        });
        write
            .await
            .unwrap_or_else(|error| Err(ArchiveError::Stream { action: "write", source: io::Error::other(error) }))?;
        for (id, name) in saved {
            self.tell(owner, &id, &name, Action::Saved);
        }
        Ok(())
    }
}

fn write(content: &Content, items: &[Item], format: Format, out: impl Write) -> Result<(), ArchiveError> {
    let failed = |source| ArchiveError::Stream { action: "write", source };
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(64 << 10, out));
    file(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).map_err(failed)?;
    // What says what is in it comes first, so that a reader knows what it is being sent.
    if format == Format::DockerArchive {
        let images: Vec<_> = items.iter().map(docker).collect();
        let json = serde_json::to_vec(&images).map_err(|error| failed(error.into()))?;
        file(&mut archive, "manifest.json", &json).map_err(failed)?;
    }
    let index = LayoutIndex {
        schema_version: 2,
        media_type: Some(OCI_INDEX.to_owned()),
        manifests: items.iter().flat_map(entries).collect(),
    };
    let json = serde_json::to_vec(&index).map_err(|error| failed(error.into()))?;
    file(&mut archive, "index.json", &json).map_err(failed)?;
    let mut written = BTreeSet::new();
    for item in items {
        let record = &item.record;
        for digest in [record.manifest, record.config].iter().chain(&record.blobs) {
            if written.insert(*digest) {
                blob(&mut archive, content, digest)?;
            }
        }
    }
    let mut out = archive.into_inner().map_err(failed)?;
    out.flush().map_err(failed)
}

fn docker(item: &Item) -> DockerImage {
    DockerImage {
        config: path(&item.record.config),
        repo_tags: (!item.names.is_empty()).then(|| item.names.iter().map(ImageRef::familiar).collect()),
        layers: Some(item.record.blobs.iter().map(path).collect()),
    }
}

/// An image's entries in `index.json`: one for each of its names.
fn entries(item: &Item) -> Vec<Descriptor> {
    let entry = |annotations| Descriptor {
        media_type: item.manifest.media_type.clone().unwrap_or_else(|| OCI_MANIFEST.to_owned()),
        digest: item.record.manifest,
        size: item.size,
        platform: Some(item.record.platform.clone()),
        annotations,
        artifact_type: None,
    };
    let named = item.names.iter().map(|name| {
        let tag = name.tag().unwrap_or("latest").to_owned();
        entry(BTreeMap::from([(FULL_NAME.to_owned(), name.to_string()), (REF_NAME.to_owned(), tag)]))
    });
    let named: Vec<_> = named.collect();
    if named.is_empty() { vec![entry(BTreeMap::new())] } else { named }
}

fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0); // The same images make the same archive.
    header
}

fn file(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    archive.append_data(&mut header(bytes.len() as u64), name, bytes)
}

fn blob(archive: &mut tar::Builder<impl Write>, content: &Content, digest: &Digest) -> Result<(), ArchiveError> {
    let source = content.reader(digest)?;
    let failed = |source| ArchiveError::Stream { action: "write", source };
    let size = source.metadata().map_err(failed)?.len();
    // A file that changes its size meanwhile is none of ours; the archive stays one.
    let exact = source.take(size).chain(io::repeat(0)).take(size);
    archive.append_data(&mut header(size), path(digest), exact).map_err(failed)
}
