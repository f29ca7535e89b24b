//! Which devices of a resource a container gets. Decides; does nothing.

use std::collections::BTreeSet;

/// Not enough.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("requested number of devices unavailable for {resource}. Requested: {wanted}, Available: {free}")]
pub struct Short {
    /// Of what.
    pub resource: String,
    /// How many.
    pub wanted: usize,
    /// How many there are.
    pub free: usize,
}

/// Healthy devices that nobody has.
pub fn free(healthy: &BTreeSet<String>, taken: &BTreeSet<String>) -> BTreeSet<String> {
    healthy.difference(taken).cloned().collect()
}

/// `wanted` devices out of `free`: those that the plugin prefers as far as they are free, then in order.
pub fn choose(
    resource: &str,
    free: &BTreeSet<String>,
    preferred: &[String],
    wanted: usize,
) -> Result<BTreeSet<String>, Short> {
    if free.len() < wanted {
        return Err(Short { resource: resource.to_owned(), wanted, free: free.len() });
    }
    let mut chosen = BTreeSet::new();
    for id in preferred.iter().filter(|id| free.contains(*id)).chain(free) {
        if chosen.len() == wanted {
            break;
        }
        chosen.insert(id.clone());
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn choices() {
        #[track_caller]
        fn check(ids: &[&str], preferred: &[&str], wanted: usize, want: Option<&[&str]>) {
            let preferred: Vec<_> = preferred.iter().map(|id| (*id).to_owned()).collect();
            assert_eq!(choose("r", &set(ids), &preferred, wanted).ok(), want.map(set));
        }
        check(&["a", "b", "c"], &[], 2, Some(&["a", "b"]));
        check(&["a", "b", "c"], &["c"], 2, Some(&["a", "c"]));
        check(&["a", "b", "c"], &["x", "c", "c", "b"], 2, Some(&["b", "c"]));
        check(&["a"], &[], 0, Some(&[]));
        check(&["a"], &[], 2, None);
    }

    #[test]
    fn what_is_free() {
        assert_eq!(free(&set(&["a", "b"]), &set(&["b", "gone"])), set(&["a"]));
    }
}
