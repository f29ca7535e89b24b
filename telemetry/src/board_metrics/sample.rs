//! One look at the kernel's files, and what two looks say together.
//!
//! Sources: proc(5) for `stat`, `loadavg`, `meminfo`, `uptime`, `net/dev`; the kernel's ABI/stable/sysfs-block for
//! `stat`, ABI/testing/sysfs-class-thermal for `temp`, and JEDEC eMMC 5.0 as shown by `mmc/core/mmc.c` for `life_time` and
//! `pre_eol_info`. Other drives tell their wear only through an ioctl of root: it is not read here.

use std::{fs, path::Path, time::Duration};

/// Interfaces, sensors and disks of one kind that are shown.
const MAX_OF_A_KIND: usize = 16;

/// One figure; units are those of `SenML` (RFC 8428 section 12.1).
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// How much.
    pub value: f64,
}

/// One look.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// Ticks since boot: busy, and all.
    cpu: Option<(u64, u64)>,
    /// What can be said of one moment.
    now: Vec<Figure>,
    /// Bytes since boot, by name: told as rates too.
    counters: Vec<(String, u64)>,
}

fn read(path: &Path) -> Option<String> {
    board::durable::read(path, 1 << 20).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Names of a folder, sorted, so that figures keep their order.
fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

impl Sample {
    /// Looks now. `root` is `/` but for tests.
    pub fn take(root: &Path, data_dir: &Path) -> Self {
        let proc = |name: &str| read(&root.join("proc").join(name)).unwrap_or_default();
        let mut sample = Self { cpu: cpu(&proc("stat")), ..Self::default() };
        let mut say = |name: &str, unit, value: Option<f64>| {
            sample.now.extend(value.map(|value| Figure { name: name.to_owned(), unit, value }));
        };
        say("uptime", "s", first_number(&proc("uptime")));
        say("load1", "1", first_number(&proc("loadavg")));
        let memory = proc("meminfo");
        say("memory_total", "B", meminfo(&memory, "MemTotal:"));
        say("memory_available", "B", meminfo(&memory, "MemAvailable:"));
        let disk = board::sys::disk(data_dir).ok();
        say("disk_total", "B", disk.map(|disk| float(disk.total)));
        say("disk_free", "B", disk.map(|disk| float(disk.free)));
        sample.now.extend(temperatures(&root.join("sys/class/thermal")));
        let block = root.join("sys/block");
        for disk in names(&block).into_iter().filter(|name| is_disk(name)).take(MAX_OF_A_KIND) {
            sample.now.extend(wear(&disk, &block.join(&disk)));
            let written = read(&block.join(&disk).join("stat")).and_then(|text| written_bytes(&text));
            sample.counters.extend(written.map(|bytes| (format!("disk_written.{disk}"), bytes)));
        }
        sample.counters.extend(network(&proc("net/dev")));
        sample
    }

    /// The figures of this look, and what has changed since `before`, `elapsed` earlier.
    pub fn since(&self, before: &Self, elapsed: Duration) -> Vec<Figure> {
        let mut figures = Vec::new();
        if let (Some((busy, all)), Some((busy_before, all_before))) = (self.cpu, before.cpu) {
            let all = all.saturating_sub(all_before).max(1);
            let value = (float(busy.saturating_sub(busy_before)) / float(all)).min(1.0);
            figures.push(Figure { name: "cpu".into(), unit: "/", value: rounded(value) });
        }
        figures.extend(self.now.iter().cloned());
        for (name, bytes) in &self.counters {
            let Some((_, earlier)) = before.counters.iter().find(|(other, _)| other == name) else { continue };
            let rate = float(bytes.saturating_sub(*earlier)) / elapsed.as_secs_f64().max(0.001);
            figures.push(Figure { name: name.clone(), unit: "B/s", value: rounded(rate) });
        }
        figures
    }
}

/// Bytes and ticks stay far below 2^53.
#[allow(clippy::cast_precision_loss)]
fn float(number: u64) -> f64 {
    number as f64
}

/// Three digits behind the point are enough for a board, and compress well.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn first_number(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

/// The line of all processors: user nice system idle iowait irq softirq steal. Guest time is in user already.
fn cpu(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|word| word.parse().ok()).collect();
    let all: u64 = ticks.iter().sum();
    let idle = ticks.get(3)? + ticks.get(4).unwrap_or(&0);
    Some((all - idle, all))
}

fn meminfo(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    first_number(line).map(|kib| kib * 1024.0)
}

/// `temperature.TYPE` in degrees; the number of the zone is added where several have the same type.
fn temperatures(thermal: &Path) -> Vec<Figure> {
    let mut figures: Vec<Figure> = Vec::new();
    for zone in names(thermal).into_iter().filter(|name| name.starts_with("thermal_zone")).take(MAX_OF_A_KIND) {
        let dir = thermal.join(&zone);
        let milli = read(&dir.join("temp")).and_then(|text| text.trim().parse::<i32>().ok());
        let Some(milli) = milli else { continue };
        let kind = read(&dir.join("type")).unwrap_or_default();
        let mut name = format!("temperature.{}", kind.trim());
        if figures.iter().any(|it| it.name == name) {
            name.push_str(zone.trim_start_matches("thermal_zone"));
        }
        figures.push(Figure { name, unit: "Cel", value: f64::from(milli) / 1000.0 });
    }
    figures
}

/// Whole disks that wear or spin: no partitions, loops, RAM disks or device-mapper copies of others.
fn is_disk(name: &str) -> bool {
    let is_mmc = name.strip_prefix("mmcblk").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_digit()));
    is_mmc || ["sd", "nvme", "vd", "hd"].iter().any(|prefix| name.starts_with(prefix))
}

/// Sectors of 512 bytes written: the seventh field of `stat`.
fn written_bytes(stat: &str) -> Option<u64> {
    stat.split_whitespace().nth(6)?.parse::<u64>().ok().map(|sectors| sectors * 512)
}

/// What an eMMC says of its wear: the share of its life that is used, in steps of a tenth (the worse of its two kinds of
/// cells), and whether its reserve runs out (1 normal, 2 over 80 % used, 3 urgent).
fn wear(name: &str, disk: &Path) -> Vec<Figure> {
    let hex = |word: &str| u8::from_str_radix(word.trim_start_matches("0x"), 16).ok().filter(|value| *value > 0);
    let life = read(&disk.join("device/life_time"));
    let used = life.and_then(|text| text.split_whitespace().filter_map(hex).max());
    let reserve = read(&disk.join("device/pre_eol_info")).and_then(|text| hex(text.trim()));
    let used = used.map(|tenths| Figure {
        name: format!("disk_life_used.{name}"),
        unit: "/",
        value: (f64::from(tenths) / 10.0).min(1.1),
    });
    let reserve =
        reserve.map(|level| Figure { name: format!("disk_reserve.{name}"), unit: "1", value: f64::from(level) });
    used.into_iter().chain(reserve).collect()
}

/// Bytes in and out of each real interface: no loopback, no ends of containers' pairs.
fn network(dev: &str) -> Vec<(String, u64)> {
    let mut counters = Vec::new();
    for line in dev.lines() {
        let Some((name, fields)) = line.split_once(':') else { continue };
        let name = name.trim();
        if name == "lo" || name.starts_with("veth") || name.starts_with("cali") {
            continue;
        }
        let fields: Vec<&str> = fields.split_whitespace().collect();
        for (kind, at) in [("received", 0), ("sent", 8)] {
            let bytes = fields.get(at).and_then(|word| word.parse().ok());
            counters.extend(bytes.map(|bytes| (format!("network_{kind}.{name}"), bytes)));
        }
    }
    counters.truncate(2 * MAX_OF_A_KIND);
    counters
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A board's kernel files.
    fn board(dir: &Path, busy: u64, received: u64) {
        let files = [
            ("proc/stat", format!("cpu  {busy} 0 100 800 100 0 0 0 0 0\ncpu0 1 2 3\n")),
            ("proc/loadavg", "0.52 0.58 0.59 1/389 1234\n".into()),
            ("proc/meminfo", "MemTotal:     1000 kB\nMemFree: 1 kB\nMemAvailable:   600 kB\n".into()),
            ("proc/uptime", "351.33 1402.11\n".into()),
            (
                "proc/net/dev",
                format!(
                    "Inter-| Receive\n face |bytes\n lo: 9 0 0 0 0 0 0 0 9\n eth0: {received} 1 0 0 0 0 0 0 500 1\n"
                ),
            ),
            ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n".into()),
            ("sys/class/thermal/thermal_zone0/temp", "48312\n".into()),
            ("sys/block/mmcblk0/stat", "1 2 3 4 5 6 2048 8\n".into()),
            ("sys/block/mmcblk0/device/life_time", "0x02 0x01\n".into()),
            ("sys/block/mmcblk0/device/pre_eol_info", "0x01\n".into()),
            ("sys/block/mmcblk0boot0/stat", "1 2 3 4 5 6 7 8\n".into()),
        ];
        for (path, text) in files {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn two_looks_make_figures() {
        let dir = tempfile::tempdir().unwrap();
        board(dir.path(), 1000, 10_000);
        let before = Sample::take(dir.path(), dir.path());
        board(dir.path(), 1100, 30_000);
        let figures = Sample::take(dir.path(), dir.path()).since(&before, Duration::from_secs(10));
        let value = |name: &str| figures.iter().find(|it| it.name == name).map(|it| (it.value, it.unit));
        assert_eq!(value("cpu"), Some((1.0, "/")));
        assert_eq!(value("memory_total"), Some((1_024_000.0, "B")));
        assert_eq!(value("memory_available"), Some((614_400.0, "B")));
        assert_eq!(value("temperature.cpu-thermal"), Some((48.312, "Cel")));
        assert_eq!(value("disk_life_used.mmcblk0"), Some((0.2, "/")));
        assert_eq!(value("disk_reserve.mmcblk0"), Some((1.0, "1")));
        assert_eq!(value("network_received.eth0"), Some((2000.0, "B/s")));
        assert_eq!(value("network_sent.eth0"), Some((0.0, "B/s")));
        assert_eq!(value("uptime"), Some((351.33, "s")));
        assert!(value("network_received.lo").is_none() && value("disk_written.mmcblk0boot0").is_none());
    }

    #[test]
    fn a_board_with_nothing_has_few_figures_and_no_panic() {
        let dir = tempfile::tempdir().unwrap();
        let sample = Sample::take(dir.path(), dir.path());
        let names: Vec<_> = sample.since(&sample, Duration::ZERO).into_iter().map(|it| it.name).collect();
        assert_eq!(names, ["disk_total", "disk_free"]);
        fs::create_dir_all(dir.path().join("proc")).unwrap();
        fs::write(dir.path().join("proc/stat"), "cpu 1 x\n").unwrap();
        assert_eq!(Sample::take(dir.path(), dir.path()).cpu, None);
    }
}
