//! Pages of metrics.

use container_engine::cgroup::Usage;

use super::{Look, Observer, SeenContainer, SeenPod, model::working_set, text::Text};

/// ms of ns.
const MS: i64 = 1_000_000;

#[allow(clippy::cast_precision_loss, reason = "floats are what the format has")]
fn float(number: u64) -> f64 {
    number as f64
}

fn seconds(us: u64) -> f64 {
    float(us) / 1e6
}

/// Never zero: what runs has run.
fn cpu_seconds(usage: &Usage) -> f64 {
    seconds(usage.cpu.usage_us.max(1))
}

#[allow(clippy::cast_precision_loss, reason = "a start is exact to the microsecond all the same")]
fn started(container: &SeenContainer) -> f64 {
    container.inspect.state.started_ns.unwrap_or(container.inspect.created_ns) as f64 / 1e9
}

impl Observer {
    /// What the metrics server reads, and `kubectl top` shows.
    pub async fn resource_metrics(&self) -> String {
        let look = self.look().await;
        resource(&look)
    }

    /// Of containers, as cAdvisor names them.
    pub async fn cadvisor_metrics(&self) -> String {
        let look = self.look().await;
        cadvisor(&look)
    }

    /// The agent's own, and the few of the kubelet's that dashboards ask for.
    pub fn agent_metrics(&self) -> String {
        let mut text = Text::default();
        text.gauge("kubelet_node_name", "The node's name. The count is always 1.").add(
            &[("node", &self.places.node)],
            1.0,
            None,
        );
        let pods = self.directory.pods();
        let uids = pods.iter().map(|pod| (pod.metadata.uid.clone().unwrap_or_default(), super::container_names(pod)));
        let (mut running_pods, mut running, mut exited) = (0_u64, 0_u64, 0_u64);
        for (uid, names) in uids {
            let states: Vec<bool> = names
                .iter()
                .filter_map(|name| self.directory.instances(&uid, name).last)
                .map(|it| it.running)
                .collect();
            running_pods += u64::from(states.iter().any(|it| *it));
            running += states.iter().map(|it| u64::from(*it)).sum::<u64>();
            exited += states.iter().map(|it| u64::from(!*it)).sum::<u64>();
        }
        text.gauge("kubelet_running_pods", "Number of pods that have a running container").add(
            &[],
            float(running_pods),
            None,
        );
        let mut containers = text.gauge("kubelet_running_containers", "Number of containers currently running");
        containers.add(&[("container_state", "running")], float(running), None);
        containers.add(&[("container_state", "exited")], float(exited), None);
        let own = self.places.metrics.encode();
        // The mark of another format's end, which is no part of this one.
        text.append(own.strip_suffix("# EOF\n").unwrap_or(&own));
        text.finish()
    }

    /// Of probes.
    pub fn probe_metrics(&self) -> String {
        (self.places.probes)()
    }
}

/// Of health checks.
pub fn sli_metrics(checks: &[(&'static str, bool)]) -> String {
    let mut text = Text::default();
    let mut family = text.gauge("kubernetes_healthcheck", "This metric records the result of a single healthcheck.");
    for (name, is_well) in checks {
        family.add(&[("name", name), ("type", "healthz")], f64::from(u8::from(*is_well)), None);
    }
    text.finish()
}

fn resource(look: &Look) -> String {
    let mut text = Text::default();
    let at = Some(look.time_ns / MS);
    text.counter("node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds").add(
        &[],
        cpu_seconds(&look.board.usage),
        at,
    );
    text.gauge("node_memory_working_set_bytes", "Current working set of the node in bytes").add(
        &[],
        float(working_set(&look.board.usage)),
        at,
    );
    text.gauge(
        "node_swap_usage_bytes",
        "Current swap usage of the node in bytes. Reported only on non-windows systems",
    )
    .add(&[], float(look.board.usage.memory.swap), at);
    let containers = || look.pods.iter().flat_map(|pod| pod.containers.iter().map(move |it| (pod, it)));
    let mut family = text
        .counter("container_cpu_usage_seconds_total", "Cumulative cpu time consumed by the container in core-seconds");
    for (pod, it) in containers() {
        family.add(&names(pod, it), cpu_seconds(&it.stats.cgroup), Some(it.stats.time_ns / MS));
    }
    let mut family = text.gauge("container_memory_working_set_bytes", "Current working set of the container in bytes");
    for (pod, it) in containers() {
        family.add(&names(pod, it), float(working_set(&it.stats.cgroup)), Some(it.stats.time_ns / MS));
    }
    let mut family =
        text.gauge("container_start_time_seconds", "Start time of the container since unix epoch in seconds");
    for (pod, it) in containers() {
        family.add(&names(pod, it), started(it), None);
    }
    let mut family = text.gauge(
        "container_swap_usage_bytes",
        "Current amount of the container swap usage in bytes. Reported only on non-windows systems",
    );
    for (pod, it) in containers() {
        family.add(&names(pod, it), float(it.stats.cgroup.memory.swap), Some(it.stats.time_ns / MS));
    }
    let mut family =
        text.counter("pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds");
    for pod in &look.pods {
        family.add(&pod_names(pod), cpu_seconds(&pod.usage), at);
    }
    let mut family = text.gauge("pod_memory_working_set_bytes", "Current working set of the pod in bytes");
    for pod in &look.pods {
        family.add(&pod_names(pod), float(working_set(&pod.usage)), at);
    }
    let mut family = text.gauge(
        "pod_swap_usage_bytes",
        "Current amount of the pod swap usage in bytes. Reported only on non-windows systems",
    );
    for pod in &look.pods {
        family.add(&pod_names(pod), float(pod.usage.memory.swap), at);
    }
    text.gauge("resource_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise").add(
        &[],
        0.0,
        None,
    );
    text.finish()
}

fn names<'a>(pod: &'a SeenPod, container: &'a SeenContainer) -> [(&'static str, &'a str); 3] {
    [("container", &container.name), ("namespace", &pod.namespace), ("pod", &pod.name)]
}

fn pod_names(pod: &SeenPod) -> [(&'static str, &str); 2] {
    [("namespace", &pod.namespace), ("pod", &pod.name)]
}

/// A number of a group.
type Number = fn(&Usage) -> f64;

/// Counters of groups: name, help, number.
const COUNTERS: [(&str, &str, Number); 5] = [
    ("container_cpu_user_seconds_total", "Cumulative user cpu time consumed in seconds.", |it| seconds(it.cpu.user_us)),
    ("container_cpu_system_seconds_total", "Cumulative system cpu time consumed in seconds.", |it| {
        seconds(it.cpu.system_us)
    }),
    ("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", |it| float(it.cpu.periods)),
    ("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", |it| {
        float(it.cpu.throttled)
    }),
    ("container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", |it| {
        seconds(it.cpu.throttled_us)
    }),
];

/// Gauges of groups.
const GAUGES: [(&str, &str, Number); 8] = [
    ("container_memory_usage_bytes", "Current memory usage in bytes, including all memory.", |it| {
        float(it.memory.usage.max(working_set(it)))
    }),
    ("container_memory_working_set_bytes", "Current working set in bytes.", |it| float(working_set(it))),
    ("container_memory_rss", "Size of RSS in bytes.", |it| float(it.memory.anon)),
    ("container_memory_cache", "Number of bytes of page cache memory.", |it| float(it.memory.file)),
    ("container_memory_swap", "Container swap usage in bytes.", |it| float(it.memory.swap)),
    ("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes", |it| {
        float(it.memory.peak.unwrap_or(it.memory.usage))
    }),
    ("container_spec_memory_limit_bytes", "Memory limit for the container.", |it| {
        float(it.memory.limit.unwrap_or_default())
    }),
    ("container_processes", "Number of processes running inside the container.", |it| float(it.pids.current)),
];

/// One row of a table: whose it is, and when it was looked at.
struct Row<'a> {
    labels: Vec<(&'static str, &'a str)>,
    usage: &'a Usage,
    at: i64,
}

fn rows(look: &Look) -> Vec<Row<'_>> {
    let root = Row { labels: labels("", "/", "", "", "", ""), usage: &look.board.usage, at: look.time_ns / MS };
    let mut rows = vec![root];
    for pod in &look.pods {
        let labels_of_pod = labels("", &pod.uid, "", "", &pod.namespace, &pod.name);
        rows.push(Row { labels: labels_of_pod, usage: &pod.usage, at: look.time_ns / MS });
        for it in &pod.containers {
            let labels = labels(
                &it.name,
                &it.inspect.cgroup,
                &it.inspect.image.name,
                it.inspect.id.as_str(),
                &pod.namespace,
                &pod.name,
            );
            rows.push(Row { labels, usage: &it.stats.cgroup, at: it.stats.time_ns / MS });
        }
    }
    rows
}

fn labels<'a>(
    container: &'a str,
    id: &'a str,
    image: &'a str,
    name: &'a str,
    namespace: &'a str,
    pod: &'a str,
) -> Vec<(&'static str, &'a str)> {
    vec![("container", container), ("id", id), ("image", image), ("name", name), ("namespace", namespace), ("pod", pod)]
}

fn cadvisor(look: &Look) -> String {
    let mut text = Text::default();
    let rows = rows(look);
    let mut family = text.counter("container_cpu_usage_seconds_total", "Cumulative cpu time consumed in seconds.");
    for row in &rows {
        family.add(&with(&row.labels, &[("cpu", "total")]), cpu_seconds(row.usage), Some(row.at));
    }
    for (name, help, number) in COUNTERS {
        let mut family = text.counter(name, help);
        for row in &rows {
            family.add(&row.labels, number(row.usage), Some(row.at));
        }
    }
    for (name, help, number) in GAUGES {
        let mut family = text.gauge(name, help);
        for row in &rows {
            family.add(&row.labels, number(row.usage), Some(row.at));
        }
    }
    let mut family = text.counter("container_memory_failures_total", "Cumulative count of memory allocation failures.");
    for row in &rows {
        let kinds = [("pgfault", row.usage.memory.page_faults), ("pgmajfault", row.usage.memory.major_page_faults)];
        for (kind, count) in kinds {
            let more = [("failure_type", kind), ("scope", "container")];
            family.add(&with(&row.labels, &more), float(count), Some(row.at));
        }
    }
    let mut family =
        text.counter("container_oom_events_total", "Count of out of memory events observed for the container");
    for row in &rows {
        family.add(&row.labels, float(row.usage.memory.oom_kills), Some(row.at));
    }
    io(&mut text, &rows);
    pressure(&mut text, &rows);
    network(&mut text, look);
    let mut family =
        text.gauge("container_start_time_seconds", "Start time of the container since unix epoch in seconds.");
    for pod in &look.pods {
        for it in &pod.containers {
            family.add(&names(pod, it), started(it), None);
        }
    }
    text.gauge("machine_cpu_cores", "Number of logical CPU cores.").add(&[], float(look.board.cpus.max(1)), None);
    let memory = look.board.usage.memory.limit.unwrap_or_default();
    text.gauge("machine_memory_bytes", "Amount of memory installed on the machine.").add(&[], float(memory), None);
    text.gauge("container_scrape_error", "1 if there was an error while getting container metrics, 0 otherwise").add(
        &[],
        0.0,
        None,
    );
    text.finish()
}

fn with<'a>(labels: &[(&'static str, &'a str)], more: &[(&'static str, &'a str)]) -> Vec<(&'static str, &'a str)> {
    labels.iter().chain(more).copied().collect()
}

fn io(text: &mut Text, rows: &[Row<'_>]) {
    type Count = fn(&container_engine::cgroup::Io) -> u64;
    const FAMILIES: [(&str, &str, Count); 4] = [
        ("container_fs_reads_bytes_total", "Cumulative count of bytes read", |it| it.read_bytes),
        ("container_fs_writes_bytes_total", "Cumulative count of bytes written", |it| it.write_bytes),
        ("container_fs_reads_total", "Cumulative count of reads completed", |it| it.reads),
        ("container_fs_writes_total", "Cumulative count of writes completed", |it| it.writes),
    ];
    for (name, help, count) in FAMILIES {
        let mut family = text.counter(name, help);
        for row in rows {
            for io in &row.usage.io {
                let device = format!("{}:{}", io.major, io.minor);
                family.add(&with(&row.labels, &[("device", &device)]), float(count(io)), Some(row.at));
            }
        }
    }
}

fn pressure(text: &mut Text, rows: &[Row<'_>]) {
    const FAMILIES: [(&str, &str, &str, bool); 6] = [
        (
            "container_pressure_cpu_waiting_seconds_total",
            "cpu",
            "Total time duration tasks in the container have waited due to CPU congestion.",
            false,
        ),
        (
            "container_pressure_cpu_stalled_seconds_total",
            "cpu",
            "Total time duration no tasks in the container could make progress due to CPU congestion.",
            true,
        ),
        (
            "container_pressure_memory_waiting_seconds_total",
            "memory",
            "Total time duration tasks in the container have waited due to memory congestion.",
            false,
        ),
        (
            "container_pressure_memory_stalled_seconds_total",
            "memory",
            "Total time duration no tasks in the container could make progress due to memory congestion.",
            true,
        ),
        (
            "container_pressure_io_waiting_seconds_total",
            "io",
            "Total time duration tasks in the container have waited due to IO congestion.",
            false,
        ),
        (
            "container_pressure_io_stalled_seconds_total",
            "io",
            "Total time duration no tasks in the container could make progress due to IO congestion.",
            true,
        ),
    ];
    for (name, resource, help, full) in FAMILIES {
        let mut family = text.counter(name, help);
        for row in rows {
            if let Some(it) = row.usage.pressure.get(resource) {
                let total = if full { it.full_total_us } else { it.some_total_us };
                family.add(&row.labels, seconds(total), Some(row.at));
            }
        }
    }
}

fn network(text: &mut Text, look: &Look) {
    type Count = fn(&container_engine::container::NetworkUsage) -> u64;
    const FAMILIES: [(&str, &str, Count); 8] = [
        ("container_network_receive_bytes_total", "Cumulative count of bytes received", |it| it.rx_bytes),
        ("container_network_receive_packets_total", "Cumulative count of packets received", |it| it.rx_packets),
        ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", |it| {
            it.rx_errors
        }),
        (
            "container_network_receive_packets_dropped_total",
            "Cumulative count of packets dropped while receiving",
            |it| it.rx_dropped,
        ),
        ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |it| it.tx_bytes),
        ("container_network_transmit_packets_total", "Cumulative count of packets transmitted", |it| it.tx_packets),
        (
            "container_network_transmit_errors_total",
            "Cumulative count of errors encountered while transmitting",
            |it| it.tx_errors,
        ),
        (
            "container_network_transmit_packets_dropped_total",
            "Cumulative count of packets dropped while transmitting",
            |it| it.tx_dropped,
        ),
    ];
    let at = Some(look.time_ns / MS);
    for (name, help, count) in FAMILIES {
        let mut family = text.counter(name, help);
        for (interface, usage) in &look.board.network {
            let labels = with(&labels("", "/", "", "", "", ""), &[("interface", interface)]);
            family.add(&labels, float(count(usage)), at);
        }
        for pod in &look.pods {
            for (interface, usage) in &pod.network {
                let labels = labels("", &pod.uid, "", "", &pod.namespace, &pod.name);
                family.add(&with(&labels, &[("interface", interface)]), float(count(usage)), at);
            }
        }
    }
}
