//! Typed records on sled.
use std::{path::{Path, PathBuf}, sync::Arc};
use serde::{Serialize, de::DeserializeOwned};

/// A type that can be stored. JSON inside, with the version in front.
pub trait Entity: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Name of its tree; never changed once shipped.
    const TREE: &'static str;
    /// Grows with every change of shape that old JSON does not fit.
    const VERSION: u16;
    /// Reads a value written by an older `version`.
    fn migrate(version: u16, _old: serde_json::Value) -> Result<Self, String> { Err(format!("no way from version {version}")) }
}

/// What opening found and mended.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Recovery { /// Where a database that would not open was moved to.
    pub set_aside: Option<PathBuf> , /// Why it would not open.
    pub problem: Option<String> }

/// Why the state did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError { /// Reading or writing failed.
    #[error("cannot open the state in {path}")] Io { /// Which.
        path: PathBuf, /// Why.
        source: std::io::Error } }

/// Why an operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StateError { /// sled or the disk failed.
    #[error("the state database failed: {0}")] Db(String), /// A value that cannot be read.
    #[error("{tree}/{key}: {problem}")] Value { /// Tree.
        tree: &'static str, /// Key.
        key: String, /// Why.
        problem: String }, /// The state was closed.
    #[error("the state database is closed")] Closed }

/// A handle; cheap to clone.
#[derive(Clone)]
pub struct State(Arc<()>);
impl State {
    /// Opens or creates. Blocking.
    pub fn open(_dir: &Path) -> Result<(Self, Recovery), OpenError> { todo!() }
    /// Reads one value.
    pub fn get<E: Entity>(&self, _key: &str) -> Result<Option<E>, StateError> { todo!() }
    /// All values whose key starts with `prefix`, in key order; a value that cannot be read is an `Err` item and the rest still comes.
    pub fn scan<E: Entity>(&self, _prefix: &str) -> impl Iterator<Item = Result<(String, E), StateError>> + use<E> { std::iter::empty() }
    /// Applies the batch, all or nothing; returns when durable.
    pub async fn commit(&self, _batch: Batch) -> Result<(), StateError> { todo!() }
    /// Changes of one tree under `prefix`, from now on: bounded; a slow watcher gets `Lagged` and scans again.
    pub fn watch<E: Entity>(&self, _prefix: &str) -> Watch<E> { todo!() }
    /// Bytes on disk.
    pub fn size_on_disk(&self) -> u64 { todo!() }
    /// Ends the committer thread. Blocking.
    pub fn close(&self) { todo!() }
}
/// Writes that become durable together.
#[derive(Default)]
pub struct Batch {}
impl Batch {
    /// Sets.
    pub fn put<E: Entity>(&mut self, _key: &str, _value: &E) -> Result<&mut Self, StateError> { todo!() }
    /// Removes.
    pub fn delete<E: Entity>(&mut self, _key: &str) -> &mut Self { todo!() }
}
/// A stream of changes.
pub struct Watch<E>(std::marker::PhantomData<E>);
/// One change.
#[derive(Debug)]
pub enum Change<E> { /// Set.
    Put(String, E), /// Removed.
    Deleted(String), /// Some were missed: scan again.
    Lagged }
impl<E: Entity> Watch<E> { /// The next change; `None` when the state is closed.
    pub async fn next(&mut self) -> Option<Change<E>> { todo!() } }
