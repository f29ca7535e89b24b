//! COPY and ADD: what each source is, and where it goes.

use url::Url;

use super::{Action, Planner};
use crate::build::dockerfile::instruction::{Add, Copy, Files};
use crate::build::dockerfile::lint::Rule;
use crate::build::dockerfile::shell::Shell;
use crate::build::dockerfile::{DockerfileError, Kind, Lines, Result, argument, mount, quote};
use crate::build::graph::{Node, Source};
use crate::build::ignore;

/// Files that are copied.
#[derive(Debug, Clone, PartialEq)]
pub struct Copies {
    /// What, in order.
    pub sources: Vec<From>,
    /// To where: an absolute path, with a `/` at its end where it must be a folder.
    pub destination: String,
    /// Whose they become; empty: root's.
    pub chown: String,
    /// Their permissions.
    pub mode: Option<Mode>,
    /// As a layer of their own, whatever is below.
    pub link: bool,
    /// Patterns of what is left out.
    pub exclude: Vec<String>,
}

/// What files come from.
#[derive(Debug, Clone, PartialEq)]
pub enum From {
    /// Files of the context, a stage, an image.
    Path {
        /// Of which.
        source: Source,
        /// Absolute in it; may have wildcards.
        path: String,
        /// `--parents`: the pattern that is looked for below `path`, whose folders are kept.
        parents: Option<String>,
        /// What must be there, for it has no wildcards.
        required: Option<String>,
        /// Archives are unpacked.
        unpack: bool,
    },
    /// A download.
    Url {
        /// From there.
        url: String,
        /// The name of the file.
        name: String,
        /// `sha256:…`, where given.
        checksum: Option<String>,
        /// It is unpacked.
        unpack: bool,
    },
    /// A git repository.
    Git(GitSource),
    /// A heredoc.
    Inline(Inline),
}

/// A file that stands in the Dockerfile, mode 0644.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inline {
    /// Its name.
    pub name: String,
    /// What is in it.
    pub data: String,
}

/// A git repository: `https://host/repo.git#ref:folder`, `git@host:repo?branch=x`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitSource {
    /// Without fragment and query.
    pub remote: String,
    /// Branch, tag or commit; empty: the default branch.
    pub reference: String,
    /// The folder in it.
    pub folder: String,
    /// `.git` is kept.
    pub keep_git_dir: Option<bool>,
    /// The commit that it must be.
    pub checksum: String,
    /// Submodules are fetched.
    pub submodules: Option<bool>,
}

/// Permissions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// All of them.
    Octal(u32),
    /// `u+x,go=`: a change.
    Symbolic(String),
}

impl Mode {
    /// Reads `--chmod`.
    fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            argument(format!("invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"))
        };
        if text.bytes().all(|it| it.is_ascii_digit()) {
            return u32::from_str_radix(text, 8).ok().filter(|it| *it <= 0o7777).map(Self::Octal).ok_or_else(wrong);
        }
        let clause = |text: &str| {
            let rest = text.trim_start_matches(['u', 'g', 'o', 'a']);
            rest.starts_with(['+', '-', '=']) && rest.chars().all(|it| "+-=rwxXstugo".contains(it))
        };
        if text.split(',').all(clause) { Ok(Self::Symbolic(text.to_owned())) } else { Err(wrong()) }
    }
}

/// What only one of the two has.
struct Extra<'a> {
    add: Option<&'a Add>,
    checksum: String,
    parents: bool,
    source: Source,
}

impl<'a> Planner<'a> {
    pub(super) fn add(&mut self, add: &'a Add, node: &'a Node) -> Result<()> {
        let lines = node.step.lines;
        let mut files = add.files.clone();
        files.chown = self.expand(&files.chown, lines)?;
        files.chmod = self.expand(&files.chmod, lines)?;
        let checksum = self.expand(&add.checksum, lines)?;
        self.files(files, Extra { add: Some(add), checksum, parents: false, source: Source::Context }, node)
    }

    pub(super) fn copy(&mut self, copy: &'a Copy, node: &'a Node) -> Result<()> {
        let lines = node.step.lines;
        let source = node.sources.first().cloned().unwrap_or(Source::Context);
        let mut files = copy.files.clone();
        files.chown = self.expand(&files.chown, lines)?;
        files.chmod = self.expand(&files.chmod, lines)?;
        if let Source::Stage(index) = source
            && self.place(index).is_none()
        {
            let (from, now) = (quote(&copy.from), quote(self.name()));
            let what = format!("cannot copy from stage {from}, it needs to be defined before current stage {now}");
            return Err(DockerfileError::new(Kind::Stage, what));
        }
        self.files(files, Extra { add: None, checksum: String::new(), parents: copy.parents, source }, node)
    }

    fn files(&mut self, mut files: Files, extra: Extra<'_>, node: &'a Node) -> Result<()> {
        let lines = node.step.lines;
        for it in &mut files.sources {
            *it = self.expand(it, lines)?;
        }
        files.destination = self.expand(&files.destination, lines)?;
        let plain = Shell { plain_quotes: true, ..Shell::new('\\') };
        for it in files.contents.iter_mut().filter(|it| it.expand) {
            it.data = self.expand_by(plain, &it.data, lines)?;
        }
        if files.link && by_name(&files.chown) {
            return Err(argument(format!(
                "--chown={}: user and group names can't be resolved when used with --link, use numeric uid[:gid] instead",
                files.chown
            )));
        }
        let mode = if files.chmod.is_empty() { None } else { Some(Mode::parse(&files.chmod)?) };
        check_checksum(&files, &extra)?;
        let title = self.title(&node.step.code, self.graph.shell, node.on_build)?;
        let mut message = if extra.add.is_some() { "ADD" } else { "COPY" }.to_owned();
        if extra.parents {
            message.push_str(" --parents");
        }
        for (flag, value) in [("chown", &files.chown), ("chmod", &files.chmod)] {
            if !value.is_empty() {
                message.push_str(&format!(" --{flag}={value}"));
            }
        }
        let mut sources = Vec::new();
        for text in &files.sources {
            message.push(' ');
            message.push_str(text);
            sources.push(self.from(text, &extra, lines)?);
        }
        for it in files.contents {
            message.push_str(&format!(" <<{}", it.name));
            sources.push(From::Inline(Inline { name: it.name, data: it.data }));
        }
        message.push_str(&format!(" {} # buildkit", files.destination));
        let destination = destination(&self.config.config.working_dir, &files.destination);
        let history = self.remember(message, true)?;
        let Files { chown, link, exclude, .. } = files;
        let copies = Copies { sources, destination, chown, mode, link, exclude };
        self.push(title, node, Action::Copy(Box::new(copies)), history);
        Ok(())
    }

    fn from(&mut self, text: &str, extra: &Extra<'_>, lines: Lines) -> Result<From> {
        if let Some(mut git) = git(text)? {
            let Some(add) = extra.add else { return Err(argument("source can't be a git ref for COPY")) };
            if let (Some(flag), Some(query)) = (add.keep_git_dir, git.keep_git_dir)
                && flag != query
            {
                return Err(argument("inconsistent keep-git-dir configuration"));
            }
            git.keep_git_dir = git.keep_git_dir.or(add.keep_git_dir);
            if !extra.checksum.is_empty() && !git.checksum.is_empty() && extra.checksum != git.checksum {
                let (flag, query) = (quote(&extra.checksum), quote(&git.checksum));
                return Err(argument(format!("checksum mismatch {flag} != {query}")));
            }
            if git.checksum.is_empty() {
                git.checksum.clone_from(&extra.checksum);
            }
            return Ok(From::Git(git));
        }
        if is_http(text) {
            let Some(add) = extra.add else { return Err(argument("source can't be a URL for COPY")) };
            let path = Url::parse(text).map(|it| it.path().to_owned()).unwrap_or_default();
            let name = path.trim_end_matches('/').rsplit('/').next().filter(|it| !it.is_empty() && *it != ".");
            let checksum = (!extra.checksum.is_empty()).then(|| digest(&extra.checksum)).transpose()?;
            return Ok(From::Url {
                url: text.to_owned(),
                name: name.unwrap_or("__unnamed__").to_owned(),
                checksum,
                unpack: add.unpack.unwrap_or(false),
            });
        }
        if extra.source == Source::Context {
            self.check_ignored(text, extra.add.is_some(), lines);
        }
        let unpack = extra.add.is_some_and(|it| it.unpack.unwrap_or(true));
        let absolute = |path: &str| ignore::clean(&format!("/{path}"));
        let (mut path, mut parents, mut required) = (text, None, None);
        if extra.parents {
            let (above, pattern) = text.split_once("/./").unwrap_or(("/", text));
            path = above;
            if !has_wildcards(above) && !has_wildcards(pattern) {
                required = Some(absolute(&format!("{above}/{pattern}")));
            }
            parents = Some(absolute(pattern).trim_start_matches('/').to_owned());
        }
        // The end says whether a link is followed to a folder.
        let mut path = if path.starts_with('/') { path.to_owned() } else { absolute(path) };
        if path.is_empty() {
            path.push('/');
        }
        Ok(From::Path { source: extra.source.clone(), path, parents, required, unpack })
    }

    fn check_ignored(&mut self, text: &str, add: bool, lines: Lines) {
        let Some(ignored) = self.graph.options.ignore.as_ref().filter(|it| !it.has_exceptions()) else { return };
        let path = ignore::clean(text);
        if matches!(&*path, "." | "/") && !ignored.ignores_root() {
            return;
        }
        if ignored.ignores(&path) {
            let what = if add { "Add" } else { "Copy" };
            self.lint.tell(self.warnings, Rule::CopyIgnoredFile, lines, || {
                format!("Attempting to {what} file {} that is excluded by .dockerignore", quote(&path))
            });
        }
    }
}

fn check_checksum(files: &Files, extra: &Extra<'_>) -> Result<()> {
    if extra.checksum.is_empty() {
        return Ok(());
    }
    let [source] = &files.sources[..] else {
        return Err(argument("checksum can't be specified for multiple sources"));
    };
    if !is_http(source) && git(source)?.is_none() {
        return Err(argument("checksum requires HTTP(S) or Git sources"));
    }
    Ok(())
}

fn is_http(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// User or group by a name, which is looked up in the files of the image.
fn by_name(chown: &str) -> bool {
    !chown.is_empty() && chown.split(':').any(|it| it.parse::<u32>().is_err())
}

fn has_wildcards(text: &str) -> bool {
    let mut chars = text.chars();
    while let Some(ch) = chars.next() {
        match ch {
            '*' | '?' | '[' => return true,
            '\\' => {
                chars.next();
            }
            _ => {}
        }
    }
    false
}

/// From the folder `now`; a `/` or `/.` at the end stays.
fn destination(now: &str, path: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    let path = if path.is_empty() || path == "." { "./" } else { path };
    let mut whole = ignore::clean(&format!("/{now}/{path}"));
    if path.ends_with('/') && !whole.ends_with('/') {
        whole.push('/');
    } else if path.ends_with("/.") {
        whole.push_str(if whole == "/" { "." } else { "/." });
    }
    whole
}

/// A digest of a download.
fn digest(text: &str) -> Result<String> {
    let (algorithm, hex) = text.split_once(':').ok_or_else(|| argument("invalid checksum digest format"))?;
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(argument("unsupported digest algorithm")),
    };
    if hex.len() != length {
        return Err(argument("invalid checksum digest length"));
    }
    if !hex.bytes().all(|it| it.is_ascii_digit() || (b'a'..=b'f').contains(&it)) {
        return Err(argument("invalid checksum digest format"));
    }
    Ok(text.to_owned())
}

/// The repository that a source is; `None` where it is a file or a download.
fn git(text: &str) -> Result<Option<GitSource>> {
    let (remote, query, fragment) = parts(text);
    let scheme = text.split_once("://").map(|it| it.0.to_lowercase());
    let is_git = match scheme.as_deref() {
        Some("git" | "ssh") => Url::parse(remote).is_ok(),
        Some("http" | "https") => Url::parse(remote).is_ok_and(|it| it.path().as_bytes().ends_with(b".git")),
        Some(_) => false,
        None => scp(remote),
    };
    if !is_git {
        return Ok(None);
    }
    let (reference, folder) = fragment.split_once(':').unwrap_or((fragment, ""));
    let mut git = GitSource {
        remote: remote.to_owned(),
        reference: reference.to_owned(),
        folder: folder.to_owned(),
        ..GitSource::default()
    };
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        query_part(&mut git, &key, &value)?;
    }
    Ok(Some(git))
}

/// Without query and fragment, and these.
fn parts(text: &str) -> (&str, &str, &str) {
    let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    (rest, query, fragment)
}

/// `user@host:path`.
fn scp(text: &str) -> bool {
    let named =
        |it: &str, also: &str| !it.is_empty() && it.chars().all(|it| it.is_ascii_alphanumeric() || also.contains(it));
    let Some((user, rest)) = text.split_once('@') else { return false };
    rest.split_once(':').is_some_and(|(host, _)| named(user, "-_") && named(host, "-."))
}

fn query_part(git: &mut GitSource, key: &str, value: &str) -> Result<()> {
    let switch = || {
        let wrong = || argument(format!("invalid {key} value: {}", quote(value)));
        if value.is_empty() { Ok(Some(true)) } else { mount::boolean(value).map(Some).ok_or_else(wrong) }
    };
    let conflict = |what: &str, old: &str| argument(format!("{what} conflicts: {} vs {}", quote(old), quote(value)));
    match key {
        "submodules" => git.submodules = switch()?,
        "keep-git-dir" => git.keep_git_dir = switch()?,
        _ if value.is_empty() => return Err(argument(format!("query {} has no value", quote(key)))),
        "ref" | "tag" | "branch" if !git.reference.is_empty() && git.reference != value => {
            return Err(conflict("ref", &git.reference));
        }
        "ref" => value.clone_into(&mut git.reference),
        "tag" => git.reference = format!("refs/tags/{value}"),
        "branch" => git.reference = format!("refs/heads/{value}"),
        "subdir" if !git.folder.is_empty() && git.folder != value => return Err(conflict("subdir", &git.folder)),
        "subdir" => value.clone_into(&mut git.folder),
        "checksum" | "commit" => value.clone_into(&mut git.checksum),
        _ => return Err(argument(format!("unexpected query {}", quote(key)))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        for (text, expected) in
            [("755", Some(Mode::Octal(0o755))), ("07777", Some(Mode::Octal(0o7777))), ("10000", None), ("8", None)]
        {
            assert_eq!(Mode::parse(text).ok(), expected, "{text}");
        }
        for text in ["u+x", "go=", "a-w,u+rwX", "+t", "u=g"] {
            assert_eq!(Mode::parse(text), Ok(Mode::Symbolic(text.to_owned())));
        }
        for text in ["x", "u", "u+q", "u+x,,", "-1x"] {
            assert!(Mode::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn repositories() {
        let all = |text: &str| git(text).map(|it| it.map(|it| [it.remote, it.reference, it.folder, it.checksum]));
        for (text, expected) in [
            ("https://a.b/c.git", Some(["https://a.b/c.git", "", "", ""])),
            ("https://a.b/c.git#v1:sub", Some(["https://a.b/c.git", "v1", "sub", ""])),
            ("git@a.b:c/d#x", Some(["git@a.b:c/d", "x", "", ""])),
            ("ssh://git@a.b/c?branch=x&subdir=y&commit=z", Some(["ssh://git@a.b/c", "refs/heads/x", "y", "z"])),
            ("git://a.b/c", Some(["git://a.b/c", "", "", ""])),
            ("https://a.b/c", None),
            ("github.com/a/b", None),
            ("./a@b:c", None),
            ("a/b.git", None),
            ("file:///a.git", None),
        ] {
            assert_eq!(all(text), Ok(expected.map(|it| it.map(str::to_owned))), "{text}");
        }
        assert_eq!(all("https://a/b.git?x=1").unwrap_err().to_string(), "unexpected query \"x\"");
        assert_eq!(all("https://a/b.git?ref=1#2").unwrap_err().to_string(), "ref conflicts: \"2\" vs \"1\"");
        assert_eq!(git("https://a/b.git?keep-git-dir").unwrap().unwrap().keep_git_dir, Some(true));
    }

    #[test]
    fn destinations() {
        for (now, path, expected) in [
            ("/", ".", "/"),
            ("/w", ".", "/w/"),
            ("/w", "a", "/w/a"),
            ("/w", "a/", "/w/a/"),
            ("/w", "../x", "/x"),
            ("/w", "a/.", "/w/a/."),
            ("/w", "/a/", "/a/"),
        ] {
            assert_eq!(destination(now, path), expected, "{now} {path}");
        }
    }
}
