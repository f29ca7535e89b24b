//! Paths of the node in pods: the check of their type. Blocking.

use std::{
    fs::{self, OpenOptions, Permissions},
    io,
    os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::Problem;

/// Checks, and makes where the type says so. An absent type is not checked at all.
pub fn check(path: &str, kind: &str) -> Result<PathBuf, Problem> {
    if !path.starts_with('/') || path.contains('\0') || Path::new(path).components().any(|it| it.as_os_str() == "..") {
        let shown: String = path.chars().take(256).collect();
        return Err(Problem::Invalid(format!("invalid HostPath `{shown}`: it must be absolute and without \"..\"")));
    }
    let found = PathBuf::from(path);
    let wrong = |what: &str| Problem::Missing(format!("hostPath type check failed: {path} is not {what}"));
    let is = |test: fn(&fs::FileType) -> bool, what: &str| match fs::metadata(&found) {
        Ok(there) if test(&there.file_type()) => Ok(()),
        _ => Err(wrong(what)),
    };
    match kind {
        "" => Ok(()),
        "DirectoryOrCreate" => make(&found, make_dir).and_then(|()| is(fs::FileType::is_dir, "a directory")),
        "Directory" => is(fs::FileType::is_dir, "a directory"),
        "FileOrCreate" => make(&found, make_file).and_then(|()| is(fs::FileType::is_file, "a file")),
        "File" => is(fs::FileType::is_file, "a file"),
        "Socket" => is(fs::FileType::is_socket, "a socket file"),
        "CharDevice" => is(fs::FileType::is_char_device, "a character device"),
        "BlockDevice" => is(fs::FileType::is_block_device, "a block device"),
        other => {
            let shown: String = other.chars().take(64).collect();
            Err(Problem::Invalid(format!("{shown} is an invalid volume type")))
        }
    }?;
    Ok(found)
}

fn make(path: &Path, with: fn(&Path) -> io::Result<()>) -> Result<(), Problem> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => with(path).map_err(Problem::io("make", path)),
        _ => Ok(()),
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// Its folder is not made.
fn make_file(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    file.set_permissions(Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn every_type() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("file"), "").unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let (dir_path, file, socket) = (at("dir"), at("file"), at("socket"));
        let all = ["dir", "file", "socket"];
        for (kind, good) in [("Directory", "dir"), ("File", "file"), ("Socket", "socket")] {
            for name in all {
                assert_eq!(check(&at(name), kind).is_ok(), name == good, "{kind} {name}");
            }
            check(&at("none"), kind).unwrap_err();
        }
        check("/dev/null", "CharDevice").unwrap();
        check("/dev/null", "BlockDevice").unwrap_err();
        check(&file, "CharDevice").unwrap_err();
        check(&at("new/dir"), "DirectoryOrCreate").unwrap();
        assert_eq!(fs::metadata(at("new/dir")).unwrap().permissions().mode() & 0o7777, 0o755);
        check(&at("new/file"), "FileOrCreate").unwrap();
        assert_eq!(fs::metadata(at("new/file")).unwrap().permissions().mode() & 0o7777, 0o644);
        check(&at("no/file"), "FileOrCreate").unwrap_err();
        check(&file, "DirectoryOrCreate").unwrap_err();
        check(&dir_path, "FileOrCreate").unwrap_err();
        check(&at("none"), "").unwrap();
        assert!(!dir.path().join("none").exists());
        for bad in ["", "relative", "/a/../etc", "/a\0"] {
            check(bad, "").unwrap_err();
        }
        let error = check(&socket, "File").unwrap_err();
        assert!(error.to_string().contains("is not a file"), "{error}");
        check(&file, "Anything").unwrap_err();
    }
}
