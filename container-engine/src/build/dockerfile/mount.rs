//! `RUN --mount=…` and `--device=…`: comma-separated fields, as in a line of CSV.
//!
//! At first only `from` is read, which may have no variables, for it says which stages are needed; the rest is read when the
//! step is planned and its variables are known.

use super::error::{Result, argument};
use super::source::quote;

/// What is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    /// Files of the context, a stage or an image.
    Bind,
    /// A folder that later builds find again.
    Cache,
    /// Memory.
    Tmpfs,
    /// A file with a secret, which never reaches the image.
    Secret,
    /// The socket of an SSH agent.
    Ssh,
}

const KINDS: [(&str, MountKind); 5] = [
    ("bind", MountKind::Bind),
    ("cache", MountKind::Cache),
    ("tmpfs", MountKind::Tmpfs),
    ("secret", MountKind::Secret),
    ("ssh", MountKind::Ssh),
];

impl MountKind {
    fn name(self) -> &'static str {
        KINDS.iter().find(|it| it.1 == self).map_or("", |it| it.0)
    }
}

/// Who may use a cache at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// All.
    Shared,
    /// Who comes second gets another.
    Private,
    /// Who comes second waits.
    Locked,
}

const SHARINGS: [(&str, Sharing); 3] =
    [("shared", Sharing::Shared), ("private", Sharing::Private), ("locked", Sharing::Locked)];

/// One mount of a RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Of which kind.
    pub kind: MountKind,
    /// Stage, context or image; empty for the context.
    pub from: String,
    /// The path in `from`; for secrets the id.
    pub source: String,
    /// The path in the container.
    pub target: String,
    /// Not writable.
    pub read_only: bool,
    /// Of a tmpfs, bytes.
    pub size: Option<i64>,
    /// Of a cache, secret or agent.
    pub id: String,
    /// Of a cache.
    pub sharing: Option<Sharing>,
    /// It is an error where the secret or agent is not there.
    pub required: bool,
    /// The variable that gets the secret; empty for one named like its id.
    pub env: Option<String>,
    /// Permissions.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

impl Default for Mount {
    fn default() -> Self {
        Self {
            kind: MountKind::Bind,
            from: String::new(),
            source: String::new(),
            target: String::new(),
            read_only: false,
            size: None,
            id: String::new(),
            sharing: None,
            required: false,
            env: None,
            mode: None,
            uid: None,
            gid: None,
        }
    }
}

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

/// The `from` of a mount.
pub fn from(text: &str) -> Result<String> {
    let mut from = String::new();
    for field in fields(text, "mounts")? {
        let Some((key, value)) = field.split_once('=') else { continue };
        if !key.eq_ignore_ascii_case("from") {
            continue;
        }
        if value.find('$').is_some_and(|at| at + 1 != value.len()) {
            return Err(argument("'from' doesn't support variable expansion, define alias stage instead"));
        }
        value.clone_into(&mut from);
    }
    Ok(from)
}

/// A mount, each value expanded by `expand`.
pub fn parse(text: &str, expand: &mut dyn FnMut(&str) -> Result<String>) -> Result<Mount> {
    let mut mount = Mount::default();
    let mut read_only = None;
    for field in fields(text, "mounts")? {
        match field.split_once('=') {
            None => bare(&field, &mut mount, &mut read_only)?,
            Some((key, value)) => {
                let value = expand(value)?;
                set(&key.to_lowercase(), value, &field, &mut mount, &mut read_only)?;
            }
        }
    }
    mount.read_only = read_only.unwrap_or(!matches!(mount.kind, MountKind::Cache | MountKind::Tmpfs));
    check(&mount)?;
    Ok(mount)
}

fn bare(field: &str, mount: &mut Mount, read_only: &mut Option<bool>) -> Result<()> {
    match &*field.to_lowercase() {
        "readonly" | "ro" => *read_only = Some(true),
        "readwrite" | "rw" => *read_only = Some(false),
        "required" => require(mount, "required", true)?,
        _ => return Err(argument(format!("invalid field '{field}' must be a key=value pair"))),
    }
    Ok(())
}

fn require(mount: &mut Mount, key: &str, value: bool) -> Result<()> {
    if !matches!(mount.kind, MountKind::Secret | MountKind::Ssh) {
        return Err(unexpected(key, mount));
    }
    mount.required = value;
    Ok(())
}

fn unexpected(key: &str, mount: &Mount) -> super::DockerfileError {
    argument(format!("unexpected key '{key}' for mount type '{}'", mount.kind.name()))
}

fn set(key: &str, value: String, field: &str, mount: &mut Mount, read_only: &mut Option<bool>) -> Result<()> {
    let invalid = || argument(format!("invalid value for {key}: {value}"));
    let number =
        |radix| u32::from_str_radix(&value, radix).map_err(|_| argument(format!("invalid value {value} for {key}")));
    match key {
        "type" => mount.kind = choice(&value, "mount type", &KINDS)?,
        "from" => mount.from = value,
        "source" | "src" => mount.source = value,
        "target" | "dst" | "destination" => mount.target = value,
        "readonly" | "ro" => *read_only = Some(boolean(&value).ok_or_else(invalid)?),
        "readwrite" | "rw" => *read_only = Some(!boolean(&value).ok_or_else(invalid)?),
        "required" => {
            if !matches!(mount.kind, MountKind::Secret | MountKind::Ssh) {
                return Err(unexpected(key, mount));
            }
            let value = boolean(&value).ok_or_else(invalid)?;
            require(mount, key, value)?;
        }
        "size" if mount.kind == MountKind::Tmpfs => mount.size = Some(bytes(&value).ok_or_else(invalid)?),
        "size" => return Err(unexpected(key, mount)),
        "id" => mount.id = value,
        "sharing" => mount.sharing = Some(choice(&value, "sharing value", &SHARINGS)?),
        "mode" => mount.mode = Some(number(8)?),
        "uid" => mount.uid = Some(number(10)?),
        "gid" => mount.gid = Some(number(10)?),
        "env" => mount.env = Some(value),
        _ => return Err(argument(format!("unexpected key '{key}' in '{field}'")).near(key, KEYS, true)),
    }
    Ok(())
}

fn choice<T: Copy>(value: &str, what: &str, known: &[(&str, T)]) -> Result<T> {
    let found = known.iter().find(|it| it.0 == value.to_lowercase());
    let wrong = || argument(format!("unsupported {what} {}", quote(value)));
    found.map(|it| it.1).ok_or_else(|| wrong().near(value, known.iter().map(|it| it.0), true))
}

fn check(mount: &Mount) -> Result<()> {
    let kind = mount.kind;
    if matches!(kind, MountKind::Bind | MountKind::Tmpfs) {
        for (name, value) in [("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)] {
            if value.is_some() {
                return Err(argument(format!("{name} not allowed for {} type mounts", quote(kind.name()))));
            }
        }
    }
    if kind == MountKind::Secret {
        let wrong = if !mount.from.is_empty() {
            "secret mount should not have a from"
        } else if mount.sharing.is_some() {
            "secret mount should not define sharing"
        } else if mount.source.is_empty() && mount.target.is_empty() && mount.id.is_empty() {
            "invalid secret mount. one of source, target required"
        } else if !mount.source.is_empty() && !mount.id.is_empty() {
            "both source and id can't be set"
        } else {
            return Ok(());
        };
        return Err(argument(wrong));
    }
    if mount.sharing.is_some() && kind != MountKind::Cache {
        return Err(argument(format!("invalid cache sharing set for {} mount", kind.name())));
    }
    Ok(())
}

/// `--device=`: a device by its CDI name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// `vendor.com/class=name`.
    pub name: String,
    /// It is an error where it is not there.
    pub required: bool,
}

/// Reads `--device=`.
pub fn device(text: &str) -> Result<Device> {
    let mut device = Device { name: String::new(), required: false };
    for field in fields(text, "devices")? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        match (&*key, value) {
            ("required", None) => device.required = true,
            ("required", Some(value)) => {
                let wrong = || argument(format!("invalid value for {key}: {value}"));
                device.required = boolean(value).ok_or_else(wrong)?;
            }
            ("name", Some(_)) if !device.name.is_empty() => {
                return Err(argument(format!("device name already set to {}", device.name)));
            }
            ("name", Some(value)) => value.clone_into(&mut device.name),
            _ if device.name.is_empty() => device.name = field,
            (_, None) => return Err(argument(format!("invalid field '{field}' must be a key=value pair"))),
            (_, Some(_)) => {
                let wrong = argument(format!("unexpected key '{key}' in '{field}'"));
                return Err(wrong.near(&key, ["name", "required"], true));
            }
        }
    }
    Ok(device)
}

/// The fields of a line of CSV: `"` around one keeps commas, `""` in it is one.
fn fields(text: &str, what: &str) -> Result<Vec<String>> {
    let wrong = |problem: &str| argument(format!("failed to parse csv {what}: {problem}"));
    let mut all = Vec::new();
    let mut rest = text;
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut field = String::new();
            let mut quoted = quoted;
            loop {
                let (part, behind) =
                    quoted.split_once('"').ok_or_else(|| wrong("extraneous or missing \" in quoted-field"))?;
                field.push_str(part);
                let Some(again) = behind.strip_prefix('"') else {
                    rest = behind;
                    break;
                };
                field.push('"');
                quoted = again;
            }
            all.push(field);
            match rest.strip_prefix(',') {
                Some(next) => rest = next,
                None if rest.is_empty() => return Ok(all),
                None => return Err(wrong("extraneous or missing \" in quoted-field")),
            }
            continue;
        }
        let (field, next) = rest.split_once(',').map_or((rest, None), |(field, next)| (field, Some(next)));
        if field.contains('"') {
            return Err(wrong("bare \" in non-quoted-field"));
        }
        all.push(field.to_owned());
        match next {
            Some(next) => rest = next,
            None => return Ok(all),
        }
    }
}

/// As Go reads a boolean.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// `10`, `1.5g`, `64 MiB`: powers of 1024.
fn bytes(text: &str) -> Option<i64> {
    let end = text.rfind(|it: char| it.is_ascii_digit() || it == '.').map(|at| at + 1)?;
    let number: f64 = text[..end].parse().ok().filter(|it: &f64| *it >= 0.0)?;
    let unit = text[end..].strip_prefix(' ').unwrap_or(&text[end..]).to_lowercase();
    let power = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit) {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let bytes = number * 1024f64.powi(power);
    // Such a size is far beyond what memory has.
    #[allow(clippy::cast_possible_truncation)]
    (bytes < 9e18).then_some(bytes as i64)
}

#[cfg(test)]
#[path = "mount_tests.rs"]
mod tests;
