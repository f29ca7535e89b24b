//! `/stats/summary`.

use std::path::PathBuf;

use futures_util::StreamExt;

use super::{
    AT_ONCE, Look, Observer, SeenContainer, SeenPod,
    model::{self, Fs, Time},
    node,
};
use crate::server::directory::VolumeDir;

impl Observer {
    /// The summary; with `short` processors and memory alone, which takes no look at disks.
    pub async fn summary(&self, short: bool) -> model::Summary {
        let look = self.look().await;
        let node = self.node(&look, short).await;
        let image_fs = self.fs_of(self.places.image_dir.clone()).await;
        let node_fs = self.fs_of(self.places.node_dir.clone()).await;
        let whole = (image_fs, node_fs);
        let pods = look.pods.iter().map(|pod| self.pod_summary(pod, look.time_ns, short, &whole));
        let pods: Vec<model::Pod> =
            futures_util::stream::iter(pods.collect::<Vec<_>>()).buffered(AT_ONCE).collect().await;
        model::Summary { node, pods }
    }

    async fn fs_of(&self, path: PathBuf) -> Option<Fs> {
        tokio::task::spawn_blocking(move || node::file_system(&path, Time::ns(super::now_ns()))).await.ok().flatten()
    }

    async fn node(&self, look: &Look, short: bool) -> model::Node {
        let time = Time::ns(look.time_ns);
        let usage = &look.board.usage;
        let mut node = model::Node {
            node_name: self.places.node.clone(),
            system_containers: system_containers(look),
            start_time: Time::ns(look.board.booted_ns),
            cpu: model::cpu(usage, time, look.rate),
            memory: model::memory(usage, time),
            io: None,
            network: None,
            fs: None,
            runtime: None,
            rlimit: None,
            swap: Some(model::Swap { time, available: look.board.swap_free, usage: usage.memory.swap }),
        };
        if short {
            return node;
        }
        node.io = model::io(usage, time);
        node.network = model::network(&look.board.network, &look.board.default_interface, time);
        node.rlimit = node::rlimit(&look.board, time);
        node.fs = self.fs_of(self.places.node_dir.clone()).await;
        let containers = self.fs_of(self.places.image_dir.clone()).await;
        let image_bytes = self.runtime.image_bytes().await;
        let images = containers.clone().map(|fs| Fs { used_bytes: Some(image_bytes), ..fs });
        node.runtime = Some(model::RuntimeFs { image_fs: images, container_fs: containers });
        node
    }

    async fn pod_summary(
        &self,
        seen: &SeenPod,
        time_ns: i64,
        short: bool,
        whole: &(Option<Fs>, Option<Fs>),
    ) -> model::Pod {
        let time = Time::ns(time_ns);
        let mut containers = Vec::new();
        for container in &seen.containers {
            containers.push(self.container_summary(seen, container, short, whole).await);
        }
        let started = seen.pod.status.as_ref().and_then(|status| status.start_time.as_ref());
        let started_ns = started.map(|time| i64::try_from(time.0.as_nanosecond()).unwrap_or_default());
        let mut pod = model::Pod {
            pod_ref: model::PodRef {
                name: seen.name.clone(),
                namespace: seen.namespace.clone(),
                uid: seen.uid.clone(),
            },
            start_time: started_ns.map(Time::ns).or(containers.first().map(|it| it.start_time)).unwrap_or(time),
            cpu: Some(model::cpu(&seen.usage, time, seen.rate)),
            memory: Some(model::memory(&seen.usage, time)),
            swap: Some(model::Swap { time, available: None, usage: seen.usage.memory.swap }),
            containers,
            io: None,
            network: None,
            volume: Vec::new(),
            ephemeral_storage: None,
            process_stats: None,
        };
        if short {
            return pod;
        }
        pod.io = model::io(&seen.usage, time);
        pod.network = model::network(&seen.network, "eth0", time);
        pod.process_stats = Some(model::ProcessStats { process_count: seen.usage.pids.current.max(1) });
        let mut own_bytes: u64 = 0;
        for volume in self.directory.volumes(&seen.uid) {
            let summary = self.volume(volume, time, whole.1.as_ref()).await;
            if summary.pvc_ref.is_none() {
                own_bytes = own_bytes.saturating_add(summary.fs.used_bytes.unwrap_or_default());
            }
            pod.volume.push(summary);
        }
        for container in &pod.containers {
            let of = |fs: &Option<Fs>| fs.as_ref().and_then(|fs| fs.used_bytes).unwrap_or_default();
            own_bytes = own_bytes.saturating_add(of(&container.rootfs)).saturating_add(of(&container.logs));
        }
        pod.ephemeral_storage =
            whole.1.clone().map(|fs| Fs { time, used_bytes: Some(own_bytes), inodes_used: None, ..fs });
        pod
    }

    async fn container_summary(
        &self,
        pod: &SeenPod,
        seen: &SeenContainer,
        short: bool,
        whole: &(Option<Fs>, Option<Fs>),
    ) -> model::Container {
        let time = Time::ns(seen.stats.time_ns);
        let usage = &seen.stats.cgroup;
        let mut container = model::Container {
            name: seen.name.clone(),
            start_time: Time::ns(seen.inspect.state.started_ns.unwrap_or(seen.inspect.created_ns)),
            cpu: model::cpu(usage, time, seen.rate),
            memory: model::memory(usage, time),
            io: None,
            rootfs: None,
            logs: None,
            swap: Some(model::Swap { time, available: None, usage: usage.memory.swap }),
        };
        if short {
            return container;
        }
        container.io = model::io(usage, time);
        let used = self.root_bytes(seen).await;
        container.rootfs = whole.0.clone().map(|fs| Fs { time, used_bytes: used, inodes_used: None, ..fs });
        let folder = format!("{}_{}_{}", pod.namespace, pod.name, pod.uid);
        let logs = self.disks.of(&self.places.log_dir.join("pods").join(folder).join(&seen.name)).await;
        container.logs =
            whole.1.clone().map(|fs| Fs { time, used_bytes: Some(logs.bytes), inodes_used: Some(logs.inodes), ..fs });
        container
    }

    async fn volume(&self, volume: VolumeDir, time: Time, whole: Option<&Fs>) -> model::Volume {
        // A mount of its own has numbers of its own; what is in the node's file system is measured.
        let own = self.fs_of(volume.path.clone()).await.filter(|own| whole.is_none_or(|node| is_other(own, node)));
        let fs = if let Some(own) = own {
            own
        } else {
            let taken = self.disks.of(&volume.path).await;
            let none = Fs {
                time,
                available_bytes: None,
                capacity_bytes: None,
                used_bytes: None,
                inodes_free: None,
                inodes: None,
                inodes_used: None,
            };
            let fs = whole.cloned().unwrap_or(none);
            Fs { time, used_bytes: Some(taken.bytes), inodes_used: Some(taken.inodes), ..fs }
        };
        let pvc_ref = volume.claim.map(|(namespace, name)| model::PvcRef { name, namespace });
        model::Volume { fs, name: volume.name, pvc_ref }
    }
}

/// Whether it is another file system, by its size.
fn is_other(own: &Fs, node: &Fs) -> bool {
    (own.capacity_bytes, own.inodes) != (node.capacity_bytes, node.inodes)
}

/// The agent itself, and all pods together.
fn system_containers(look: &Look) -> Vec<model::Container> {
    let time = Time::ns(look.time_ns);
    let mut all = container_engine::cgroup::Usage::default();
    let mut rate = Some(0_u64);
    for pod in &look.pods {
        all.cpu.usage_us += pod.usage.cpu.usage_us;
        all.memory.usage += pod.usage.memory.usage;
        all.memory.working_set += model::working_set(&pod.usage);
        all.memory.anon += pod.usage.memory.anon;
        all.memory.page_faults += pod.usage.memory.page_faults;
        all.memory.major_page_faults += pod.usage.memory.major_page_faults;
        all.memory.swap += pod.usage.memory.swap;
        rate = rate.zip(pod.rate).map(|(all, one)| all.saturating_add(one));
    }
    let of = |name: &str, usage, rate| model::Container {
        name: name.to_owned(),
        start_time: Time::ns(look.board.booted_ns),
        cpu: model::cpu(usage, time, rate),
        memory: model::memory(usage, time),
        io: None,
        rootfs: None,
        logs: None,
        swap: None,
    };
    vec![of("kubelet", &look.own, look.own_rate), of("pods", &all, rate)]
}
