//! Garbage collection: which images and blobs go, and when.
//!
//! `plan` decides and does nothing. Order: blobs and layers that nothing names; compressed blobs of images whose layers lie
//! unpacked, since they can be fetched again; nameless images; named ones, longest unused first. Never an image that a
//! container or a lease holds, nor what a running pull has pinned.

use std::{collections::BTreeSet, panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{Images, Record, RecordError, seam::Failure};
use crate::{
    content::{ContentError, Digest},
    event::Action,
    lease::{LeaseError, Resource},
};

/// When collection begins and how far it goes, in percent of what images may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Water {
    /// Above it, images go.
    pub high: u8,
    /// Down to it.
    pub low: u8,
    /// Seconds that an image stays at least after its last use.
    pub min_age_s: u64,
}

impl Default for Water {
    /// The kubelet's.
    fn default() -> Self {
        Self { high: 85, low: 80, min_age_s: 120 }
    }
}

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcReport {
    /// Names (or ids) of images that went.
    pub images: Vec<String>,
    /// Blobs that went.
    pub blobs: usize,
    /// Unpacked layers that went.
    pub layers: usize,
    /// Bytes that are free now.
    pub freed: u64,
}

/// Why a collection stopped.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// A blob.
    #[error("garbage collection stopped at a blob: {0}")]
    Content(#[from] ContentError),
    /// A layer.
    #[error("garbage collection stopped at a layer: {0}")]
    Layers(Failure),
    /// A record.
    #[error("garbage collection stopped at a name: {0}")]
    Record(#[from] RecordError),
    /// A lease.
    #[error("garbage collection stopped at a lease: {0}")]
    Lease(#[from] LeaseError),
}

impl GcError {
    /// For the control socket.
    pub fn code(&self) -> &'static str {
        "internal"
    }
}

/// What is known before deciding.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scene {
    pub records: Vec<Record>,
    /// Blobs and their bytes.
    pub blobs: Vec<(Digest, u64)>,
    /// Unpacked layers and their bytes.
    pub layers: Vec<(Digest, u64)>,
    /// Images that containers use.
    pub in_use: BTreeSet<Digest>,
    /// What leases hold.
    pub held: BTreeSet<Resource>,
    /// Now, seconds since 1970.
    pub now_s: u64,
    /// Images younger than this stay.
    pub min_age_s: u64,
}

/// Which images may be given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// None: only what nothing names.
    Unreferenced,
    /// Those without a name.
    Dangling,
    /// All that nobody uses.
    Unused,
    /// As few as free so many bytes.
    Free(u64),
}

/// What goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub records: Vec<Record>,
    pub blobs: Vec<(Digest, u64)>,
    pub layers: Vec<(Digest, u64)>,
}

impl Plan {
    fn bytes(&self) -> u64 {
        self.blobs.iter().chain(&self.layers).map(|(_, size)| size).sum()
    }
}

/// Decides. Records stay whole: an image goes with all its names that are given up together.
pub(crate) fn plan(scene: &Scene, goal: Goal) -> Plan {
    let mut kept: Vec<&Record> = scene.records.iter().collect();
    let mut plan = unreferenced(scene, &kept, false);
    let wants_more = |plan: &Plan| match goal {
        Goal::Unreferenced => false,
        Goal::Dangling | Goal::Unused => true,
        Goal::Free(bytes) => plan.bytes() < bytes,
    };
    let mut spare_blobs = false;
    if matches!(goal, Goal::Free(_)) && wants_more(&plan) {
        spare_blobs = true;
        plan = unreferenced(scene, &kept, true);
    }
    let mut victims: Vec<_> = scene.records.iter().filter(|it| is_free(scene, it, goal)).collect();
    victims.sort_by_key(|it| (!it.name.is_empty(), it.used_s));
    let mut gone = Vec::new();
    for victim in victims {
        if !wants_more(&plan) {
            break;
        }
        kept.retain(|it| *it != victim);
        gone.push(victim.clone());
        plan = unreferenced(scene, &kept, spare_blobs);
    }
    Plan { records: gone, ..plan }
}

/// Whether a lease holds it, with all that belongs to it.
fn is_leased(scene: &Scene, record: &Record) -> bool {
    [record.config, record.manifest, record.target].map(Resource::Image).iter().any(|it| scene.held.contains(it))
}

fn is_free(scene: &Scene, record: &Record, goal: Goal) -> bool {
    let young = matches!(goal, Goal::Free(_)) && scene.now_s.saturating_sub(record.used_s) < scene.min_age_s;
    // A clock that was set back must not make everything young for ever.
    let young = young && record.used_s <= scene.now_s;
    let named = goal == Goal::Dangling && !record.name.is_empty();
    !young && !named && !scene.in_use.contains(&record.config) && !is_leased(scene, record)
}

/// What none of `kept`, no container and no lease needs; with `spare`, compressed layers whose unpacked form is there too.
fn unreferenced(scene: &Scene, kept: &[&Record], spare: bool) -> Plan {
    let mut blobs: BTreeSet<Digest> = BTreeSet::new();
    let mut layers: BTreeSet<Digest> = BTreeSet::new();
    let unpacked: BTreeSet<_> = scene.layers.iter().map(|(diff_id, _)| *diff_id).collect();
    for record in kept {
        blobs.extend([record.target, record.manifest, record.config]);
        blobs.extend(&record.others);
        layers.extend(&record.layers);
        let leased = is_leased(scene, record);
        for (n, blob) in record.blobs.iter().enumerate() {
            if !spare || leased || record.layers.get(n).is_none_or(|diff_id| !unpacked.contains(diff_id)) {
                blobs.insert(*blob);
            }
        }
    }
    for resource in &scene.held {
        match resource {
            Resource::Blob(digest) => _ = blobs.insert(*digest),
            Resource::Layer(digest) => _ = layers.insert(*digest),
            Resource::Image(_) | Resource::Snapshot(_) => {}
        }
    }
    let without = |all: &[(Digest, u64)], wanted: &BTreeSet<Digest>| {
        all.iter().filter(|(digest, _)| !wanted.contains(digest)).copied().collect()
    };
    Plan { records: Vec::new(), blobs: without(&scene.blobs, &blobs), layers: without(&scene.layers, &layers) }
}

impl Images {
    /// Keeps images below the high water mark until `stop`: looks whenever the store has grown, and every `pause` besides,
    /// as the rest of the disk grows too. What was asked for before `stop` is still done, and nothing is left in its midst.
    pub async fn keep_water(&self, pause: Duration, stop: CancellationToken) {
        loop {
            tokio::select! {
                // In this order, so that an engine that opens for a single pull collects after it.
                biased;
                () = self.0.grown.notified() => {}
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            // A panic ends one collection, not all that would follow.
            match AssertUnwindSafe(self.collect_by_water()).catch_unwind().await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "images could not be collected; it is tried again"),
                Err(_) => tracing::error!("a collection of images panicked; it is tried again"),
            }
        }
    }

    /// Collects where images take more than the high water mark, down to the low one.
    pub async fn collect_by_water(&self) -> Result<GcReport, GcError> {
        self.0.leases.sweep().await?;
        self.measure().await;
        let space = self.0.space.clone();
        let measured = tokio::task::spawn_blocking(move || (space.used(), space.capacity())).await;
        let (used, capacity) = measured.unwrap_or((0, u64::MAX));
        let percent = |percent: u8| capacity / 100 * u64::from(percent.min(100));
        if used <= percent(self.0.water.high) {
            return Ok(GcReport::default());
        }
        self.run(Goal::Free(used.saturating_sub(percent(self.0.water.low)))).await
    }

    /// Frees at least so many bytes, where that can be.
    pub async fn collect(&self, bytes: u64) -> Result<GcReport, GcError> {
        self.run(Goal::Free(bytes)).await
    }

    /// Removes images without a name, or with `all` every image that nobody uses; and what nothing names.
    pub async fn prune(&self, all: bool) -> Result<GcReport, GcError> {
        self.run(if all { Goal::Unused } else { Goal::Dangling }).await
    }

    pub(super) async fn sweep(&self) -> Result<GcReport, GcError> {
        self.run(Goal::Unreferenced).await
    }

    async fn run(&self, goal: Goal) -> Result<GcReport, GcError> {
        let one = self.0.change.lock().await;
        let scene = self.scene().await?;
        let plan = plan(&scene, goal);
        let mut report = GcReport::default();
        // Names first: what a crash leaves then is garbage, never a name over nothing.
        self.0.records.remove(&plan.records).await?;
        let label = |it: &Record| if it.name.is_empty() { it.config.to_string() } else { it.name.clone() };
        report.images = plan.records.iter().map(label).collect();
        self.tell_gone(&plan.records);
        for (diff_id, size) in plan.layers {
            let _none = self.0.removal.write().await;
            if self.0.flights.is_pinned(&diff_id) {
                continue;
            }
            match self.0.layers.remove(diff_id).await {
                Ok(()) => {
                    report.layers += 1;
                    report.freed += size;
                }
                // A snapshot may stand on it whose image has lost its name.
                Err(failure) if failure.code == "conflict" => {}
                Err(failure) => return Err(GcError::Layers(failure)),
            }
        }
        let (content, flights) = (self.0.content.clone(), self.0.flights.clone());
        let remove = move || {
            let mut gone = (0, 0);
            for (digest, size) in plan.blobs {
                if let Some(result) = flights.unless_pinned(&digest, || content.remove(&digest)) {
                    result?;
                    gone = (gone.0 + 1, gone.1 + size);
                }
            }
            Ok::<_, ContentError>(gone)
        };
        let (blobs, bytes) = tokio::task::spawn_blocking(remove).await.unwrap_or(Ok((0, 0)))?;
        report.blobs = blobs;
        report.freed += bytes;
        self.0.counts.collected.inc_by(report.freed);
        drop(one);
        self.measure().await;
        if report != GcReport::default() {
            tracing::info!(images = ?report.images, blobs, layers = report.layers, freed = report.freed, "images collected");
        }
        Ok(report)
    }

    /// Tells of names that went, and of images that went with their last.
    fn tell_gone(&self, gone: &[Record]) {
        let left: BTreeSet<_> = self.0.records.all().iter().map(|it| it.config).collect();
        let mut removed = BTreeSet::new();
        for record in gone {
            let id = record.config.to_string();
            if !record.name.is_empty() {
                self.tell(&record.owner, &id, &record.name, Action::Untagged);
            }
            if !left.contains(&record.config) && removed.insert(record.config) {
                self.tell(&record.owner, &id, &id, Action::Removed);
            }
        }
    }

    async fn scene(&self) -> Result<Scene, GcError> {
        let content = self.0.content.clone();
        let listed = tokio::task::spawn_blocking(move || content.list()).await;
        let blobs = listed.unwrap_or_else(|_| Ok(Vec::new()))?;
        let layers = self.0.layers.list().await.map_err(GcError::Layers)?;
        Ok(Scene {
            records: self.0.records.all(),
            blobs: blobs.into_iter().map(|it| (it.digest, it.size)).collect(),
            layers: layers.into_iter().map(|it| (it.diff_id, it.bytes)).collect(),
            in_use: self.in_use().into_iter().map(|(id, _)| id).collect(),
            held: self.0.leases.held(),
            now_s: crate::lease::now(),
            min_age_s: self.0.water.min_age_s,
        })
    }

    pub(super) fn in_use(&self) -> Vec<(Digest, String)> {
        let provider = self.0.in_use.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        provider.map(|it| it.images()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::record::tests::record, *};

    fn scene(records: Vec<Record>) -> Scene {
        let blob = |it: &Record| [it.target, it.manifest, it.config].map(|digest| (digest, 1)).into_iter();
        Scene {
            blobs: records.iter().flat_map(|it| blob(it).chain([(it.blobs[0], 10)])).collect(),
            layers: records.iter().map(|it| (it.layers[0], 100)).collect(),
            records,
            now_s: 1000,
            min_age_s: 60,
            ..Scene::default()
        }
    }

    #[test]
    fn decisions() {
        #[track_caller]
        fn check(scene: &Scene, goal: Goal, images: &[&str], bytes: u64) {
            let plan = plan(scene, goal);
            let names: Vec<_> = plan.records.iter().map(|it| it.name.as_str()).collect();
            assert_eq!((names.as_slice(), plan.bytes()), (images, bytes), "{goal:?}");
        }
        // Used at 1, 2, 3; the nameless last.
        let all = scene(vec![record("b", 2), record("a", 1), record("", 3)]);
        check(&all, Goal::Unreferenced, &[], 0);
        check(&all, Goal::Dangling, &[""], 113);
        check(&all, Goal::Unused, &["", "a", "b"], 339);
        check(&all, Goal::Free(0), &[], 0);
        check(&all, Goal::Free(30), &[], 30); // The compressed blobs of unpacked layers are enough.
        check(&all, Goal::Free(31), &[""], 133);
        check(&all, Goal::Free(134), &["", "a"], 236);
        check(&all, Goal::Free(9999), &["", "a", "b"], 339);
        let mut used = all.clone();
        used.in_use = [record("a", 1).config].into();
        check(&used, Goal::Unused, &["", "b"], 226);
        let mut leased = all.clone();
        leased.held = [Resource::Image(record("b", 2).manifest), Resource::Layer(record("", 3).layers[0])].into();
        check(&leased, Goal::Unused, &["", "a"], 126);
        check(&leased, Goal::Free(20), &[], 20); // The blobs of a leased image stay too.
        check(&leased, Goal::Free(9999), &["", "a"], 126);
        let mut blob = all.clone();
        blob.held = [Resource::Blob(record("a", 1).blobs[0])].into();
        check(&blob, Goal::Free(9999), &["", "a", "b"], 329);
        let other = Digest::of(b"for another platform");
        let mut wide = scene(vec![Record { others: vec![other], ..record("wide", 1) }]);
        wide.blobs.push((other, 1000));
        check(&wide, Goal::Free(11), &["wide"], 1113); // Never spared: they lie unpacked nowhere.
        check(&wide, Goal::Unreferenced, &[], 0);
        let mut young = scene(vec![Record { used_s: 990, ..record("young", 1) }, record("old", 2)]);
        check(&young, Goal::Free(9999), &["old"], 113 + 10);
        check(&young, Goal::Unused, &["old", "young"], 226);
        young.now_s = 5; // The clock was set back.
        check(&young, Goal::Free(9999), &["young"], 113 + 10);
        let mut stray = all;
        stray.blobs.push((Digest::of(b"stray"), 7));
        stray.layers.push((Digest::of(b"stray layer"), 70));
        check(&stray, Goal::Unreferenced, &[], 77);
        // Two names, one image: its bytes stay until both went.
        let two = scene(vec![record("x", 1), Record { used_s: 2, ..record("y", 1) }]);
        check(&two, Goal::Free(50), &["x", "y"], 226);
    }
}
