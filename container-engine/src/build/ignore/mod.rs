//! `.dockerignore` and `NAME.dockerignore`: which files of a context are not there, by the rules of moby's `patternmatcher`.
//!
//! They are not those of `.gitignore` (so the crates `ignore` and `globset` do not fit): a pattern begins at the root, `*` stops at
//! `/`, `**` does not, the last pattern that fits decides, and what fits a folder fits all below it. Times are bounded by the
//! product of pattern and path: nothing backtracks.

mod glob;

use super::dockerfile::quote;
use glob::Glob;

/// Largest file of patterns, bytes.
pub const MAX_FILE: usize = 1 << 20;
/// Most patterns.
const MAX_PATTERNS: usize = 10_000;

/// Not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IgnoreError {
    /// `!` and nothing behind it.
    #[error("illegal exclusion pattern: \"!\"")]
    Bare,
    /// Brackets or escapes that are not closed.
    #[error("syntax error in pattern {}", quote(.0))]
    Syntax(String),
    /// Too much to read.
    #[error("the ignore file has more than {MAX_FILE} bytes or {MAX_PATTERNS} patterns")]
    TooLarge,
}

/// The patterns of a file: comments and empty lines left out, paths cleaned.
pub fn read(text: &str) -> Result<Vec<String>, IgnoreError> {
    if text.len() > MAX_FILE {
        return Err(IgnoreError::TooLarge);
    }
    let mut patterns = Vec::new();
    for line in text.strip_prefix('\u{feff}').unwrap_or(text).lines() {
        let pattern = line.trim();
        if line.starts_with('#') || pattern.is_empty() {
            continue;
        }
        let (not, path) = pattern.strip_prefix('!').map_or(("", pattern), |rest| ("!", rest.trim()));
        let cleaned = if path.is_empty() { String::new() } else { clean(path) };
        let path = cleaned.strip_prefix('/').filter(|it| !it.is_empty()).unwrap_or(&cleaned);
        patterns.push(format!("{not}{path}"));
        if patterns.len() > MAX_PATTERNS {
            return Err(IgnoreError::TooLarge);
        }
    }
    Ok(patterns)
}

/// A path without `.`, `..` and doubled slashes where that is possible: Go's `filepath.Clean`.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|it| *it != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Which patterns a folder fits: what is asked of its entries builds upon it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fits(Vec<bool>);

#[derive(Debug, Clone)]
struct Pattern {
    text: String,
    /// It begins with `!`.
    keeps: bool,
    glob: Glob,
}

/// Patterns, ready to match.
#[derive(Debug, Clone, Default)]
pub struct Matcher {
    patterns: Vec<Pattern>,
}

impl Matcher {
    /// Of these patterns, of which the last that fits decides.
    pub fn new(patterns: &[String]) -> Result<Self, IgnoreError> {
        if patterns.len() > MAX_PATTERNS {
            return Err(IgnoreError::TooLarge);
        }
        let mut all = Vec::new();
        for text in patterns.iter().map(|it| it.trim()).filter(|it| !it.is_empty()) {
            let cleaned = clean(text);
            let (keeps, path) = match cleaned.strip_prefix('!') {
                Some("") => return Err(IgnoreError::Bare),
                Some(rest) => (true, rest),
                None => (false, &*cleaned),
            };
            let glob = Glob::new(path).ok_or_else(|| IgnoreError::Syntax(path.to_owned()))?;
            all.push(Pattern { text: path.to_owned(), keeps, glob });
        }
        Ok(Self { patterns: all })
    }

    /// Whether some pattern begins with `!`, so that something in an ignored folder may be there.
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|it| it.keeps)
    }

    /// Whether nothing is ignored.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether everything in the root is ignored, before exceptions.
    pub fn ignores_root(&self) -> bool {
        self.patterns.iter().any(|it| !it.keeps && matches!(&*it.text, "*" | "**" | "**/*"))
    }

    /// Whether `path`, relative to the context, is ignored: it or a folder that it is in fits.
    pub fn ignores(&self, path: &str) -> bool {
        let mut ignored = false;
        for pattern in &self.patterns {
            // Only what changes the answer is looked at.
            if pattern.keeps == ignored && (pattern.glob.fits(path) || parents(path).any(|it| pattern.glob.fits(it))) {
                ignored = !pattern.keeps;
            }
        }
        ignored
    }

    /// In a walk: `parent` is what was returned for the folder that `path` is in (the default for the root). This is what
    /// BuildKit's walks ask, and differs from [`Self::ignores`] where an exception fits a folder that is not ignored.
    pub fn ignores_in(&self, path: &str, parent: &Fits) -> (bool, Fits) {
        let mut ignored = false;
        let mut fits = vec![false; self.patterns.len()];
        for (at, pattern) in self.patterns.iter().enumerate() {
            let mut fit = parent.0.get(at).copied().unwrap_or(false);
            if !fit {
                if pattern.keeps != ignored {
                    continue;
                }
                fit = pattern.glob.fits(path) || parent.0.is_empty() && parents(path).any(|it| pattern.glob.fits(it));
            }
            fits[at] = fit;
            if fit {
                ignored = !pattern.keeps;
            }
        }
        (ignored, Fits(fits))
    }

    /// Whether a walk need not enter the ignored folder `path`: no exception can be meant for what is in it.
    pub fn can_skip(&self, path: &str) -> bool {
        let mut start = path.to_owned();
        start.push('/');
        !self.patterns.iter().any(|it| it.keeps && it.glob.may_fit_below(&start))
    }
}

/// `a`, `a/b` for `a/b/c`.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

#[cfg(test)]
mod tests;
