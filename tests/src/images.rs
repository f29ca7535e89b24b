//! Images made of this machine's own files.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};

/// An image of one layer with busybox and its applets, as an OCI layout; the tree stays in `busybox-tree`.
pub fn busybox(dir: &Path) -> Result<PathBuf> {
    let tree = dir.join("busybox-tree");
    for name in ["bin", "etc", "root", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(tree.join(name))?;
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox"))?;
    let applets = Command::new("/bin/busybox").arg("--list").output()?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|it| *it != "busybox") {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet))?;
    }
    fs::write(
        tree.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    fs::write(tree.join("etc/group"), "root:x:0:\nwheel:x:10:app\napp:x:1000:\nnogroup:x:65534:\n")?;
    layout(dir, "busybox", &[tar(&tree, &["."])?])
}

/// An OCI layout as a tar file, as `image load` takes it.
pub fn archive(layout: &Path) -> Result<PathBuf> {
    let file = layout.with_extension("oci.tar");
    let status = Command::new("tar").arg("-C").arg(layout).arg("-cf").arg(&file).arg(".").status()?;
    ensure!(status.success(), "tar could not make an archive");
    Ok(file)
}

/// `layers` layers of `mib` MiB each that do not compress.
pub fn random(dir: &Path, name: &str, layers: usize, mib: u64) -> Result<PathBuf> {
    layout(dir, name, &random_layers(dir, name, layers, mib)?)
}

fn random_layers(dir: &Path, name: &str, layers: usize, mib: u64) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for n in 0..layers {
        let tree = dir.join(format!("{name}-{n}"));
        fs::create_dir_all(&tree)?;
        let mut bytes = std::io::Read::take(File::open("/dev/urandom")?, mib << 20);
        std::io::copy(&mut bytes, &mut File::create(tree.join(format!("file-{n}")))?)?;
        files.push(tar(&tree, &["."])?);
        fs::remove_dir_all(&tree)?;
    }
    Ok(files)
}

/// Five layers of this machine's files: about 300 MB, a third of it compressed.
pub fn five_layers(dir: &Path) -> Result<PathBuf> {
    let mut files = Vec::new();
    for base in ["usr/lib", "usr/bin", "usr/share"] {
        collect(Path::new("/").join(base).as_path(), &mut files)?;
    }
    files.sort();
    let (mut layers, mut group, mut bytes) = (Vec::new(), Vec::new(), 0u64);
    for (path, size) in files.into_iter().filter(|(_, size)| *size < 20 << 20) {
        bytes += size;
        group.push(path);
        if bytes > 61_000_000 {
            layers.push(list(dir, &group)?);
            (group, bytes) = (Vec::new(), 0);
            if layers.len() == 5 {
                break;
            }
        }
    }
    ensure!(layers.len() == 5, "this machine has too few files for the image");
    layout(dir, "five", &layers)
}

/// One layer of 2 GB in so many files, a quarter of it compressed.
pub fn many_files(dir: &Path, files: u64) -> Result<PathBuf> {
    let path = dir.join("many.tar");
    let script = "import io, os, sys, tarfile\n\
        n = int(sys.argv[2]); size = 2 * 10**9 // n\n\
        with tarfile.open(sys.argv[1], 'w') as t:\n\
        \x20   for i in range(n):\n\
        \x20       if i % 500 == 0:\n\
        \x20           d = tarfile.TarInfo(f'd{i // 500}'); d.type = tarfile.DIRTYPE; d.mode = 0o755; t.addfile(d)\n\
        \x20       body = (os.urandom(size // 4 + 1) * 5)[:size]\n\
        \x20       f = tarfile.TarInfo(f'd{i // 500}/f{i}'); f.size = size; t.addfile(f, io.BytesIO(body))\n";
    let status = Command::new("python3").args(["-c", script]).arg(&path).arg(files.to_string()).status()?;
    ensure!(status.success(), "python3 could not make the large layer");
    layout(dir, "many", &[path])
}

fn collect(dir: &Path, files: &mut Vec<(PathBuf, u64)>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            collect(&entry.path(), files)?;
        } else if metadata.is_file() {
            files.push((entry.path(), metadata.len()));
        }
    }
    Ok(())
}

fn list(dir: &Path, files: &[PathBuf]) -> Result<PathBuf> {
    let names = dir.join("names");
    let mut out = std::io::BufWriter::new(File::create(&names)?);
    for file in files {
        writeln!(out, "{}", file.strip_prefix("/")?.display())?;
    }
    out.flush()?;
    tar(Path::new("/"), &["-T", &names.display().to_string()])
}

/// A tar file of what the arguments name, in the folder of the tree or of the list.
fn tar(tree: &Path, what: &[&str]) -> Result<PathBuf> {
    let file = tempfile::Builder::new().suffix(".tar").tempfile_in("/var/tmp")?.into_temp_path().keep()?;
    let status = Command::new("tar").arg("-C").arg(tree).arg("-cf").arg(&file).args(what).status()?;
    ensure!(status.success(), "tar could not make a layer");
    Ok(file)
}

/// One image for several architectures, a layer of 1 MiB each.
pub fn for_architectures(dir: &Path, name: &str, architectures: &[&str]) -> Result<PathBuf> {
    let whole = dir.join(name);
    let blobs = whole.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let mut entries = Vec::new();
    for architecture in architectures {
        let one = format!("{name}-{architecture}");
        let layers = random_layers(dir, &one, 1, 1)?;
        let one = layout_for(dir, &one, &layers, architecture)?;
        for blob in fs::read_dir(one.join("blobs/sha256"))? {
            let blob = blob?;
            fs::rename(blob.path(), blobs.join(blob.file_name()))?;
        }
        let index: serde_json::Value = serde_json::from_slice(&fs::read(one.join("index.json"))?)?;
        let mut entry = index["manifests"][0].clone();
        entry["platform"] = serde_json::json!({ "os": "linux", "architecture": architecture });
        entries.push(entry);
    }
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": kind, "manifests": entries }).to_string();
    let digest = container_engine::content::Digest::of(index.as_bytes());
    fs::write(blobs.join(digest.hex()), &index)?;
    let top = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": kind, "digest": digest, "size": index.len(),
        "annotations": { "org.opencontainers.image.ref.name": "latest" },
    }] });
    fs::write(whole.join("index.json"), top.to_string())?;
    fs::write(whole.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}")?;
    Ok(whole)
}

/// An image of one program, which is all that is in it, for machines of another kind.
pub fn program(arch: &str, dir: &Path, program: &Path) -> Result<PathBuf> {
    let tree = dir.join("program-tree");
    for name in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(tree.join(name))?;
    }
    let name = program.file_name().unwrap_or_default();
    fs::copy(program, tree.join("bin").join(name))?;
    // A hard link, a link and an owner's own mode: what a layer can be unpacked wrongly in.
    fs::hard_link(tree.join("bin").join(name), tree.join("bin/hard"))?;
    std::os::unix::fs::symlink("hard", tree.join("bin/link"))?;
    fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/:/bin/false\n")?;
    fs::write(tree.join("etc/group"), "root:x:0:\n")?;
    layout_for(dir, "program", &[tar(&tree, &["--owner=0", "--group=0", "."])?], arch)
}

/// An OCI layout of uncompressed layers, which are compressed with gzip and removed.
pub fn layout(dir: &Path, name: &str, layers: &[PathBuf]) -> Result<PathBuf> {
    layout_for(dir, name, layers, architecture())
}

/// OCI's name of this machine's.
pub fn architecture() -> &'static str {
    if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" }
}

fn layout_for(dir: &Path, name: &str, layers: &[PathBuf], arch: &str) -> Result<PathBuf> {
    let layout = dir.join(name);
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let digest = |path: &Path| -> Result<String> {
        let output = Command::new("sha256sum").arg(path).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).split_whitespace().next().unwrap_or_default().to_owned())
    };
    let keep = |path: &Path| -> Result<serde_json::Value> {
        let (hex, size) = (digest(path)?, fs::metadata(path)?.len());
        fs::rename(path, blobs.join(&hex)).or_else(|_| fs::copy(path, blobs.join(&hex)).map(drop))?;
        Ok(serde_json::json!({ "digest": format!("sha256:{hex}"), "size": size }))
    };
    let typed = |mut value: serde_json::Value, kind: &str| {
        value["mediaType"] = format!("application/vnd.oci.image.{kind}").into();
        value
    };
    let (mut diff_ids, mut descriptors) = (Vec::new(), Vec::new());
    for layer in layers {
        diff_ids.push(format!("sha256:{}", digest(layer)?));
        let status = Command::new("gzip").args(["-f", "-6", "-n"]).arg(layer).status()?;
        ensure!(status.success(), "gzip failed");
        descriptors.push(typed(keep(&PathBuf::from(format!("{}.gz", layer.display())))?, "layer.v1.tar+gzip"));
    }
    let document = |value: serde_json::Value| -> Result<serde_json::Value> {
        let path = layout.join("document");
        fs::write(&path, serde_json::to_vec(&value)?)?;
        keep(&path)
    };
    let config = document(serde_json::json!({
        "architecture": arch, "os": "linux", "config": { "Cmd": ["/bin/sh"], "Env": ["PATH=/bin:/usr/bin"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    }))?;
    let manifest = document(serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": typed(config, "config.v1+json"), "layers": descriptors,
    }))?;
    let mut entry = typed(manifest, "manifest.v1+json");
    entry["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "latest" });
    fs::write(layout.join("index.json"), serde_json::json!({ "schemaVersion": 2, "manifests": [entry] }).to_string())?;
    fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}")?;
    Ok(layout)
}
