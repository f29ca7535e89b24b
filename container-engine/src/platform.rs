//! Platforms of images and of this machine: which entry of an index fits, variants included.
//!
//! As containerd does (`platforms`): a lower variant of the same CPU runs too, a higher one does not; an absent variant is `v8`
//! for arm64, `v7` for arm, `v1` for amd64.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An operating system, a CPU and its variant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `arm64`, `amd64`, `arm`, …: Go's names.
    pub architecture: String,
    /// `v7`, `v8`, `v2`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no platform: write it like linux/arm64 or linux/arm/v7")]
pub struct PlatformError(pub String);

impl Platform {
    /// Of these names, normalised: `aarch64` is `arm64`, `x86_64` is `amd64`.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let (architecture, implied) = match architecture.to_ascii_lowercase().as_str() {
            "aarch64" | "arm64" => ("arm64".to_owned(), None),
            "x86_64" | "x86-64" | "amd64" => ("amd64".to_owned(), None),
            "armhf" | "armv7l" => ("arm".to_owned(), Some("v7")),
            "armel" => ("arm".to_owned(), Some("v6")),
            "i386" | "i686" => ("386".to_owned(), None),
            other => (other.to_owned(), None),
        };
        let variant = variant.filter(|it| !it.is_empty()).or(implied);
        let variant = variant.map(|it| if it.starts_with('v') { it.to_owned() } else { format!("v{it}") });
        // The usual variant is written without.
        let usual =
            matches!((architecture.as_str(), variant.as_deref()), ("arm64", Some("v8")) | ("amd64", Some("v1")));
        Self { os: os.to_ascii_lowercase(), architecture, variant: variant.filter(|_| !usual) }
    }

    /// This machine's.
    pub fn host() -> Self {
        let uname = rustix::system::uname();
        let variant = (std::env::consts::ARCH == "arm").then(|| arm_variant(&uname.machine().to_string_lossy()));
        Self::new("linux", std::env::consts::ARCH, variant)
    }

    /// How well an image for `image` runs on this platform: smaller is better, `None` is not at all.
    pub fn fit(&self, image: &Self) -> Option<u32> {
        if self.os != image.os || image.architecture == "unknown" {
            return None;
        }
        let level = |platform: &Self| -> u32 {
            let usual = match platform.architecture.as_str() {
                "arm64" => 8,
                "arm" => 7,
                _ => 1,
            };
            let digits = platform.variant.as_deref().and_then(|it| it.trim_start_matches('v').split('.').next());
            digits.and_then(|it| it.parse().ok()).unwrap_or(usual)
        };
        let (own, theirs) = (level(self), level(image));
        match (self.architecture.as_str(), image.architecture.as_str()) {
            (a, b) if a == b => (theirs <= own).then(|| own - theirs),
            // Many 64-bit cores run no 32-bit programs, so `arm` is never taken for `arm64`.
            _ => None,
        }
    }

    /// The best of several, by their place; `None` where none runs on this platform.
    pub fn choose<'a>(&self, images: impl IntoIterator<Item = &'a Self>) -> Option<usize> {
        let fits = images.into_iter().enumerate().filter_map(|(n, image)| Some((self.fit(image)?, n)));
        fits.min().map(|(_, n)| n)
    }
}

/// Of a 32-bit program on this kernel's `machine`: a 64-bit kernel runs what `v7` cores run.
fn arm_variant(machine: &str) -> &'static str {
    match machine.get(..5) {
        Some("armv5") => "v5",
        Some("armv6") => "v6",
        _ => "v7",
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let plain = |it: &str| {
            !it.is_empty()
                && it.strip_prefix('v').unwrap_or(it).len() < 32 // A variant may get its `v` only afterwards.
                && it.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.' || b == b'-')
        };
        let parts: Vec<_> = text.split('/').collect();
        if !parts.iter().all(|it| plain(it)) {
            return Err(PlatformError(text.chars().take(100).collect()));
        }
        match parts.as_slice() {
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            [architecture] if Self::new("linux", architecture, None).is_known() => {
                Ok(Self::new("linux", architecture, None))
            }
            _ => Err(PlatformError(text.chars().take(100).collect())),
        }
    }
}

impl Platform {
    fn is_known(&self) -> bool {
        matches!(self.architecture.as_str(), "amd64" | "arm64" | "arm" | "386" | "riscv64" | "ppc64le" | "s390x")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_entry_is_chosen() {
        #[track_caller]
        fn check(host: &str, images: &[&str], want: Option<usize>) {
            let images: Vec<Platform> = images.iter().map(|it| it.parse().unwrap()).collect();
            assert_eq!(host.parse::<Platform>().unwrap().choose(&images), want, "{host} of {images:?}");
        }
        check("linux/arm64", &["linux/amd64", "linux/arm64"], Some(1));
        check("linux/arm64/v8", &["linux/arm/v7", "linux/arm64/v8"], Some(1));
        check("linux/arm64", &["linux/amd64", "linux/arm/v7"], None);
        check("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"], Some(2));
        check("linux/arm/v6", &["linux/arm/v5", "linux/arm/v7"], Some(0));
        check("linux/arm/v7", &["linux/arm"], Some(0));
        check("linux/amd64", &["linux/amd64/v3", "linux/amd64/v2"], None);
        check("linux/amd64/v3", &["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], Some(1));
        check("linux/amd64", &["windows/amd64", "unknown/unknown"], None);
    }

    #[test]
    fn boards_with_old_cores_get_old_images() {
        assert_eq!(["armv6l", "armv7l", "armv5tejl", "aarch64", ""].map(arm_variant), ["v6", "v7", "v5", "v7", "v7"]);
    }

    #[test]
    fn platforms_are_read_and_written() {
        #[track_caller]
        fn check(text: &str, want: Option<&str>) {
            assert_eq!(text.parse::<Platform>().ok().map(|it| it.to_string()).as_deref(), want, "{text:?}");
        }
        check("linux/aarch64", Some("linux/arm64"));
        check("linux/arm64/v8", Some("linux/arm64"));
        check("arm64", Some("linux/arm64"));
        check("linux/armhf", Some("linux/arm/v7"));
        check("linux/arm/6", Some("linux/arm/v6"));
        check("linux", None);
        check("linux//v8", None);
        check("a/b/c/d", None);
    }
}
