//! What containers need of the kernel.

use std::{fs, path::Path};

use container_engine::cgroup::Cgroups;

use super::{Check, check};

/// Controllers that limits stand on.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "memory", "pids", "io"];

/// All checks of this file.
pub fn checks() -> Vec<Check> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    vec![
        controllers(),
        memory(&read("/proc/cgroups"), &read("/proc/cmdline"), boot_file()),
        overlay(&read("/proc/filesystems")),
        user_namespaces(&read("/proc/sys/user/max_user_namespaces")),
        seccomp(&read("/proc/sys/kernel/seccomp/actions_avail")),
        nf_tables(),
    ]
}

fn controllers() -> Check {
    let remedy = "boot with these controllers enabled, or a kernel that has them";
    let cgroups = match Cgroups::detect() {
        Ok(cgroups) => cgroups,
        Err(error) => {
            return check("cgroups", false, error.to_string(), "mount a cgroup file system on /sys/fs/cgroup");
        }
    };
    // Version 1 calls it otherwise.
    let has = |name: &str| cgroups.has(name) || (name == "io" && cgroups.has("blkio"));
    let missing: Vec<_> = CONTROLLERS.into_iter().filter(|name| !has(name)).collect();
    let found = match (&missing[..], cgroups.limits_swap()) {
        ([], true) => format!("{:?}, all controllers", cgroups.mode()),
        ([], false) => format!("{:?}, all controllers; swap cannot be limited", cgroups.mode()),
        (missing, _) => format!("{:?}, without {}", cgroups.mode(), missing.join(", ")),
    };
    check("controllers", missing.is_empty(), found.to_lowercase(), remedy)
}

/// A Raspberry Pi's firmware switches the memory controller off.
fn memory(cgroups: &str, cmdline: &str, boot: Option<&str>) -> Check {
    let line = cgroups.lines().find(|line| line.starts_with("memory"));
    let is_off = line.is_some_and(|line| line.split_whitespace().nth(3) == Some("0"));
    let file = boot.unwrap_or("the kernel's command line");
    let remedy = format!("add `cgroup_enable=memory cgroup_memory=1` to the one line of {file}, and reboot");
    let found = match (is_off, cmdline.contains("cgroup_disable=memory")) {
        (false, _) => "memory of containers can be limited",
        (true, true) => "the memory controller is switched off by cgroup_disable=memory",
        (true, false) => "the memory controller is switched off",
    };
    check("memory", !is_off, found, &remedy)
}

/// Where a Raspberry Pi has its command line.
fn boot_file() -> Option<&'static str> {
    ["/boot/firmware/cmdline.txt", "/boot/cmdline.txt"].into_iter().find(|path| Path::new(path).exists())
}

fn overlay(filesystems: &str) -> Check {
    let is_there = filesystems.lines().any(|line| line.trim() == "overlay" || line.ends_with("\toverlay"))
        || has_module("overlay");
    let found = if is_there { "overlayfs" } else { "no overlayfs: images are copied for each container" };
    check("overlayfs", is_there, found, "load the module `overlay`, or use a kernel that has it")
}

fn user_namespaces(max: &str) -> Check {
    let is_on = max.trim().parse::<u64>().is_ok_and(|max| max > 0);
    let found = if is_on { "user namespaces" } else { "no user namespaces: --userns auto does not work" };
    check("userns", is_on, found, "sysctl user.max_user_namespaces=15000, or a kernel with CONFIG_USER_NS")
}

fn seccomp(actions: &str) -> Check {
    let is_on = actions.split_whitespace().any(|action| action == "errno");
    let found = if is_on { "system calls can be filtered" } else { "system calls cannot be filtered" };
    check("seccomp", is_on, found, "use a kernel with CONFIG_SECCOMP_FILTER")
}

fn nf_tables() -> Check {
    let is_there = container_engine::network::has_nf_tables();
    let found = if is_there { "nf_tables" } else { "no nf_tables: containers have no way out, and no ports" };
    check("nf_tables", is_there, found, "load the modules `nf_tables`, `nft_masq` and `nft_nat`, or use --network host")
}

/// Loaded, built in, or there to be loaded.
fn has_module(name: &str) -> bool {
    if Path::new("/sys/module").join(name).exists() {
        return true;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let dir = Path::new("/lib/modules").join(release.trim());
    let named = |line: &str| line.contains(&format!("/{name}.ko"));
    ["modules.builtin", "modules.dep"]
        .into_iter()
        .any(|file| fs::read_to_string(dir.join(file)).is_ok_and(|text| text.lines().any(named)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_controller_that_is_off_has_an_exact_remedy() {
        let table =
            |on: &str| format!("#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t5\t1\nmemory\t0\t5\t{on}\n");
        assert!(memory(&table("1"), "", None).ok);
        assert!(memory("", "", None).ok);
        let off = memory(&table("0"), "console=tty1 cgroup_disable=memory", Some("/boot/firmware/cmdline.txt"));
        let remedy = off.remedy.unwrap();
        assert!(
            remedy.contains("cgroup_enable=memory cgroup_memory=1") && remedy.contains("/boot/firmware/cmdline.txt")
        );
        assert!(off.found.contains("cgroup_disable=memory"));
    }

    #[test]
    fn what_the_kernel_lacks_is_told() {
        assert!(overlay("nodev\tsysfs\nnodev\toverlay\n").ok);
        assert!(user_namespaces("15000\n").ok);
        assert!(!user_namespaces("0\n").ok && !user_namespaces("").ok);
        assert!(seccomp("kill_process trap errno allow\n").ok);
        assert!(!seccomp("").ok);
    }
}
