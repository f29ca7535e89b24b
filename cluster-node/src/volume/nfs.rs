//! NFS, mounted by the kernel alone: no program of the host is needed.
//!
//! Elsewhere: persistent volumes (`persistent`).

use std::{net::IpAddr, path::Path, time::Duration};

use rustix::mount::MountFlags;

use super::{Problem, mount};

/// How long a name of a server may take to be found.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Name or address.
    pub server: String,
    /// Absolute, on the server.
    pub path: String,
    /// Read-only.
    pub read_only: bool,
    /// `mountOptions` of the persistent volume.
    pub options: Vec<String>,
}

/// How one try is made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Try {
    kind: &'static str,
    flags: MountFlags,
    data: String,
}

/// The address of the server.
pub async fn resolve(server: &str) -> Result<IpAddr, Problem> {
    let name = server.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = name.parse() {
        return Ok(address);
    }
    let shown: String = name.chars().take(253).collect();
    let unknown = |why: String| Problem::Missing(format!("NFS server {shown:?} has no address: {why}"));
    let found = tokio::time::timeout(PATIENCE, tokio::net::lookup_host((name, 2049u16))).await;
    let found =
        found.map_err(|_| unknown("no answer in time".to_owned()))?.map_err(|error| unknown(error.to_string()))?;
    found.map(|it| it.ip()).next().ok_or_else(|| unknown("none was found".to_owned()))
}

/// Mounts it at `target`, a folder that is there; blocking. Versions from the newest, unless the options say which.
pub fn set_up(target: &Path, export: &Export, address: IpAddr) -> Result<(), Problem> {
    if mount::is_mounted(target)? {
        return Ok(());
    }
    let source = match address {
        IpAddr::V6(_) if export.server.parse::<IpAddr>().is_ok() => format!("[{}]:{}", export.server, export.path),
        _ => format!("{}:{}", export.server, export.path),
    };
    let mut last = None;
    for one in tries(export, address)? {
        match mount::mount(&source, target, one.kind, one.flags, &one.data) {
            Ok(()) => return Ok(()),
            // The server or the kernel has not this version: the next is tried.
            Err(error @ Problem::Io { .. }) if is_version(&error) => last = Some(error),
            Err(error @ Problem::Unsupported(_)) => last = Some(last.unwrap_or(error)),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| Problem::Unsupported("no version of NFS is left to try".to_owned())))
}

fn is_version(error: &Problem) -> bool {
    let Problem::Io { source, .. } = error else { return false };
    let codes = [rustix::io::Errno::PROTONOSUPPORT, rustix::io::Errno::INVAL, rustix::io::Errno::OPNOTSUPP];
    source.raw_os_error().is_some_and(|code| codes.iter().any(|it| it.raw_os_error() == code))
}

fn tries(export: &Export, address: IpAddr) -> Result<Vec<Try>, Problem> {
    let bad = |what: &str| Err(Problem::Invalid(format!("NFS: {what}")));
    if !export.path.starts_with('/') || export.path.contains('\0') {
        return bad("the path of the export must be absolute");
    }
    if export.server.is_empty() || export.server.contains(['/', '\0', ' ']) {
        return bad("the server is no name");
    }
    let mut flags = if export.read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    let (mut version, mut data) = (None, Vec::new());
    for option in export.options.iter().flat_map(|it| it.split(',')).map(str::trim).filter(|it| !it.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name {
            "ro" => flags |= MountFlags::RDONLY,
            "rw" | "defaults" | "auto" | "noauto" | "_netdev" | "nofail" | "suid" | "dev" | "exec" | "bg" | "fg" => {}
            "nosuid" => flags |= MountFlags::NOSUID,
            "nodev" => flags |= MountFlags::NODEV,
            "noexec" => flags |= MountFlags::NOEXEC,
            "noatime" => flags |= MountFlags::NOATIME,
            "nodiratime" => flags |= MountFlags::NODIRATIME,
            "relatime" => flags |= MountFlags::RELATIME,
            "sync" => flags |= MountFlags::SYNCHRONOUS,
            "vers" | "nfsvers" => version = Some(value.to_owned()),
            // Those are found out, and not for a pod to choose.
            "addr" | "clientaddr" | "mountaddr" => return bad("addresses are no options"),
            _ if option.bytes().all(|byte| byte.is_ascii_graphic()) && option.len() <= 256 => {
                data.push(option.to_owned());
            }
            _ => return bad("an option has characters that no option has"),
        }
    }
    let versions: Vec<&str> = match version.as_deref() {
        None | Some("4") => vec!["4.2", "4.1", "4.0"],
        Some(one @ ("4.2" | "4.1" | "4.0" | "3")) => vec![one],
        Some(_) => return bad("versions are 3, 4, 4.0, 4.1 and 4.2"),
    };
    let one = |version: &str| {
        let mut all = vec![format!("vers={version}"), format!("addr={address}")];
        all.extend(data.iter().cloned());
        if version == "3" {
            // Locks would need a daemon on the node.
            all.extend(["nolock".to_owned(), format!("mountaddr={address}")]);
        }
        Try { kind: if version == "3" { "nfs" } else { "nfs4" }, flags, data: all.join(",") }
    };
    Ok(versions.into_iter().map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(options: &[&str], want: Option<&[(&str, &str)]>) {
        let options = options.iter().map(|it| (*it).to_owned()).collect();
        let export = Export { server: "nas".into(), path: "/x".into(), read_only: false, options };
        let got = tries(&export, "10.0.0.7".parse().unwrap()).ok();
        let got = got.map(|all| all.into_iter().map(|it| (it.kind, it.data)).collect::<Vec<_>>());
        let want = want.map(|all| all.iter().map(|it| (it.0, it.1.to_owned())).collect());
        assert_eq!(got, want);
    }

    #[test]
    fn options() {
        let usual: &[_] = &[
            ("nfs4", "vers=4.2,addr=10.0.0.7"),
            ("nfs4", "vers=4.1,addr=10.0.0.7"),
            ("nfs4", "vers=4.0,addr=10.0.0.7"),
        ];
        check(&[], Some(usual));
        check(&["ro", "noatime,nfsvers=4"], Some(usual));
        check(&["vers=4.1", "soft,timeo=30"], Some(&[("nfs4", "vers=4.1,addr=10.0.0.7,soft,timeo=30")]));
        check(&["nfsvers=3"], Some(&[("nfs", "vers=3,addr=10.0.0.7,nolock,mountaddr=10.0.0.7")]));
        check(&["vers=2"], None);
        check(&["addr=1.2.3.4"], None);
        check(&["a b"], None);
        check(&["x\0"], None);
    }

    #[test]
    fn flags_and_names() {
        let export = |server: &str, path: &str| Export {
            server: server.into(),
            path: path.into(),
            read_only: true,
            options: vec!["nosuid".into()],
        };
        let address = "10.0.0.7".parse().unwrap();
        let first = tries(&export("nas", "/x"), address).unwrap().remove(0);
        assert_eq!(first.flags, MountFlags::RDONLY | MountFlags::NOSUID);
        for (server, path) in [("", "/x"), ("nas", "x"), ("a/b", "/x"), ("nas", "/x\0"), ("a b", "/x")] {
            assert!(tries(&export(server, path), address).is_err(), "{server} {path}");
        }
    }
}
