//! Network configuration lists, as CNI's specification has them (section 1), and which of them counts.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::CniError;

/// Versions that are spoken, newest first.
pub const VERSIONS: [&str; 5] = ["1.1.0", "1.0.0", "0.4.0", "0.3.1", "0.3.0"];
/// Largest file.
const MAX_BYTES: u64 = 1 << 20;
/// Most plugins in a list.
const MAX_PLUGINS: usize = 32;

/// A configuration list.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfList {
    /// Name of the network.
    pub name: String,
    /// Versions that may be used, the preferred first.
    pub versions: Vec<&'static str>,
    /// CHECK is not wanted.
    pub disable_check: bool,
    /// GC is not wanted.
    pub disable_gc: bool,
    /// Configuration of each plugin, in order of ADD.
    pub plugins: Vec<Map<String, Value>>,
}

/// Reads a list, or where it is not `list` a single plugin's configuration, which makes a list of one.
pub fn parse(bytes: &[u8], list: bool) -> Result<ConfList, String> {
    let value: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let name = text("name").filter(|name| is_name(name)).ok_or("it has no valid \"name\"")?.to_owned();
    let mut asked: Vec<&str> =
        value.get("cniVersions").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    asked.extend(text("cniVersion"));
    if asked.is_empty() {
        return Err("it has no \"cniVersion\"".into());
    }
    let versions: Vec<_> = VERSIONS.into_iter().filter(|version| asked.contains(version)).collect();
    if versions.is_empty() {
        return Err(format!("its cniVersion is {}, and 0.3.0 to 1.1.0 are spoken here", asked.join(", ")));
    }
    let plugins = if list {
        let plugins = value.get("plugins").and_then(Value::as_array).ok_or("it has no \"plugins\"")?;
        plugins
            .iter()
            .map(|plugin| plugin.as_object().cloned().ok_or("a plugin is no object"))
            .collect::<Result<Vec<_>, _>>()?
    } else {
        vec![value.clone()]
    };
    if plugins.is_empty() || plugins.len() > MAX_PLUGINS {
        return Err(format!("it has {} plugins, and 1 to {MAX_PLUGINS} make sense", plugins.len()));
    }
    if !plugins.iter().all(|plugin| plugin.get("type").and_then(Value::as_str).is_some_and(is_program)) {
        return Err("a plugin has no valid \"type\"".into());
    }
    let flag = |key: &str| value.get(key).is_some_and(|flag| flag == &Value::Bool(true) || flag == "true");
    Ok(ConfList { disable_check: flag("disableCheck"), disable_gc: flag("disableGC"), name, versions, plugins })
}

/// The first valid file of `dir` by name, as kubelets and containerd choose. Read for each attachment, so a file that
/// appears or changes counts at once.
pub fn load(dir: &Path) -> Result<(PathBuf, Vec<u8>, ConfList), CniError> {
    let not_configured = |problem| CniError::NotConfigured { dir: dir.display().to_string(), problem };
    let entries = std::fs::read_dir(dir).map_err(|error| not_configured(Some(error.to_string())))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| ["conflist", "conf", "json"].iter().any(|end| path.extension().is_some_and(|it| it == *end)));
    files.sort();
    let mut problem = None;
    for path in files {
        let read = board::durable::read(&path, MAX_BYTES).map_err(|error| error.to_string());
        let list = path.extension().is_some_and(|end| end == "conflist");
        match read.and_then(|bytes| parse(&bytes, list).map(|conf| (bytes, conf))) {
            Ok((bytes, conf)) => return Ok((path, bytes, conf)),
            Err(why) => drop(problem.get_or_insert_with(|| format!("{}: {why}", path.display()))),
        }
    }
    Err(not_configured(problem))
}

fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    name.len() <= 256 && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && name.bytes().all(plain)
}

/// A program in one of the folders, and nowhere else.
fn is_program(name: &str) -> bool {
    !name.is_empty() && name.len() <= 128 && !name.contains('/') && name != "." && name != ".." && !name.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_or_say_why_not() {
        #[track_caller]
        fn check(text: &str, list: bool, want: Result<(&str, usize), &str>) {
            let got = parse(text.as_bytes(), list);
            match (got, want) {
                (Ok(conf), Ok((version, plugins))) => {
                    assert_eq!((conf.versions[0], conf.plugins.len()), (version, plugins), "{text}");
                }
                (Err(why), Err(part)) => assert!(why.contains(part), "{text}: {why}"),
                (got, want) => panic!("{text}: {got:?}, not {want:?}"),
            }
        }
        let plugin = r#"{"type":"bridge"}"#;
        check(&format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{plugin},{plugin}]}}"#), true, Ok(("1.0.0", 2)));
        check(
            &format!(r#"{{"cniVersion":"0.4.0","cniVersions":["0.4.0","1.1.0"],"name":"n","plugins":[{plugin}]}}"#),
            true,
            Ok(("1.1.0", 1)),
        );
        check(r#"{"cniVersion":"0.3.1","name":"n","type":"ptp"}"#, false, Ok(("0.3.1", 1)));
        check(r#"{"cniVersion":"9.0.0","name":"n","type":"ptp"}"#, false, Err("9.0.0"));
        check(r#"{"name":"n","type":"ptp"}"#, false, Err("cniVersion"));
        check(r#"{"cniVersion":"1.0.0","name":"../n","type":"ptp"}"#, false, Err("name"));
        check(r#"{"cniVersion":"1.0.0","name":"n","type":"../../bin/sh"}"#, false, Err("type"));
        check(r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, true, Err("0 plugins"));
        check(r#"{"cniVersion":"1.0.0","name":"n","plugins":[1]}"#, true, Err("no object"));
        check("{", true, Err("EOF"));
    }

    #[test]
    fn the_first_valid_file_counts_and_a_new_one_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let error = load(dir.path()).unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("no valid CNI configuration"));
        std::fs::write(dir.path().join("10-broken.conflist"), "{").unwrap();
        assert!(load(dir.path()).unwrap_err().to_string().contains("10-broken"));
        std::fs::write(dir.path().join("20-good.conf"), r#"{"cniVersion":"1.0.0","name":"good","type":"ptp"}"#)
            .unwrap();
        std::fs::write(dir.path().join("00-notes.txt"), "{}").unwrap();
        assert_eq!(load(dir.path()).unwrap().2.name, "good");
        std::fs::write(dir.path().join("05-first.conf"), r#"{"cniVersion":"1.0.0","name":"first","type":"ptp"}"#)
            .unwrap();
        assert_eq!(load(dir.path()).unwrap().2.name, "first");
    }
}
