//! `-v`, `--mount`, `--tmpfs`.

use std::path::Path;

use container_engine::container::{Mount, MountSource, Propagation};

/// `[SOURCE:]TARGET[:OPTIONS]`: a path of the host (made where it is missing), a named volume, or a volume of its own.
pub fn volume(text: &str, working_dir: &Path) -> Result<Mount, String> {
    let wrong = |why: &str| format!("{text:?} is no volume: {why}; write it like /host/path:/path[:ro] or NAME:/path");
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts[..] {
        [target] => ("", target, ""),
        [source, target] => (source, target, ""),
        [source, target, options] => (source, target, options),
        _ => return Err(wrong("it has too many parts")),
    };
    let target = absolute(target).ok_or_else(|| wrong("the path in the container is not absolute"))?;
    let mut mount = Mount {
        target,
        source: MountSource::Volume { name: source.to_owned() },
        read_only: false,
        recursive_read_only: false,
        propagation: Propagation::default(),
    };
    if parts.len() > 1 && source.is_empty() {
        return Err(wrong("its source is empty"));
    }
    if is_path(source) {
        mount.source = MountSource::Bind { source: working_dir.join(source), create: true };
    } else if !source.is_empty() {
        check_name(source).map_err(|why| wrong(&why))?;
    }
    for option in options.split(',').filter(|it| !it.is_empty()) {
        match option {
            "ro" => mount.read_only = true,
            // There is no SELinux here to relabel for; consistency was for macOS; a new volume is filled anyway.
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            other => {
                mount.propagation = propagation(other).ok_or_else(|| wrong(&format!("unknown option {other:?}")))?;
            }
        }
    }
    Ok(mount)
}

/// `type=bind,src=/host,dst=/path,ro` and the like.
pub fn mount(text: &str, working_dir: &Path) -> Result<Mount, String> {
    let wrong = |why: String| format!("--mount {text}: {why}");
    let mut fields = Fields::default();
    for field in split_quoted(text).map_err(wrong)? {
        let (key, value) = field.split_once('=').map_or((field.as_str(), None), |(key, value)| (key, Some(value)));
        fields.set(key, value).map_err(wrong)?;
    }
    let target = fields.target.as_deref().and_then(absolute);
    let target = target.ok_or_else(|| wrong("it needs an absolute target=PATH".to_owned()))?;
    let source = match (fields.kind.as_deref().unwrap_or("volume"), fields.source) {
        ("bind", Some(source)) if is_path(&source) => {
            MountSource::Bind { source: working_dir.join(source), create: fields.create }
        }
        ("bind", _) => return Err(wrong("a bind mount needs source=/PATH".to_owned())),
        ("volume", source) => {
            let name = source.unwrap_or_default();
            if !name.is_empty() {
                check_name(&name).map_err(wrong)?;
            }
            MountSource::Volume { name }
        }
        ("tmpfs", None) => MountSource::Tmpfs { size: fields.size, mode: fields.mode },
        ("tmpfs", Some(_)) => return Err(wrong("a tmpfs has no source".to_owned())),
        (other, _) => return Err(wrong(format!("there is no type {other:?}: there are bind, volume, tmpfs"))),
    };
    if !matches!(source, MountSource::Tmpfs { .. }) && (fields.size.is_some() || fields.mode.is_some()) {
        return Err(wrong("tmpfs-size and tmpfs-mode go with type=tmpfs".to_owned()));
    }
    Ok(Mount {
        target,
        source,
        read_only: fields.read_only,
        recursive_read_only: fields.recursive,
        propagation: fields.propagation,
    })
}

/// `PATH[:OPTIONS]`, such as `/run:size=64m,mode=1777`.
pub fn tmpfs(text: &str) -> Result<Mount, String> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    let wrong = |why: &str| format!("{text:?} is no tmpfs: {why}; write it like /run:size=64m,mode=1777");
    let target = absolute(path).ok_or_else(|| wrong("its path is not absolute"))?;
    let (mut size, mut mode, mut read_only) = (None, None, false);
    for option in options.split(',').filter(|it| !it.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("size", value) => size = Some(super::bytes(value)?),
            ("mode", value) => mode = Some(octal(value).ok_or_else(|| wrong("its mode is not octal"))?),
            ("ro", "") => read_only = true,
            // These are in force anyway, or change nothing.
            ("rw" | "nosuid" | "nodev" | "noexec" | "exec" | "noatime" | "relatime", "") => {}
            (other, _) => return Err(wrong(&format!("unknown option {other:?}"))),
        }
    }
    let propagation = Propagation::default();
    Ok(Mount { target, source: MountSource::Tmpfs { size, mode }, read_only, recursive_read_only: false, propagation })
}

#[derive(Default)]
struct Fields {
    kind: Option<String>,
    source: Option<String>,
    target: Option<String>,
    read_only: bool,
    recursive: bool,
    create: bool,
    propagation: Propagation,
    size: Option<u64>,
    mode: Option<u32>,
}

impl Fields {
    fn set(&mut self, key: &str, value: Option<&str>) -> Result<(), String> {
        let text =
            || value.filter(|it| !it.is_empty()).map(str::to_owned).ok_or_else(|| format!("{key} needs a value"));
        let switch = || match value {
            None | Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(other) => Err(format!("{key}={other}: write true or false")),
        };
        match key {
            "type" => self.kind = Some(text()?),
            "source" | "src" => self.source = Some(text()?),
            "target" | "dst" | "destination" => self.target = Some(text()?),
            "readonly" | "ro" => self.read_only = switch()?,
            "rw" => self.read_only = !switch()?,
            "bind-propagation" => {
                let text = text()?;
                self.propagation = propagation(&text).ok_or_else(|| format!("there is no propagation {text:?}"))?;
            }
            "bind-recursive" => match text()?.as_str() {
                "enabled" | "writable" => self.recursive = false,
                "readonly" => (self.read_only, self.recursive) = (true, true),
                other => return Err(format!("bind-recursive={other}: write enabled, writable or readonly")),
            },
            "create-host-path" => self.create = switch()?,
            "tmpfs-size" => self.size = Some(super::bytes(&text()?)?),
            "tmpfs-mode" => {
                let text = text()?;
                self.mode = Some(octal(&text).ok_or_else(|| format!("the mode {text:?} is not octal"))?);
            }
            // A new volume is filled from the image; the consistency of macOS means nothing here.
            "volume-nocopy" if switch()? => return Err("volume-nocopy is not available".to_owned()),
            "volume-nocopy" | "consistency" => {}
            other => {
                return Err(format!(
                    "unknown key {other:?}: there are type, source, target, readonly, bind-propagation, bind-recursive, \
                     tmpfs-size, tmpfs-mode"
                ));
            }
        }
        Ok(())
    }
}

fn propagation(text: &str) -> Option<Propagation> {
    match text {
        "private" | "rprivate" => Some(Propagation::Rprivate),
        "slave" | "rslave" => Some(Propagation::Rslave),
        "shared" | "rshared" => Some(Propagation::Rshared),
        _ => None,
    }
}

fn is_path(source: &str) -> bool {
    source.starts_with(['/', '.']) || source.contains('/')
}

fn absolute(path: &str) -> Option<String> {
    let trimmed = path.trim_end_matches('/');
    (path.starts_with('/') && !trimmed.is_empty()).then(|| trimmed.to_owned())
}

fn octal(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777)
}

fn check_name(name: &str) -> Result<(), String> {
    let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let good = name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric) && name.bytes().all(rest);
    if good { Ok(()) } else { Err(format!("{name:?} is neither a path nor the name of a volume")) }
}

/// Splits at commas; a field in double quotes may hold some.
fn split_quoted(text: &str) -> Result<Vec<String>, String> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    if quoted {
        return Err("a quote is not closed".to_owned());
    }
    fields.push(field);
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &str, create: bool) -> MountSource {
        MountSource::Bind { source: source.into(), create }
    }

    fn named(name: &str) -> MountSource {
        MountSource::Volume { name: name.to_owned() }
    }

    #[test]
    fn volumes() {
        #[track_caller]
        fn check(text: &str, want: Option<(MountSource, &str, bool, Propagation)>) {
            let got = volume(text, Path::new("/here")).ok();
            let got = got.as_ref().map(|it| (it.source.clone(), it.target.as_str(), it.read_only, it.propagation));
            assert_eq!(got, want, "{text:?}");
        }
        check("/a:/b", Some((bind("/a", true), "/b", false, Propagation::Rprivate)));
        check("/a:/b/:ro", Some((bind("/a", true), "/b", true, Propagation::Rprivate)));
        check("/a:/b:ro,rslave", Some((bind("/a", true), "/b", true, Propagation::Rslave)));
        check("./a:/b:Z", Some((bind("/here/./a", true), "/b", false, Propagation::Rprivate)));
        check("data:/b:rw", Some((named("data"), "/b", false, Propagation::Rprivate)));
        check("/b", Some((named(""), "/b", false, Propagation::Rprivate)));
        for wrong in ["", "a", "/a:b", "/a:/", ":/b", "/a:/b:x", "/a:/b:ro:rw", "-x:/b", "da ta:/b", "/"] {
            check(wrong, None);
        }
    }

    #[test]
    fn mounts() {
        let it = |text: &str| mount(text, Path::new("/here"));
        let bound = it("type=bind,src=/a,dst=/b,ro").unwrap();
        assert_eq!((bound.source, bound.target.as_str(), bound.read_only), (bind("/a", false), "/b", true));
        let bound = it("type=bind,source=/a,target=/b,bind-recursive=readonly,bind-propagation=rshared").unwrap();
        assert!(bound.recursive_read_only && bound.read_only && bound.propagation == Propagation::Rshared);
        assert_eq!(it("source=data,destination=/b,readonly=false").unwrap().source, named("data"));
        assert_eq!(it("dst=/b").unwrap().source, named(""));
        let quoted = it("type=bind,\"src=/a,b\",dst=/b").unwrap();
        assert_eq!(quoted.source, bind("/a,b", false));
        let memory = it("type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1770").unwrap();
        assert_eq!(memory.source, MountSource::Tmpfs { size: Some(1 << 20), mode: Some(0o1770) });
        for wrong in [
            "",
            "type=bind",
            "type=bind,dst=/b",
            "type=bind,src=data,dst=/b",
            "type=nfs,dst=/b",
            "dst=b",
            "dst=/b,x=1",
            "type=tmpfs,src=/a,dst=/b",
            "dst=/b,ro=maybe",
            "dst=/b,tmpfs-size=1m",
            "\"dst=/b",
            "type=tmpfs,dst=/t,tmpfs-mode=9",
        ] {
            assert!(it(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn memory() {
        assert_eq!(tmpfs("/run").unwrap().source, MountSource::Tmpfs { size: None, mode: None });
        let it = tmpfs("/run:rw,nosuid,size=64m,mode=755,ro").unwrap();
        assert_eq!((it.source, it.read_only), (MountSource::Tmpfs { size: Some(64 << 20), mode: Some(0o755) }, true));
        for wrong in ["run", "/", "/run:size=x", "/run:mode=8", "/run:uid=x"] {
            assert!(tmpfs(wrong).is_err(), "{wrong:?}");
        }
    }
}
