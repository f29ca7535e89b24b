//! A container's record beside its files, for when the database is lost: `container.json` in `DATA/containers/ID` and,
//! while it runs, in `RUN/containers/ID`.
//!
//! Always true:
//! - The database decides where it has the record. A copy counts where it was made beside another database than the
//!   present one, or where the record there cannot be read; beside the present one, a copy without a record is what a
//!   removal was about to take away.
//! - The state is not in it: that follows from the shim and its exit record.

use std::{io, path::Path};

use serde::{Deserialize, Serialize};
use store::state::Entity;

use super::{State, record::Record, types::Places};

/// Its name in both folders.
const NAME: &str = "container.json";
/// Largest one: a system call filter of somebody's own may be in it.
const MAX: u64 = 4 << 20;

/// Which database it is: a number made with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Database {
    pub number: String,
}

impl Entity for Database {
    const TREE: &'static str = "engine.database";
    const VERSION: u16 = 1;
}

/// A copy as it was read.
#[derive(Debug)]
pub(super) struct Kept {
    /// Number of the database that it was made beside.
    pub database: String,
    pub record: Record,
}

#[derive(Serialize, Deserialize)]
struct File<R> {
    version: u16,
    database: String,
    record: R,
}

/// Writes the copy into one of the container's folders, whole or not at all. Not synced: what a power cut takes with it,
/// it takes from containers that do not run any more, and of those the database knows.
pub(super) fn write(folder: &Path, database: &str, record: &Record) -> io::Result<()> {
    let record = Record { state: State::default(), ..record.clone() };
    let file = File { version: Record::VERSION, database: database.to_owned(), record };
    let beside = folder.join("container.json.new");
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut out = options.write(true).create(true).truncate(true).open(&beside)?;
    io::Write::write_all(&mut out, &serde_json::to_vec(&file)?)?;
    std::fs::rename(beside, folder.join(NAME))
}

/// Reads it where there is one that can be read.
pub(super) fn read(places: &Places) -> Option<Kept> {
    [&places.data, &places.run].into_iter().find_map(|folder| {
        let path = folder.join(NAME);
        let bytes = match board::durable::read(&path, MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            other => other,
        };
        match bytes.and_then(|bytes| parse(&bytes)) {
            Ok(kept) => Some(kept),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the copy of a container's record cannot be read");
                None
            }
        }
    })
}

fn parse(bytes: &[u8]) -> io::Result<Kept> {
    let File { version, database, record } = serde_json::from_slice::<File<serde_json::Value>>(bytes)?;
    let record = if version == Record::VERSION {
        serde_json::from_value(record)?
    } else {
        Record::migrate(version, record).map_err(io::Error::other)?
    };
    Ok(Kept { database, record })
}

#[cfg(test)]
mod tests {
    use super::{super::record::tests::record, *};
    use crate::container::Status;

    #[test]
    fn a_copy_is_read_back_without_its_state() {
        let dir = tempfile::tempdir().unwrap();
        let mut original = record();
        original.state.status = Status::Running;
        let places = Places::new(&dir.path().join("data"), &dir.path().join("run"), &original.id);
        assert!(read(&places).is_none());
        for folder in [&places.data, &places.run] {
            std::fs::create_dir_all(folder).unwrap();
        }
        write(&places.data, "n1", &original).unwrap();
        write(&places.run, "n2", &original).unwrap();
        let kept = read(&places).unwrap();
        assert_eq!(kept.database, "n1");
        assert_eq!(kept.record, Record { state: State::default(), ..original.clone() });
        // A power cut may leave nothing in it.
        for damage in
            ["", "{", r#"{"version":1,"database":"n1","record":{}}"#, r#"{"version":9,"database":"n1","record":{}}"#]
        {
            std::fs::write(places.data.join(NAME), damage).unwrap();
            assert_eq!(read(&places).unwrap().database, "n2", "{damage}");
        }
        std::fs::remove_file(places.run.join(NAME)).unwrap();
        assert!(read(&places).is_none());
    }
}
