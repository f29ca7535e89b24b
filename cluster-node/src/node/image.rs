//! Images in the node's status: the scheduler prefers nodes that have those of a pod. Pure.

use std::collections::{BTreeMap, BTreeSet};

use container_engine::{image::Record, owner::Owner};
use k8s_openapi::api::core::v1::ContainerImage;

/// Names of one image.
const MAX_NAMES: usize = 5;
/// Images that the kubelet tells of unless configured otherwise.
pub const MAX_IMAGES: usize = 50;

/// The largest, each with its names: digests first. Pods do not see those of CI jobs, so they are not told of. `records`
/// may name an image several times.
pub fn images(records: &[Record], most: usize) -> Vec<ContainerImage> {
    let mut all: BTreeMap<String, (u64, BTreeSet<String>, BTreeSet<String>)> = BTreeMap::new();
    for record in records.iter().filter(|it| !matches!(it.owner, Owner::Job(_))) {
        let (size, digests, tags) = all.entry(record.config.to_string()).or_default();
        *size = record.size.max(*size);
        digests.extend(record.repositories.iter().map(|it| format!("{it}@{}", record.target)));
        if !record.name.is_empty() && !record.name.contains('@') {
            tags.insert(record.name.clone());
        }
    }
    let mut list: Vec<_> = all.into_values().collect();
    list.retain(|(_, digests, tags)| !digests.is_empty() || !tags.is_empty());
    list.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| (&a.1, &a.2).cmp(&(&b.1, &b.2))));
    list.truncate(most);
    let one = |(size, digests, tags): (u64, BTreeSet<String>, BTreeSet<String>)| ContainerImage {
        names: Some(digests.into_iter().chain(tags).take(MAX_NAMES).collect()),
        size_bytes: i64::try_from(size).ok(),
    };
    list.into_iter().map(one).collect()
}
