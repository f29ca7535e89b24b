//! `--ulimit`, `--device`, `--device-read-bps`, `--security-opt`.

use std::path::{Path, PathBuf};

use container_engine::container::{Device, Rlimit, Seccomp, Security};

/// `NAME=SOFT[:HARD]`; `-1` and `unlimited` mean no limit.
pub fn ulimit(text: &str) -> Result<Rlimit, String> {
    const NAMES: [&str; 15] = [
        "core",
        "cpu",
        "data",
        "fsize",
        "locks",
        "memlock",
        "msgqueue",
        "nice",
        "nofile",
        "nproc",
        "rss",
        "rtprio",
        "rttime",
        "sigpending",
        "stack",
    ];
    let wrong = || format!("{text:?} is no limit: write it like nofile=1024:4096 or core=unlimited");
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    if !NAMES.contains(&name) {
        return Err(format!("there is no limit {name:?}: there are {}", NAMES.join(", ")));
    }
    let value = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        _ => text.parse().map_err(|_| wrong()),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (value(soft)?, value(hard)?);
    if soft > hard {
        return Err(format!("{text:?}: the soft limit is above the hard one"));
    }
    Ok(Rlimit { name: name.to_owned(), soft, hard })
}

/// `HOST[:CONTAINER[:rwm]]` or `HOST:rwm`.
pub fn device(text: &str) -> Result<Device, String> {
    let wrong = || format!("{text:?} is no device: write it like /dev/ttyUSB0, /dev/sda:/dev/xvda:r or /dev/fuse:rwm");
    let is_access = |it: &str| !it.is_empty() && it.len() <= 3 && it.chars().all(|c| "rwm".contains(c));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, access) = match parts[..] {
        [source] => (source, source, "rwm"),
        [source, access] if is_access(access) => (source, source, access),
        [source, target] => (source, target, "rwm"),
        [source, target, access] if is_access(access) => (source, target, access),
        _ => return Err(wrong()),
    };
    if !source.starts_with('/') || !target.starts_with('/') {
        return Err(wrong());
    }
    Ok(Device { source: PathBuf::from(source), target: target.to_owned(), access: access.to_owned() })
}

/// `DEVICE:RATE`; with `is_bytes` the rate may have a unit.
pub fn device_rate(text: &str, is_bytes: bool) -> Result<(PathBuf, u64), String> {
    let example = if is_bytes { "/dev/sda:1mb" } else { "/dev/sda:1000" };
    let wrong = || format!("{text:?} is no device with a rate: write it like {example}");
    let (device, rate) = text.split_once(':').filter(|(device, _)| device.starts_with("/dev/")).ok_or_else(wrong)?;
    let rate = if is_bytes { super::bytes(rate)? } else { rate.parse().map_err(|_| wrong())? };
    if rate == 0 {
        return Err(format!("{text:?}: a rate of 0 would stop it"));
    }
    Ok((PathBuf::from(device), rate))
}

/// One `--security-opt`; `read` gets a seccomp profile's file.
pub fn security(
    text: &str,
    into: &mut Security,
    read: impl Fn(&Path) -> Result<Vec<u8>, String>,
) -> Result<(), String> {
    let (key, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
    match (key, value) {
        ("no-new-privileges", "" | "true") => into.no_new_privileges = true,
        ("no-new-privileges", "false") => into.no_new_privileges = false,
        ("seccomp", "unconfined") => into.seccomp = Seccomp::Unconfined,
        ("seccomp", "builtin" | "default") => into.seccomp = Seccomp::Default,
        ("seccomp", path) if !path.is_empty() => {
            let profile = serde_json::from_slice(&read(Path::new(path))?);
            into.seccomp = Seccomp::Custom(profile.map_err(|error| format!("the seccomp profile {path}: {error}"))?);
        }
        ("apparmor", name) if !name.is_empty() => into.apparmor = Some(name.to_owned()),
        ("systempaths", "unconfined") => {
            into.masked_paths = Some(Vec::new());
            into.readonly_paths = Some(Vec::new());
        }
        // There is no SELinux here, so no label either.
        ("label", _) => {}
        _ => {
            return Err(format!(
                "{text:?} is no security option: there are seccomp=FILE|unconfined, apparmor=NAME, no-new-privileges, \
                 systempaths=unconfined"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulimits() {
        #[track_caller]
        fn check(text: &str, want: Option<(&str, u64, u64)>) {
            let got = ulimit(text).ok().map(|it| (it.name, it.soft, it.hard));
            assert_eq!(got, want.map(|(name, soft, hard)| (name.to_owned(), soft, hard)), "{text:?}");
        }
        check("nofile=1024:4096", Some(("nofile", 1024, 4096)));
        check("nofile=1024", Some(("nofile", 1024, 1024)));
        check("core=unlimited", Some(("core", u64::MAX, u64::MAX)));
        check("core=0:-1", Some(("core", 0, u64::MAX)));
        for wrong in ["nofile", "nofile=", "nofile=2:1", "files=1", "nofile=a", "nofile=1:2:3", "nofile=-2"] {
            check(wrong, None);
        }
    }

    #[test]
    fn devices() {
        #[track_caller]
        fn check(text: &str, want: Option<(&str, &str, &str)>) {
            let got = device(text).ok();
            let got = got.as_ref().map(|it| (it.source.to_str().unwrap(), it.target.as_str(), it.access.as_str()));
            assert_eq!(got, want, "{text:?}");
        }
        check("/dev/a", Some(("/dev/a", "/dev/a", "rwm")));
        check("/dev/a:r", Some(("/dev/a", "/dev/a", "r")));
        check("/dev/a:/dev/b", Some(("/dev/a", "/dev/b", "rwm")));
        check("/dev/a:/dev/b:rw", Some(("/dev/a", "/dev/b", "rw")));
        for wrong in ["", "a", "/dev/a:x", "/dev/a:/dev/b:x", "/dev/a:b:c:d", "/dev/a:/dev/b:"] {
            check(wrong, None);
        }
        assert_eq!(device_rate("/dev/sda:1mb", true), Ok(("/dev/sda".into(), 1 << 20)));
        assert_eq!(device_rate("/dev/sda:100", false), Ok(("/dev/sda".into(), 100)));
        for wrong in ["/dev/sda", "/dev/sda:", "sda:1", "/dev/sda:0"] {
            assert!(device_rate(wrong, true).is_err(), "{wrong:?}");
        }
        assert!(device_rate("/dev/sda:1mb", false).is_err());
    }

    #[test]
    fn security_options() {
        let read = |path: &Path| match path.to_str() {
            Some("good.json") => Ok(br#"{"defaultAction":"SCMP_ACT_ALLOW"}"#.to_vec()),
            Some("bad.json") => Ok(b"{".to_vec()),
            _ => Err("no such file".to_owned()),
        };
        let with = |text: &str| {
            let mut it = Security::default();
            security(text, &mut it, read).map(|()| it)
        };
        assert!(with("no-new-privileges").unwrap().no_new_privileges);
        assert!(with("no-new-privileges:true").unwrap().no_new_privileges);
        assert!(!with("no-new-privileges=false").unwrap().no_new_privileges);
        assert_eq!(with("seccomp=unconfined").unwrap().seccomp, Seccomp::Unconfined);
        assert!(matches!(with("seccomp=good.json").unwrap().seccomp, Seccomp::Custom(_)));
        assert_eq!(with("apparmor=docker-default").unwrap().apparmor.as_deref(), Some("docker-default"));
        assert_eq!(with("systempaths=unconfined").unwrap().masked_paths, Some(vec![]));
        for wrong in
            ["seccomp=bad.json", "seccomp=none.json", "seccomp=", "apparmor=", "x=y", "no-new-privileges=maybe"]
        {
            assert!(with(wrong).is_err(), "{wrong:?}");
        }
    }
}
