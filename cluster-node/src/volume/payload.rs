//! Files that a volume is to hold, made of config maps and secrets; pure.
//!
//! Elsewhere: writing them (`atomic`), the downward API's (`downward`), tokens (`collect`).

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, KeyToPath, Secret},
};

use super::{Problem, place};

/// Most bytes of one volume's files together.
pub const MAX_BYTES: usize = 32 << 20;
/// Most files of one volume.
pub const MAX_FILES: usize = 10_000;

/// One file.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// What is in it.
    pub data: Vec<u8>,
    /// Permissions.
    pub mode: u32,
    /// Who owns it, where it is not root.
    pub owner: Option<u32>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // It may be a secret.
        write!(f, "File({} bytes, {:o}, {:?})", self.data.len(), self.mode, self.owner)
    }
}

/// Files by their path in the volume, of which each has been checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Payload {
    files: BTreeMap<String, File>,
    bytes: usize,
}

impl Payload {
    /// Adds a file; a later one at the same path replaces it.
    pub fn add(&mut self, path: &str, file: File) -> Result<(), Problem> {
        let parts = place::inside(path)?;
        let first = parts.first().ok_or_else(|| Problem::Invalid("invalid path: must not be empty".to_owned()))?;
        // Those names are the writer's own.
        if first.starts_with("..") {
            return Err(Problem::Invalid(format!("invalid path: must not start with '..': {path}")));
        }
        let length = file.data.len();
        let before = self.files.insert(parts.join("/"), file).map_or(0, |it| it.data.len());
        self.bytes = self.bytes.saturating_sub(before).saturating_add(length);
        if self.bytes > MAX_BYTES || self.files.len() > MAX_FILES {
            let message = format!("its files are more than {MAX_FILES}, or larger than {MAX_BYTES} bytes together");
            return Err(Problem::Invalid(message));
        }
        Ok(())
    }

    /// Adds all of another.
    pub fn extend(&mut self, other: Self) -> Result<(), Problem> {
        other.files.into_iter().try_for_each(|(path, file)| self.add(&path, file))
    }

    /// The files, by path.
    pub fn files(&self) -> &BTreeMap<String, File> {
        &self.files
    }

    /// Refuses a path that is a file and a folder at once, such as `a` and `a/b`.
    pub fn check(&self) -> Result<(), Problem> {
        for path in self.files.keys() {
            for (at, _) in path.match_indices('/') {
                if self.files.contains_key(&path[..at]) {
                    let message = format!("conflicting paths: {:?} is a file and a folder", &path[..at]);
                    return Err(Problem::Invalid(message));
                }
            }
        }
        Ok(())
    }
}

/// Files of a config map: all keys, or the items'.
pub fn of_config_map(object: &ConfigMap, items: &[KeyToPath], mode: u32, optional: bool) -> Result<Payload, Problem> {
    let text = object.data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_bytes()));
    let binary = object.binary_data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice()));
    // Text before binary, where a key is in both.
    let all: BTreeMap<&str, &[u8]> = binary.chain(text).collect();
    of_keys(&all, items, mode, optional, "configmap references non-existent config key")
}

/// Files of a secret.
pub fn of_secret(object: &Secret, items: &[KeyToPath], mode: u32, optional: bool) -> Result<Payload, Problem> {
    let keys = object.data.iter().flatten().map(|(key, ByteString(value))| (key.as_str(), value.as_slice()));
    of_keys(&keys.collect(), items, mode, optional, "references non-existent secret key")
}

fn of_keys(
    keys: &BTreeMap<&str, &[u8]>,
    items: &[KeyToPath],
    mode: u32,
    optional: bool,
    missing: &str,
) -> Result<Payload, Problem> {
    let mut payload = Payload::default();
    if items.is_empty() {
        for (key, data) in keys {
            payload.add(key, File { data: data.to_vec(), mode, owner: None })?;
        }
        return Ok(payload);
    }
    for item in items {
        match keys.get(item.key.as_str()) {
            Some(data) => {
                let mode = item.mode.map_or(mode, permissions);
                payload.add(&item.path, File { data: data.to_vec(), mode, owner: None })?;
            }
            None if optional => {}
            None => return Err(Problem::Missing(format!("{missing}: {}", item.key))),
        }
    }
    Ok(payload)
}

/// The bits of a mode that are permissions.
pub fn permissions(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0) & 0o777
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shape(payload: &Payload) -> Vec<(String, String, u32)> {
        let text = |file: &File| String::from_utf8_lossy(&file.data).into_owned();
        payload.files().iter().map(|(path, file)| (path.clone(), text(file), file.mode)).collect()
    }

    #[track_caller]
    fn check(items: serde_json::Value, optional: bool, want: Result<&[(&str, &str, u32)], &str>) {
        let object: ConfigMap = serde_json::from_value(json!({
            "data": { "a": "text a", "both": "text" }, "binaryData": { "b": "YmluYXJ5", "both": "YmluYXJ5" } }))
        .unwrap();
        let items: Vec<KeyToPath> = serde_json::from_value(items).unwrap();
        match (of_config_map(&object, &items, 0o644, optional), want) {
            (Ok(payload), Ok(want)) => {
                let want: Vec<_> = want.iter().map(|it| (it.0.to_owned(), it.1.to_owned(), it.2)).collect();
                assert_eq!(shape(&payload), want);
            }
            (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{error}"),
            (got, want) => panic!("{got:?} is not {want:?}"),
        }
    }

    #[test]
    fn keys_and_items() {
        check(json!([]), false, Ok(&[("a", "text a", 0o644), ("b", "binary", 0o644), ("both", "text", 0o644)]));
        check(json!([{ "key": "a", "path": "x/./y", "mode": 0o7400 }]), false, Ok(&[("x/y", "text a", 0o400)]));
        check(
            json!([{ "key": "a", "path": "x" }, { "key": "b", "path": "z/b" }]),
            false,
            Ok(&[("x", "text a", 0o644), ("z/b", "binary", 0o644)]),
        );
        check(json!([{ "key": "no", "path": "x" }]), false, Err("non-existent config key: no"));
        check(json!([{ "key": "no", "path": "x" }]), true, Ok(&[]));
        for path in ["../x", "/x", "", ".", "..data", "..2020", "a/../../b", &"n".repeat(300)] {
            check(json!([{ "key": "a", "path": path }]), true, Err(""));
        }
    }

    #[test]
    fn a_file_is_no_folder() {
        let file = || File { data: vec![], mode: 0o644, owner: None };
        let mut payload = Payload::default();
        payload.add("a/b", file()).unwrap();
        payload.add("a-b", file()).unwrap();
        payload.check().unwrap();
        payload.add("a", file()).unwrap();
        payload.check().unwrap_err();
    }

    #[test]
    fn sizes_are_bounded() {
        let file = |length| File { data: vec![0; length], mode: 0o644, owner: None };
        let mut payload = Payload::default();
        payload.add("a", file(MAX_BYTES)).unwrap();
        payload.add("a", file(MAX_BYTES)).unwrap(); // Replaced, not added.
        payload.add("b", file(1)).unwrap_err();
        let mut payload = Payload::default();
        let added = (0..=MAX_FILES).map(|n| payload.add(&n.to_string(), file(0)));
        assert_eq!(added.filter(Result::is_err).count(), 1);
    }
}
