//! All containers by id and by name. Names are unique within an owner; ranges of user ids over the whole board.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    ContainerId, CreateError, ResolveError, UserNamespace,
    record::{Entry, Record},
    roots::IdRange,
};
use crate::owner::Owner;

/// Most containers that are kept.
const MAX_CONTAINERS: usize = 4096;
/// Ids of one automatic user namespace.
const RANGE: u32 = 65_536;
/// First id that is given out: above what useradd and systemd give to people and services.
const FIRST: u32 = 8 * RANGE;
/// Ids from here on are the kernel's "nobody" and its like.
const LAST: u32 = 0xfff0_0000;
/// Ids named in an error.
const SHOWN: usize = 4;

#[derive(Default)]
pub(super) struct Book {
    entries: BTreeMap<ContainerId, Arc<Entry>>,
    names: BTreeMap<(Owner, String), ContainerId>,
}

impl Book {
    pub fn get(&self, id: &ContainerId) -> Option<Arc<Entry>> {
        self.entries.get(id).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Entry>> {
        self.entries.values().cloned().collect()
    }

    pub fn ids(&self) -> BTreeSet<String> {
        self.entries.keys().map(ToString::to_string).collect()
    }

    /// Takes a container in, with a range of user ids where it wants one of its own.
    pub fn insert(&mut self, mut record: Record) -> Result<Arc<Entry>, CreateError> {
        if self.entries.len() >= MAX_CONTAINERS {
            return Err(CreateError::TooMany(self.entries.len()));
        }
        let key = (record.owner.clone(), record.name.clone());
        if let Some(holder) = self.names.get(&key) {
            return Err(CreateError::NameTaken { name: record.name, holder: holder.clone() });
        }
        if record.ids.is_none() {
            record.ids = match record.spec.userns {
                UserNamespace::Host => None,
                UserNamespace::Mapped { host, size } => Some(IdRange { host, size }),
                UserNamespace::Auto => {
                    Some(self.range_of_pod(&record.owner).or_else(|| self.free_range()).ok_or(CreateError::NoIds)?)
                }
            };
        }
        let entry = Arc::new(Entry::new(record));
        self.names.insert(key, entry.id.clone());
        self.entries.insert(entry.id.clone(), entry.clone());
        Ok(entry)
    }

    /// The range of a pod's other containers: they share volumes.
    fn range_of_pod(&self, owner: &Owner) -> Option<IdRange> {
        if !matches!(owner, Owner::Pod(_)) {
            return None;
        }
        let range =
            |entry: &Arc<Entry>| entry.with(|record| record.ids.filter(|_| record.spec.userns == UserNamespace::Auto));
        self.entries.values().filter(|entry| entry.owner == *owner).find_map(range)
    }

    /// Takes in what was found on disk, whatever its name: of two that share one, the later keeps its id alone.
    pub fn restore(&mut self, record: Record) -> Arc<Entry> {
        let key = (record.owner.clone(), record.name.clone());
        let entry = Arc::new(Entry::new(record));
        self.names.entry(key).or_insert_with(|| entry.id.clone());
        self.entries.insert(entry.id.clone(), entry.clone());
        entry
    }

    pub fn remove(&mut self, id: &ContainerId) {
        if self.entries.remove(id).is_some() {
            self.names.retain(|_, holder| holder != id);
        }
    }

    /// Gives the container another name; returns the former one.
    pub fn rename(&mut self, entry: &Entry, name: &str) -> Result<String, ContainerId> {
        let key = (entry.owner.clone(), name.to_owned());
        if let Some(holder) = self.names.get(&key)
            && *holder != entry.id
        {
            return Err(holder.clone());
        }
        self.names.retain(|_, holder| *holder != entry.id);
        self.names.insert(key, entry.id.clone());
        Ok(entry.change(|record| std::mem::replace(&mut record.name, name.to_owned())))
    }

    /// By id, name, or beginning of an id; among the owner's containers, or everybody's.
    pub fn resolve(&self, owner: Option<&Owner>, text: &str) -> Result<Arc<Entry>, ResolveError> {
        let mine = |entry: &&Arc<Entry>| owner.is_none_or(|owner| *owner == entry.owner);
        let missing = || ResolveError::NotFound(text.chars().take(128).collect());
        if let Some(entry) = text.parse().ok().and_then(|id| self.entries.get(&id)).filter(mine) {
            return Ok(entry.clone());
        }
        let named = match owner {
            Some(owner) => self.names.get(&(owner.clone(), text.trim_start_matches('/').to_owned())),
            None => self.names.iter().find(|((_, name), _)| name == text.trim_start_matches('/')).map(|(_, id)| id),
        };
        if let Some(entry) = named.and_then(|id| self.entries.get(id)) {
            return Ok(entry.clone());
        }
        if text.is_empty() || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(missing());
        }
        let matches: Vec<&Arc<Entry>> = self
            .entries
            .values()
            .filter(mine)
            .filter(|entry| entry.id.as_str().starts_with(text))
            .take(SHOWN)
            .collect();
        match matches.as_slice() {
            [] => Err(missing()),
            [one] => Ok((*one).clone()),
            several => Err(ResolveError::Ambiguous {
                prefix: text.to_owned(),
                matches: several.iter().map(|entry| entry.id.short().to_owned()).collect(),
            }),
        }
    }

    /// The lowest range that touches nobody's.
    fn free_range(&self) -> Option<IdRange> {
        let taken: Vec<IdRange> = self.entries.values().filter_map(|entry| entry.with(|record| record.ids)).collect();
        let apart = |first: u32, other: &IdRange| {
            u64::from(first) + u64::from(RANGE) <= u64::from(other.host)
                || u64::from(other.host) + u64::from(other.size) <= u64::from(first)
        };
        let ranges = (FIRST..LAST).step_by(RANGE as usize);
        let free = ranges.into_iter().find(|first| taken.iter().all(|other| apart(*first, other)));
        free.map(|host| IdRange { host, size: RANGE })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{ContainerSpec, ImageOf, State, roots::ImageFacts};

    fn record(id: &str, owner: Owner, name: &str, userns: UserNamespace) -> Record {
        let id = format!("{id}{}", "0".repeat(64 - id.len()));
        Record {
            id: id.parse().unwrap(),
            name: name.into(),
            owner: owner.clone(),
            spec: ContainerSpec { owner, userns, ..ContainerSpec::default() },
            image: ImageOf::default(),
            facts: ImageFacts::default(),
            created_ns: 0,
            hostname: "h".into(),
            mounts: Vec::new(),
            ids: None,
            state: State::default(),
        }
    }

    #[test]
    fn names_and_prefixes() {
        let job = Owner::Job("7".into());
        let mut book = Book::default();
        for (id, owner, name) in
            [("abc1", Owner::Local, "web"), ("abc2", Owner::Local, "db"), ("abd3", job.clone(), "web")]
        {
            book.insert(record(id, owner, name, UserNamespace::Host)).unwrap();
        }
        let find = |owner: Option<&Owner>, text: &str| {
            book.resolve(owner, text).map(|entry| entry.id.short()[..4].to_owned()).map_err(|error| error.to_string())
        };
        let local = Some(&Owner::Local);
        assert_eq!(find(local, "web").as_deref(), Ok("abc1"));
        assert_eq!(find(local, "/web").as_deref(), Ok("abc1"));
        assert_eq!(find(Some(&job), "web").as_deref(), Ok("abd3"));
        assert_eq!(find(local, "abc2").as_deref(), Ok("abc2"));
        assert_eq!(find(None, "abd").as_deref(), Ok("abd3"));
        let ambiguous = find(local, "ab").unwrap_err();
        assert!(ambiguous.contains("abc100000000, abc200000000") && !ambiguous.contains("abd3"), "{ambiguous}");
        for wrong in ["", "abe", "nothing", "ABC1", "../x"] {
            assert!(find(local, wrong).is_err(), "{wrong}");
        }
        // Another owner's container is not there.
        assert!(find(Some(&job), "abc1").is_err());
        assert!(find(Some(&job), &format!("abc1{}", "0".repeat(60))).is_err());
    }

    #[test]
    fn a_name_is_given_once_and_moves() {
        let mut book = Book::default();
        let one = book.insert(record("a", Owner::Local, "web", UserNamespace::Host)).unwrap();
        let taken = book.insert(record("b", Owner::Local, "web", UserNamespace::Host));
        assert!(matches!(taken, Err(CreateError::NameTaken { holder, .. }) if holder == one.id));
        assert_eq!(book.rename(&one, "www").as_deref(), Ok("web"));
        assert_eq!(book.rename(&one, "www").as_deref(), Ok("www"));
        let two = book.insert(record("b", Owner::Local, "web", UserNamespace::Host)).unwrap();
        assert_eq!(book.rename(&two, "www"), Err(one.id.clone()));
        book.remove(&one.id);
        assert_eq!(book.rename(&two, "www").as_deref(), Ok("web"));
    }

    #[test]
    fn ranges_of_user_ids_do_not_touch() {
        let mut book = Book::default();
        let odd = UserNamespace::Mapped { host: FIRST + 100, size: 10 };
        book.insert(record("1", Owner::Local, "n1", odd)).unwrap();
        for n in 2..6 {
            book.insert(record(&n.to_string(), Owner::Local, &format!("n{n}"), UserNamespace::Auto)).unwrap();
        }
        let mut ranges: Vec<IdRange> = book.all().iter().filter_map(|entry| entry.record().ids).collect();
        ranges.sort();
        for pair in ranges.windows(2) {
            assert!(pair[0].host + pair[0].size <= pair[1].host, "{ranges:?}");
        }
        assert_eq!(ranges.len(), 5);
        // What is given back is given out again.
        let gone = book.resolve(None, "n3").unwrap();
        let range = gone.record().ids;
        book.remove(&gone.id);
        assert_eq!(book.insert(record("9", Owner::Local, "n9", UserNamespace::Auto)).unwrap().record().ids, range);
    }

    #[test]
    fn containers_of_a_pod_have_one_range() {
        let mut book = Book::default();
        let pod = |uid: &str| Owner::Pod(uid.to_owned());
        let mut ids = |id: &str, owner: Owner, userns: UserNamespace| {
            book.insert(record(id, owner, &format!("n{id}"), userns)).unwrap().record().ids
        };
        let one = ids("1", pod("a"), UserNamespace::Auto);
        assert!(one.is_some());
        assert_eq!(ids("2", pod("a"), UserNamespace::Host), None);
        assert_eq!(ids("3", pod("a"), UserNamespace::Auto), one);
        assert_ne!(ids("4", pod("b"), UserNamespace::Auto), one);
        let locals = [ids("5", Owner::Local, UserNamespace::Auto), ids("6", Owner::Local, UserNamespace::Auto)];
        assert!(locals[0] != locals[1] && !locals.contains(&one));
    }
}
