//! `container cp`: a tar archive one way or the other.
//!
//! Always true: what a container's archive holds stays below the folder that was named; links in it lead nowhere else while
//! it is unpacked (the `tar` crate refuses such entries).

use std::{
    io::{self, IsTerminal, Read, Write},
    path::{Component, Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::Args;
use container_engine::container::PathStat;
use http_body_util::BodyExt;
use tokio::sync::mpsc;

use crate::{
    cli::{engine::Output, image::stream_body, terminal},
    control::{EngineError, Sent},
    pipe::{Part, Reading, Writing, break_off, pipe},
};

/// `S_IFMT` and `S_IFDIR`.
const FILE_TYPE: u32 = 0o170_000;
const DIRECTORY: u32 = 0o040_000;

#[derive(Debug, Args)]
pub struct Copy {
    /// Follow the symbolic link that the source may be
    #[arg(long, short = 'L')]
    follow_link: bool,
    /// No word when it is done
    #[arg(long, short)]
    quiet: bool,
    /// PATH, CONTAINER:PATH, or - for a tar archive
    source: String,
    /// The same
    target: String,
}

impl Copy {
    pub async fn run(&self, to: &Output<'_>) -> anyhow::Result<ExitCode> {
        match (place(&self.source), place(&self.target)) {
            (Some((name, path)), None) => self.outward(to, name, path).await?,
            (None, Some((name, path))) => self.inward(to, name, path).await?,
            (Some(_), Some(_)) => {
                bail!("copying from container to container takes two steps: through a folder, or with -")
            }
            (None, None) => bail!("one of the two must be CONTAINER:PATH"),
        }
        if !self.quiet && std::io::stderr().is_terminal() {
            writeln!(std::io::stderr(), "Successfully copied {} to {}", self.source, self.target)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn outward(&self, to: &Output<'_>, name: &str, path: &str) -> anyhow::Result<()> {
        let mut path = path.to_owned();
        let mut stat = stat(to, name, &path).await?;
        if self.follow_link
            && let Some(target) = &stat.link_target
        {
            path.clone_from(target);
            stat = self::stat(to, name, &path).await?;
        }
        let url = to.container(name, "/archive", &[("path", Some(path.clone()))]);
        let body = to.engine.send("GET", &url, None::<&()>).await?.into_body();
        if self.target == "-" {
            return crate::cli::image::copy(body, &mut io::stdout().lock()).await;
        }
        let (send, receive) = pipe();
        let root = stat.name.clone();
        let contents = path.ends_with("/.") || path == ".";
        let (dir, rename) = landing(Path::new(&self.target), &root, contents, stat.mode & FILE_TYPE == DIRECTORY)?;
        let unpack = tokio::task::spawn_blocking(move || unpack(Reading::new(receive), &dir, &root, rename.as_deref()));
        feed(body, send).await?;
        unpack.await.context("unpacking panicked")??;
        Ok(())
    }

    async fn inward(&self, to: &Output<'_>, name: &str, path: &str) -> anyhow::Result<()> {
        if self.source == "-" {
            return put(to, name, path, stream_body(terminal::input()?)).await;
        }
        let source = PathBuf::from(&self.source);
        let source = if self.follow_link { source.canonicalize()? } else { source };
        let meta = std::fs::symlink_metadata(&source).with_context(|| format!("cannot read {}", source.display()))?;
        let contents = self.source.ends_with("/.") || self.source == ".";
        let own_name = source.file_name().map_or_else(|| "root".to_owned(), |it| it.to_string_lossy().into_owned());
        // Into a folder that is there under the source's name; else under the name that was given, in its parent.
        let (dir, entry) = match self::stat(to, name, path).await {
            Ok(stat) if stat.mode & FILE_TYPE == DIRECTORY => {
                (path.to_owned(), if contents { None } else { Some(own_name) })
            }
            Ok(_) if meta.is_dir() => bail!("cannot copy a folder over the file {path} of {name}"),
            Ok(_) => split(path)?,
            Err(error) if error.is_not_found() && path.ends_with('/') => {
                bail!("there is no folder {path} in {name}: make it first")
            }
            Err(error) if error.is_not_found() => split(path)?,
            Err(error) => return Err(error.into()),
        };
        let (send, receive) = pipe();
        let follow = self.follow_link;
        let pack = tokio::task::spawn_blocking(move || pack(&source, entry.as_deref(), follow, send));
        let sent = put(to, name, &dir, stream_body(receive)).await;
        // A broken archive breaks the request: its own reason says more.
        pack.await.context("packing panicked")??;
        sent
    }
}

/// `CONTAINER:PATH`. A local path with a colon is written with a slash in front of it, as Docker has it.
fn place(text: &str) -> Option<(&str, &str)> {
    let (name, path) = text.split_once(':')?;
    (!name.is_empty() && !name.contains('/') && name != "." && name != "..").then_some((name, path))
}

async fn stat(to: &Output<'_>, name: &str, path: &str) -> Result<PathStat, EngineError> {
    to.engine.get(&to.container(name, "/stat", &[("path", Some(path.to_owned()))])).await
}

async fn put(to: &Output<'_>, name: &str, path: &str, body: Sent) -> anyhow::Result<()> {
    to.engine.upload("PUT", &to.container(name, "/archive", &[("path", Some(path.to_owned()))]), body).await?;
    Ok(())
}

/// Parent and last part.
fn split(path: &str) -> anyhow::Result<(String, Option<String>)> {
    let trimmed = path.trim_end_matches('/');
    let (parent, last) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
    if last.is_empty() || last == "." || last == ".." {
        bail!("{path:?} names no file");
    }
    Ok((if parent.is_empty() { "/".to_owned() } else { parent.to_owned() }, Some(last.to_owned())))
}

/// Where an archive of `root` is unpacked, and the name that `root` gets there; no name: its contents alone.
fn landing(target: &Path, root: &str, contents: bool, is_dir: bool) -> anyhow::Result<(PathBuf, Option<String>)> {
    if target.is_dir() {
        return Ok((target.to_owned(), (!contents).then(|| root.to_owned())));
    }
    if target.exists() && is_dir {
        bail!("cannot copy a folder over the file {}", target.display());
    }
    if contents || is_dir {
        std::fs::create_dir_all(target).with_context(|| format!("cannot make {}", target.display()))?;
        return Ok((target.to_owned(), None));
    }
    let text = target.to_string_lossy();
    if text.ends_with('/') {
        bail!("there is no folder {text}");
    }
    let parent = target.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        bail!("there is no folder {}", parent.display());
    }
    let name = target.file_name().context("the target has no name")?.to_string_lossy().into_owned();
    Ok((parent.to_owned(), Some(name)))
}

/// Unpacks with the first part of every path, which is `root`, replaced by `rename`. Blocking.
fn unpack(archive: impl Read, dir: &Path, root: &str, rename: Option<&str>) -> anyhow::Result<()> {
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_permissions(true);
    archive.set_overwrite(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let path = renamed(&path, root, rename);
        if path.as_os_str().is_empty() {
            continue;
        }
        let target = dir.join(&path);
        if path.components().any(|part| !matches!(part, Component::Normal(_))) {
            bail!("the archive holds {}, which leads out of the folder", path.display());
        }
        // Every folder on the way is checked, so that no link leads out.
        guard(dir, &path)?;
        entry.unpack(&target).with_context(|| format!("cannot write {}", target.display()))?;
    }
    Ok(())
}

fn renamed(path: &Path, root: &str, rename: Option<&str>) -> PathBuf {
    let mut parts: Vec<_> = path.components().filter(|part| *part != Component::CurDir).collect();
    if parts.first().is_some_and(|first| first.as_os_str() == root) {
        parts.remove(0);
    }
    rename.map(PathBuf::from).into_iter().chain(parts.iter().map(|part| PathBuf::from(part.as_os_str()))).collect()
}

fn guard(dir: &Path, path: &Path) -> anyhow::Result<()> {
    let mut at = dir.to_owned();
    for part in path.parent().into_iter().flat_map(Path::components) {
        at.push(part);
        match std::fs::symlink_metadata(&at) {
            Ok(meta) if !meta.is_dir() => bail!("the archive goes through {}, which is no folder", at.display()),
            Ok(_) => {}
            Err(_) => std::fs::create_dir(&at).with_context(|| format!("cannot make {}", at.display()))?,
        }
    }
    Ok(())
}

/// Packs a file or folder under the name `entry`, or a folder's contents alone. Blocking.
fn pack(source: &Path, entry: Option<&str>, follow: bool, to: mpsc::Sender<Part>) -> anyhow::Result<()> {
    let mut builder = tar::Builder::new(Writing::new(to.clone()));
    builder.follow_symlinks(follow);
    let packed = match (source.is_dir(), entry) {
        (true, entry) => builder.append_dir_all(entry.unwrap_or("."), source),
        (false, Some(name)) => builder.append_path_with_name(source, name),
        (false, None) => Err(io::Error::other("it is no folder")),
    };
    let done = packed.and_then(|()| builder.into_inner()).and_then(|mut sending| sending.flush());
    if let Err(error) = done {
        // So that the request breaks instead of ending well. Who went away has its reason.
        let _ = to.blocking_send(Err(io::Error::other("the archive broke off")));
        return Err(error).with_context(|| format!("cannot read {}", source.display()));
    }
    Ok(())
}

async fn feed(mut body: hyper::body::Incoming, to: mpsc::Sender<Part>) -> anyhow::Result<()> {
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                if let Ok(data) = frame.into_data()
                    && to.send(Ok(data)).await.is_err()
                {
                    // The other side has failed, and says why.
                    return Ok(());
                }
            }
            Err(error) => {
                break_off(&to).await;
                return Err(error).context("the agent broke off");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_told_from_paths() {
        for (text, want) in [
            ("web:/etc", Some(("web", "/etc"))),
            ("web:etc", Some(("web", "etc"))),
            ("./a:b", None),
            ("/a:b", None),
            ("a/b:c", None),
            ("-", None),
            (":x", None),
        ] {
            assert_eq!(place(text), want, "{text:?}");
        }
        assert_eq!(split("/a/b").unwrap(), ("/a".into(), Some("b".into())));
        assert_eq!(split("/a").unwrap(), ("/".into(), Some("a".into())));
        assert!(split("/").is_err() && split("/a/..").is_err());
    }

    fn archive(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            if let Some(target) = content.strip_prefix("-> ") {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                header.set_link_name(target).unwrap();
                header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
                header.set_cksum();
                builder.append(&header, io::empty()).unwrap();
            } else {
                header.set_size(content.len() as u64);
                // Written as it is: `set_path` would refuse what a hostile archive holds.
                header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
                header.set_cksum();
                builder.append(&header, content.as_bytes()).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn archives_land_where_they_were_told_to() {
        let dir = tempfile::tempdir().unwrap();
        let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).unwrap();
        unpack(&archive(&[("etc/hosts", "1")])[..], dir.path(), "etc", Some("copy")).unwrap();
        assert_eq!(read("copy/hosts"), "1");
        unpack(&archive(&[("etc/hosts", "2")])[..], dir.path(), "etc", None).unwrap();
        assert_eq!(read("hosts"), "2");
        unpack(&archive(&[("hosts", "3")])[..], dir.path(), "hosts", Some("new")).unwrap();
        assert_eq!(read("new"), "3");
    }

    #[test]
    fn hostile_archives_stay_inside() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let link = format!("-> {}", outside.path().display());
        for entries in
            [vec![("../out", "x")], vec![("a/../../out", "x")], vec![("a/door", link.as_str()), ("a/door/out", "x")]]
        {
            let done = unpack(&archive(&entries)[..], dir.path(), "a", Some("b"));
            assert!(done.is_err(), "{entries:?}");
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_packed_unpacks_to_the_same() {
        let (from, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(from.path().join("sub")).unwrap();
        std::fs::write(from.path().join("sub/file"), vec![7; 300_000]).unwrap();
        std::os::unix::fs::symlink("file", from.path().join("sub/link")).unwrap();
        let (send, receive) = pipe();
        let source = from.path().to_owned();
        let packing = std::thread::spawn(move || pack(&source, Some("name"), false, send));
        unpack(Reading::new(receive), into.path(), "name", Some("other")).unwrap();
        packing.join().unwrap().unwrap();
        assert_eq!(std::fs::read(into.path().join("other/sub/file")).unwrap(), vec![7; 300_000]);
        assert_eq!(std::fs::read_link(into.path().join("other/sub/link")).unwrap(), Path::new("file"));
    }
}
