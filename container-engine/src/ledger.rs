//! The one ledger of the board's capacity: admits pods, jobs and local containers by priority.
//!
//! Always true:
//! - What is granted never exceeds what is allocatable, save after the board itself has shrunk.
//! - A grant is durable before [`Ledger::admit`] returns, and rebuilt from its record when the agent starts.
//! - Nobody is evicted in here: a refusal names who would have to go, and the caller decides.
//!
//! Elsewhere: limits in the kernel (`cgroup`); which pod is evicted (the node's room).

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use store::state::{Batch, Entity, State, StateError};

use crate::owner::Owner;

/// Amounts of what a board has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Amount {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes.
    pub memory: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes of disk for images' writable parts, logs and volumes.
    pub disk: u64,
}

/// A kind of amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// Processor time.
    Cpu,
    /// Memory.
    Memory,
    /// Processes and threads.
    Pids,
    /// Disk.
    Disk,
}

impl Amount {
    fn parts(self) -> [(Resource, u64); 4] {
        [
            (Resource::Cpu, self.cpu_milli),
            (Resource::Memory, self.memory),
            (Resource::Pids, self.pids),
            (Resource::Disk, self.disk),
        ]
    }

    fn with(self, other: Self, op: fn(u64, u64) -> u64) -> Self {
        Self {
            cpu_milli: op(self.cpu_milli, other.cpu_milli),
            memory: op(self.memory, other.memory),
            pids: op(self.pids, other.pids),
            disk: op(self.disk, other.disk),
        }
    }

    /// The sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// What is left; nothing is less than 0.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        self.with(other, u64::saturating_sub)
    }

    /// Whether `self` is no more than `other` in every respect. What is not asked for (0) always fits, also on a board
    /// that is over its capacity.
    fn fits(self, other: Self) -> bool {
        self.parts().iter().zip(other.parts()).all(|((_, need), (_, free))| *need == 0 || *need <= free)
    }

    /// What this board has: its cores, its memory, its process ids and the disk that holds `data_dir`.
    pub fn of_board(data_dir: &Path) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let disk = rustix::fs::statvfs(data_dir).map_or(0, |fs| fs.f_blocks.saturating_mul(fs.f_frsize));
        let pids = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|text| text.trim().parse().ok());
        let memory = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total_memory(&text));
        Self { cpu_milli: cores as u64 * 1000, memory: memory.unwrap_or(u64::MAX), pids: pids.unwrap_or(32_768), disk }
    }
}

/// `MemTotal` of `/proc/meminfo`, bytes.
fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Who holds a grant: a pod or job as a whole (empty part), or one container of an owner that has no whole grant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// The owner.
    pub owner: Owner,
    /// Empty, or a container's id.
    pub part: String,
}

impl Holder {
    /// An owner as a whole.
    pub fn whole(owner: Owner) -> Self {
        Self { owner, part: String::new() }
    }

    /// One container.
    pub fn container(owner: Owner, id: &str) -> Self {
        Self { owner, part: id.to_owned() }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.part.is_empty() { self.owner.fmt(f) } else { write!(f, "{}:{}", self.owner, self.part) }
    }
}

/// What somebody holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Who.
    pub holder: Holder,
    /// Higher stays longer.
    pub priority: i32,
    /// How much.
    pub amount: Amount,
    /// When it was first granted, nanoseconds since 1970 UTC: of equals the younger goes first.
    pub since_ns: i64,
}

impl Entity for Grant {
    const TREE: &'static str = "engine.grants";
    const VERSION: u16 = 1;
}

/// What is short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortage {
    /// Of what.
    pub resource: Resource,
    /// Asked for.
    pub need: u64,
    /// Free.
    pub free: u64,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.resource {
            Resource::Cpu => ("m", "cpu"),
            Resource::Memory => (" bytes", "memory"),
            Resource::Pids => ("", "pids"),
            Resource::Disk => (" bytes", "disk"),
        };
        write!(f, "{name} (needs {}{unit}, {}{unit} free)", self.need, self.free)
    }
}

/// Why something was not admitted.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    /// The board is too full.
    #[error("{holder} does not fit on this board: short of {}{}", list(short), hint(would_go, *ever))]
    Refused {
        /// Who asked.
        holder: Holder,
        /// What is short.
        short: Vec<Shortage>,
        /// Holders of lower priority whose end would make room, the first to go first; empty where that is not enough.
        would_go: Vec<Holder>,
        /// Whether the request would fit on the board with nobody else on it.
        ever: bool,
    },
    /// The record could not be written.
    #[error("cannot record what {holder} was granted")]
    State {
        /// Who asked.
        holder: Holder,
        /// Why.
        source: StateError,
    },
}

impl AdmitError {
    /// Whether the same call, unchanged, may succeed later.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Refused { ever: false, .. })
    }
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

fn hint(would_go: &[Holder], ever: bool) -> String {
    match (would_go.is_empty(), ever) {
        (false, _) => format!("; it would fit without {}, of lower priority", list(would_go)),
        (true, true) => "; wait until something ends, or raise its priority".to_owned(),
        (true, false) => "; that is more than the whole board has: ask for less".to_owned(),
    }
}

/// What the decision is.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Granted,
    Refused { short: Vec<Shortage>, would_go: Vec<Holder>, ever: bool },
}

/// Decides; does nothing. An own former grant is given back first, so that asking again is free.
fn decide(allocatable: Amount, grants: &[Grant], holder: &Holder, priority: i32, need: Amount) -> Decision {
    let others: Vec<&Grant> = grants.iter().filter(|grant| grant.holder != *holder).collect();
    let held = others.iter().fold(Amount::default(), |sum, grant| sum.plus(grant.amount));
    let free = allocatable.minus(held);
    if need.fits(free) {
        return Decision::Granted;
    }
    let short = need.parts().into_iter().zip(free.parts()).filter(|((_, need), (_, free))| need > free);
    let short = short.map(|((resource, need), (_, free))| Shortage { resource, need, free });
    let would_go = victims(allocatable, &others, priority, need).unwrap_or_default();
    Decision::Refused { short: short.collect(), would_go, ever: need.fits(allocatable) }
}

/// The fewest and least important that have to go: all of lower priority are taken away, and then, the most important
/// first and of equals the oldest, each one that still fits comes back.
fn victims(allocatable: Amount, others: &[&Grant], priority: i32, need: Amount) -> Option<Vec<Holder>> {
    let (mut lower, kept): (Vec<_>, Vec<_>) = others.iter().partition(|grant| grant.priority < priority);
    let mut held = kept.iter().fold(need, |sum, grant: &&&Grant| sum.plus(grant.amount));
    // Only what the newcomer asks for counts: a board that is over its capacity elsewhere is not its affair.
    let over = |held: Amount| {
        need.parts().iter().zip(held.parts()).zip(allocatable.parts()).any(|(((_, n), (_, h)), (_, a))| *n > 0 && h > a)
    };
    if over(held) {
        return None;
    }
    lower.sort_by_key(|grant| (std::cmp::Reverse(grant.priority), grant.since_ns));
    let mut gone = Vec::new();
    for grant in lower {
        let with = held.plus(grant.amount);
        if over(with) {
            gone.push(grant.holder.clone());
        } else {
            held = with;
        }
    }
    gone.reverse(); // The least important goes first.
    Some(gone)
}

/// The ledger as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// What the board has.
    pub capacity: Amount,
    /// What is kept back for the system and the agent.
    pub reserved: Amount,
    /// What is granted.
    pub granted: Amount,
    /// Who holds what.
    pub grants: Vec<Grant>,
}

impl Snapshot {
    /// What may be granted in all.
    pub fn allocatable(&self) -> Amount {
        self.capacity.minus(self.reserved)
    }
}

/// The ledger; cheap to clone.
#[derive(Clone)]
pub struct Ledger(Arc<Inner>);

struct Inner {
    capacity: Amount,
    reserved: Amount,
    state: State,
    grants: Mutex<BTreeMap<Holder, Grant>>,
}

impl Ledger {
    /// Rebuilds the ledger from its records. Records that cannot be read are passed over, and logged.
    pub fn open(state: State, capacity: Amount, reserved: Amount) -> Self {
        let mut grants = BTreeMap::new();
        for item in state.scan::<Grant>("") {
            match item {
                Ok((_, grant)) => drop(grants.insert(grant.holder.clone(), grant)),
                Err(error) => tracing::warn!(%error, "a grant of the capacity ledger cannot be read and is forgotten"),
            }
        }
        Self(Arc::new(Inner { capacity, reserved, state, grants: Mutex::new(grants) }))
    }

    /// Grants `amount`, or says what is short and who of lower priority would have to go. Asking again replaces the
    /// former grant, also by a smaller one. Cancelled: granted, but perhaps not durably; `release` undoes it.
    pub async fn admit(&self, holder: Holder, priority: i32, amount: Amount) -> Result<(), AdmitError> {
        let (grant, former) = {
            let mut grants = self.grants();
            let all: Vec<Grant> = grants.values().cloned().collect();
            match decide(self.allocatable(), &all, &holder, priority, amount) {
                Decision::Granted => {}
                Decision::Refused { short, would_go, ever } => {
                    return Err(AdmitError::Refused { holder, short, would_go, ever });
                }
            }
            let since_ns = grants.get(&holder).map_or_else(crate::event::now_ns, |former| former.since_ns);
            let grant = Grant { holder: holder.clone(), priority, amount, since_ns };
            let former = grants.insert(holder.clone(), grant.clone());
            (grant, former)
        };
        if former.as_ref() == Some(&grant) {
            return Ok(());
        }
        let mut batch = Batch::default();
        let written = match batch.put(&holder.to_string(), &grant) {
            Ok(_) => self.0.state.commit(batch).await,
            Err(error) => Err(error),
        };
        if let Err(source) = written {
            let mut grants = self.grants();
            match former {
                Some(former) => drop(grants.insert(holder.clone(), former)),
                None => drop(grants.remove(&holder)),
            }
            return Err(AdmitError::State { holder, source });
        }
        Ok(())
    }

    /// Gives back what `holder` has; nothing where it has nothing.
    pub async fn release(&self, holder: &Holder) -> Result<(), StateError> {
        if self.grants().remove(holder).is_none() {
            return Ok(());
        }
        let mut batch = Batch::default();
        batch.delete::<Grant>(&holder.to_string());
        self.0.state.commit(batch).await
    }

    /// Whether an owner holds a grant as a whole, so that its containers need none of their own.
    pub fn covers(&self, owner: &Owner) -> bool {
        self.grants().contains_key(&Holder::whole(owner.clone()))
    }

    /// The ledger as it is.
    pub fn snapshot(&self) -> Snapshot {
        let grants: Vec<Grant> = self.grants().values().cloned().collect();
        let granted = grants.iter().fold(Amount::default(), |sum, grant| sum.plus(grant.amount));
        Snapshot { capacity: self.0.capacity, reserved: self.0.reserved, granted, grants }
    }

    fn allocatable(&self) -> Amount {
        self.0.capacity.minus(self.0.reserved)
    }

    fn grants(&self) -> MutexGuard<'_, BTreeMap<Holder, Grant>> {
        // Every critical section is one insertion or removal.
        self.0.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(cpu_milli: u64, memory: u64) -> Amount {
        Amount { cpu_milli, memory, pids: 0, disk: 0 }
    }

    fn pod(name: &str) -> Holder {
        Holder::whole(Owner::Pod(name.into()))
    }

    fn grant(name: &str, priority: i32, amount: Amount, since_ns: i64) -> Grant {
        Grant { holder: pod(name), priority, amount, since_ns }
    }

    #[test]
    fn decisions() {
        let board = amount(4000, 1000);
        let grants = [
            grant("low", 0, amount(1000, 300), 1),
            grant("young", 0, amount(1000, 300), 2),
            grant("high", 9, amount(1000, 300), 3),
        ];
        #[track_caller]
        fn check(
            board: Amount,
            grants: &[Grant],
            who: &str,
            priority: i32,
            need: Amount,
            want: Result<(), (&[&str], bool)>,
        ) {
            let got = match decide(board, grants, &pod(who), priority, need) {
                Decision::Granted => Ok(()),
                Decision::Refused { would_go, ever, short } => {
                    assert!(!short.is_empty(), "a refusal says what is short");
                    Err((would_go.iter().map(std::string::ToString::to_string).collect::<Vec<_>>(), ever))
                }
            };
            let want = want
                .map_err(|(names, ever)| (names.iter().map(|name| format!("pods/{name}")).collect::<Vec<_>>(), ever));
            assert_eq!(got, want, "{who} with priority {priority} asks for {need:?}");
        }
        check(board, &grants, "new", 0, amount(1000, 100), Ok(()));
        check(board, &grants, "new", 0, amount(0, 0), Ok(()));
        // Of equals the younger goes, and no more than needed.
        check(board, &grants, "new", 5, amount(1000, 400), Err((&["young"], true)));
        check(board, &grants, "new", 5, amount(1000, 700), Err((&["young", "low"], true)));
        // Equal priority makes no room.
        check(board, &grants, "new", 0, amount(1000, 400), Err((&[], true)));
        // Even everybody lower is not enough.
        check(board, &grants, "new", 5, amount(1000, 800), Err((&[], true)));
        check(board, &grants, "new", 99, amount(1000, 1000), Err((&["young", "low", "high"], true)));
        // More than there is.
        check(board, &grants, "new", 99, amount(5000, 1), Err((&[], false)));
        // A former grant counts as free for its holder.
        check(board, &grants, "low", 0, amount(1000, 400), Ok(()));
        // A board that has shrunk below what is granted still admits who needs none of what is short.
        check(amount(4000, 500), &grants, "new", 0, amount(500, 0), Ok(()));
        check(amount(4000, 500), &grants, "new", 0, amount(500, 1), Err((&[], true)));
    }

    #[test]
    fn overflowing_requests_are_refused() {
        let decision =
            decide(amount(10, 10), &[grant("a", 0, amount(1, 1), 0)], &pod("b"), 1, amount(u64::MAX, u64::MAX));
        assert!(matches!(decision, Decision::Refused { ever: false, .. }));
    }

    #[tokio::test]
    async fn grants_survive_a_restart_and_are_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let (state, _) = State::open(&dir.path().join("state")).unwrap();
        let ledger = Ledger::open(state.clone(), amount(1000, 100), amount(200, 0));
        ledger.admit(pod("a"), 1, amount(700, 50)).await.unwrap();
        ledger.admit(Holder::container(Owner::Local, "c1"), 0, amount(100, 10)).await.unwrap();
        let refused = ledger.admit(pod("b"), 2, amount(100, 10)).await.unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("cpu (needs 100m, 0m free)") && text.contains("without local:c1"), "{text}");
        assert!(refused.is_transient());

        let again = Ledger::open(state.clone(), amount(1000, 100), amount(200, 0));
        assert_eq!(again.snapshot(), ledger.snapshot());
        assert!(again.covers(&Owner::Pod("a".into())) && !again.covers(&Owner::Local));
        again.release(&pod("a")).await.unwrap();
        again.admit(pod("b"), 2, amount(100, 10)).await.unwrap();
        assert_eq!(again.snapshot().granted, amount(200, 20));
        state.close();
    }

    #[test]
    fn memory_of_the_board() {
        assert_eq!(total_memory("MemTotal:        2048 kB\nMemFree: 1 kB\n"), Some(2048 * 1024));
        assert_eq!(total_memory("MemFree: 1 kB\n"), None);
        assert_eq!(total_memory("MemTotal: x kB"), None);
    }
}
