//! Names of images, normalised as Docker does: `alpine` is `docker.io/library/alpine:latest`.
//!
//! The grammar is that of `distribution/reference`: an optional registry (which has a dot, a colon or is `localhost`), a path
//! of lower-case components, an optional tag, an optional digest. A name with a digest names that and nothing else.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::content::Digest;

/// The registry of names that name none.
pub const DOCKER_HUB: &str = "docker.io";
/// Longest repository, bytes.
const MAX_NAME: usize = 255;
/// Longest tag, bytes.
const MAX_TAG: usize = 128;

/// A normalised image name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Not an image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is no image name: {problem}")]
pub struct ReferenceError {
    name: String,
    problem: &'static str,
}

impl ImageRef {
    /// Host, and port where it has one: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path in the registry: `library/alpine`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` where neither tag nor digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which counts more than the tag.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What a manifest is asked for by: the digest, else the tag.
    pub fn version(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// Registry and repository, without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// As people write it: without `docker.io/` and `library/`, where that leaves a name of the same image.
    pub fn familiar(&self) -> String {
        let name = self.to_string();
        let Some(short) = name.strip_prefix("docker.io/") else { return name };
        match self.repository.split_once('/') {
            Some(("library", rest)) if !rest.contains('/') => short["library/".len()..].to_owned(),
            // Without a registry these would be taken for one.
            Some((first, _)) if first.contains('.') || first == "localhost" => name,
            _ => short.to_owned(),
        }
    }

    /// The same image by digest instead.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// Another tag of the same repository; the digest is gone.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        check_tag(tag).map_err(|problem| ReferenceError { name: clip(tag), problem })?;
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }
}

fn clip(text: &str) -> String {
    text.chars().take(300).collect()
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for ImageRef {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|problem| ReferenceError { name: clip(text), problem })
    }
}

fn parse(text: &str) -> Result<ImageRef, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > 2 * (MAX_NAME + MAX_TAG) {
        return Err("it is too long");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            (rest, Some(digest.parse().map_err(|_| "after @ comes sha256: and 64 hexadecimal digits")?))
        }
        None => (text, None),
    };
    // A colon after the last slash begins a tag; one before it belongs to a port.
    let slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (rest, tag) = match rest[slash..].split_once(':') {
        Some((path, tag)) => (&rest[..slash + path.len()], Some(tag)),
        None => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, path) = match rest.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" || host != host.to_lowercase() => {
            (check_host(host)?, path.to_owned())
        }
        _ => (DOCKER_HUB.to_owned(), rest.to_owned()),
    };
    let (registry, path) = match registry.as_str() {
        "index.docker.io" | DOCKER_HUB if !path.contains('/') => (DOCKER_HUB.to_owned(), format!("library/{path}")),
        "index.docker.io" => (DOCKER_HUB.to_owned(), path),
        _ => (registry, path),
    };
    check_path(&path)?;
    let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned()));
    Ok(ImageRef { registry, repository: path, tag, digest })
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let begins = tag.bytes().next().is_some_and(word);
    if begins && tag.len() <= MAX_TAG && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-') {
        Ok(())
    } else {
        Err("a tag is up to 128 letters, digits, '_', '.' or '-', and begins with a letter, digit or '_'")
    }
}

fn check_host(host: &str) -> Result<String, &'static str> {
    let (name, port) = match host.strip_prefix('[') {
        // An IPv6 address.
        Some(rest) => rest.split_once(']').ok_or("the registry's address lacks a ']'")?,
        None => host.split_once(':').map_or((host, ""), |(name, port)| (name, &host[host.len() - port.len() - 1..])),
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':');
    if name.is_empty() || !name.bytes().all(plain) {
        return Err("the registry is no host name");
    }
    match port.strip_prefix(':') {
        None if port.is_empty() => Ok(host.to_owned()),
        Some(number) if number.parse::<u16>().is_ok() => Ok(host.to_owned()),
        _ => Err("the registry's port is no number up to 65535"),
    }
}

/// Components of lower-case letters and digits, with single separators inside.
fn check_path(path: &str) -> Result<(), &'static str> {
    if path.len() > MAX_NAME {
        return Err("the repository is over 255 bytes long");
    }
    let component = |component: &str| {
        let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = component.as_bytes();
        let ends = bytes.first().copied().is_some_and(alnum) && bytes.last().copied().is_some_and(alnum);
        let separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        let separated = separators
            .filter(|it| !it.is_empty())
            .all(|it| it == "." || it == "_" || it == "__" || it.bytes().all(|b| b == b'-'));
        ends && separated
    };
    if path.split('/').all(component) {
        Ok(())
    } else if path.bytes().any(|b| b.is_ascii_uppercase()) {
        Err("the repository must be lower case")
    } else {
        Err("the repository is made of lower-case letters and digits, with '.', '_', '__' or '-' between, and '/'")
    }
}

impl Serialize for ImageRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageRef {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_as_docker_does() {
        #[track_caller]
        fn check(text: &str, want: Option<&str>, familiar: &str) {
            let parsed = text.parse::<ImageRef>();
            assert_eq!(parsed.as_ref().ok().map(ToString::to_string).as_deref(), want, "{text:?}: {parsed:?}");
            if let Ok(parsed) = parsed {
                assert_eq!(parsed.familiar(), familiar, "{text:?}");
                assert_eq!(parsed.to_string().parse::<ImageRef>().as_ref(), Ok(&parsed), "{text:?} again");
            }
        }
        let digest = format!("sha256:{}", "a".repeat(64));
        check("alpine", Some("docker.io/library/alpine:latest"), "alpine:latest");
        check("alpine:3.20", Some("docker.io/library/alpine:3.20"), "alpine:3.20");
        check("user/app", Some("docker.io/user/app:latest"), "user/app:latest");
        check("docker.io/alpine", Some("docker.io/library/alpine:latest"), "alpine:latest");
        check("index.docker.io/user/a", Some("docker.io/user/a:latest"), "user/a:latest");
        check("library/a/b", Some("docker.io/library/a/b:latest"), "library/a/b:latest");
        check("docker.io/x.y/a", Some("docker.io/x.y/a:latest"), "docker.io/x.y/a:latest");
        check("docker.io/localhost/a", Some("docker.io/localhost/a:latest"), "docker.io/localhost/a:latest");
        check("localhost/a", Some("localhost/a:latest"), "localhost/a:latest");
        check("localhost:5000/a:b", Some("localhost:5000/a:b"), "localhost:5000/a:b");
        check("127.0.0.1:5000/a/b/c", Some("127.0.0.1:5000/a/b/c:latest"), "127.0.0.1:5000/a/b/c:latest");
        check("[::1]:5000/a", Some("[::1]:5000/a:latest"), "[::1]:5000/a:latest");
        check("gcr.io/a__b/c-d.e", Some("gcr.io/a__b/c-d.e:latest"), "gcr.io/a__b/c-d.e:latest");
        let whole = format!("docker.io/library/alpine@{digest}");
        check(&format!("alpine@{digest}"), Some(&whole), &format!("alpine@{digest}"));
        let both = format!("docker.io/library/alpine:1@{digest}");
        check(&format!("alpine:1@{digest}"), Some(&both), &format!("alpine:1@{digest}"));
        check("", None, "");
        check("Alpine", None, "");
        check("a//b", None, "");
        check("a/../b", None, "");
        check("a:", None, "");
        check("a:.x", None, "");
        check("a@sha256:12", None, "");
        check("host.x:99999/a", None, "");
        check("a_-b", None, "");
        check("a..b", None, "");
        check(&"a".repeat(300), None, "");
    }
}
