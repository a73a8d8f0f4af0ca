//! What this machine can do, and the looks at its files that a container's document needs.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use crate::domain::container::oci::{DeviceKind, HostDevice, HostFacts};
use crate::domain::container::seccomp::{Arch, MAX_PROFILE_BYTES, Seccomp, parse_localhost};
use crate::domain::container::spec::{DeviceSpec, MountSpec};
use crate::domain::failure::{Class, Failure};
use crate::engine::spawn::blocking;

pub mod apparmor;
pub mod cdi;
pub mod selinux;

/// Names of the capabilities by number (capabilities(7), include/uapi/linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Deepest directory below /dev that is looked into for devices.
const DEVICE_DEPTH: usize = 4;

/// Most devices a directory asked for may hold.
const MAX_DEVICES: usize = 4096;

/// Most bytes of a small kernel file.
const SMALL: u64 = 64 << 10;

/// Looks at the machine once, at start-up. What cannot be read counts as absent.
#[must_use]
pub fn facts() -> HostFacts {
    let mountinfo = read_small("/proc/self/mountinfo").unwrap_or_default();
    let unified = mountinfo.lines().find(|line| {
        line.split(' ').nth(4) == Some("/sys/fs/cgroup") && line.contains(" - cgroup2 ")
    });
    let bounding = status_field("CapBnd").and_then(|hex| u64::from_str_radix(&hex, 16).ok());
    let bounding_capabilities = capability_names(bounding.unwrap_or(0));
    let privileged_oom = bounding_capabilities.contains("CAP_SYS_RESOURCE");
    let own_oom = read_small("/proc/self/oom_score_adj").and_then(|text| text.trim().parse().ok());
    let mut all_devices = Vec::new();
    // Ignored: a device that vanishes while it is looked at is not there.
    let _partial = collect_devices(Path::new("/dev"), "/dev", "rwm", 0, &mut all_devices);
    HostFacts {
        arch: Arch::native(),
        hostname: read_small("/proc/sys/kernel/hostname")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        cgroup_v2: unified.is_some(),
        cgroup2_options: unified.map(cgroup2_options).unwrap_or_default(),
        hugetlb: hugetlb_sizes(),
        swap: swap_limits(unified.is_some()),
        bounding_capabilities,
        oom_score_adj_floor: if privileged_oom {
            -1000
        } else {
            own_oom.unwrap_or(0)
        },
        seccomp: status_field("Seccomp").is_some(),
        apparmor: read_small("/sys/module/apparmor/parameters/enabled")
            .is_some_and(|text| text.starts_with('Y')),
        apparmor_default: None,
        selinux: selinux::facts(),
        // Known when the OCI runtime was asked as well.
        recursive_read_only: kernel_at_least(5, 12),
        no_user_namespaces: None,
        all_devices,
    }
}

fn read_small(path: &str) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path)
        .ok()?
        .take(SMALL * 16)
        .read_to_string(&mut text)
        .ok()?;
    Some(text)
}

fn status_field(name: &str) -> Option<String> {
    let status = read_small("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.map(|value| value.trim().to_owned())
}

fn capability_names(bits: u64) -> BTreeSet<String> {
    let has = |number: &usize| bits & (1 << number) != 0;
    (0..CAPABILITIES.len())
        .filter(has)
        .map(|number| CAPABILITIES[number].to_owned())
        .collect()
}

fn cgroup2_options(mountinfo_line: &str) -> Vec<String> {
    let options = mountinfo_line.rsplit(' ').next().unwrap_or_default();
    let kept = ["nsdelegate", "memory_recursiveprot"];
    options
        .split(',')
        .filter(|one| kept.contains(one))
        .map(str::to_owned)
        .collect()
}

/// Huge page sizes that the kernel can limit per cgroup, in the form of its file names ("2MB").
fn hugetlb_sizes() -> BTreeSet<String> {
    let mut sizes = BTreeSet::new();
    for dir in [
        "/sys/fs/cgroup/hugetlb",
        "/sys/fs/cgroup/unified",
        "/sys/fs/cgroup",
    ] {
        let Ok(entries) = fs::read_dir(dir) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let size = name
                .strip_prefix("hugetlb.")
                .and_then(|rest| rest.split('.').next());
            sizes.extend(size.map(str::to_owned));
        }
    }
    sizes
}

fn swap_limits(cgroup_v2: bool) -> bool {
    if cgroup_v2 {
        // The root has no limit files; kernels since 5.8 account for swap without an option.
        return kernel_at_least(5, 8);
    }
    Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists()
}

fn kernel_at_least(major: u32, minor: u32) -> bool {
    let release = read_small("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(['.', '-'])
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    found >= (major, minor)
}

/// Reads the seccomp profile a container names, never following to more than a bounded plain file.
///
/// # Errors
/// `InvalidArgument` naming the path, when it is not absolute, missing, no plain file, too large or bad.
pub async fn read_seccomp_profile(path: &str, arch: Arch) -> Result<Seccomp, Failure> {
    let path = path.to_owned();
    blocking("read a seccomp profile", move || {
        let wrong = |why: String| {
            Failure::invalid("linux.security_context.seccomp.localhost_ref", &path, why)
        };
        if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return Err(wrong("must be an absolute path without ..".to_owned()));
        }
        let meta = fs::metadata(&path).map_err(|error| wrong(error.to_string()))?;
        if !meta.is_file() {
            return Err(wrong("is not a regular file".to_owned()));
        }
        let file = fs::File::open(&path).map_err(|error| wrong(error.to_string()))?;
        let mut bytes = Vec::new();
        let limit = u64::try_from(MAX_PROFILE_BYTES).unwrap_or(u64::MAX);
        let read = file.take(limit + 1).read_to_end(&mut bytes);
        read.map_err(|error| wrong(error.to_string()))?;
        parse_localhost(&bytes, arch).map_err(|error| wrong(error.to_string()))
    })
    .await
}

/// Looks up the devices a container asks for; a directory stands for all devices below it.
///
/// # Errors
/// `InvalidArgument` naming the path, when it is missing or no device.
pub async fn resolve_devices(devices: &[DeviceSpec]) -> Result<Vec<HostDevice>, Failure> {
    if devices.is_empty() {
        return Ok(Vec::new());
    }
    let devices = devices.to_vec();
    blocking("look up devices", move || {
        let mut found = Vec::new();
        for device in &devices {
            let DeviceSpec {
                container_path,
                host_path,
                permissions,
            } = device;
            let wrong = |why: String| Failure::invalid("devices.host_path", host_path, why);
            // A link such as /dev/disk/by-id/… stands for the device it leads to.
            let real = fs::canonicalize(host_path).map_err(|error| wrong(error.to_string()))?;
            let before = found.len();
            collect_devices(&real, container_path, permissions, 0, &mut found)
                .map_err(|error| wrong(error.to_string()))?;
            if found.len() == before {
                return Err(wrong(
                    "is neither a device nor a directory with devices".to_owned(),
                ));
            }
        }
        Ok(found)
    })
    .await
}

fn collect_devices(
    path: &Path,
    container_path: &str,
    permissions: &str,
    depth: usize,
    found: &mut Vec<HostDevice>,
) -> std::io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    let kind = meta.file_type();
    if kind.is_dir() && depth < DEVICE_DEPTH {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            // Terminals and shared memory of the host are never a container's.
            if depth == 0 && matches!(name.as_str(), "pts" | "shm" | "mqueue" | "fd" | "console") {
                continue;
            }
            let below = format!("{}/{name}", container_path.trim_end_matches('/'));
            collect_devices(&entry.path(), &below, permissions, depth + 1, found)?;
        }
        return Ok(());
    }
    let kind = if kind.is_char_device() {
        DeviceKind::Char
    } else if kind.is_block_device() {
        DeviceKind::Block
    } else {
        return Ok(());
    };
    if found.len() >= MAX_DEVICES {
        return Err(std::io::Error::other(format!(
            "more than {MAX_DEVICES} devices"
        )));
    }
    let number = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    found.push(HostDevice {
        container_path: container_path.to_owned(),
        kind,
        major: number(nix::sys::stat::major(meta.rdev())),
        minor: number(nix::sys::stat::minor(meta.rdev())),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        permissions: permissions.to_owned(),
    });
    Ok(())
}

/// Checks that what a container mounts from the node is there.
///
/// # Errors
/// `InvalidArgument` naming the path.
pub async fn check_mount_sources(mounts: &[MountSpec]) -> Result<(), Failure> {
    let paths = mounts.iter().filter(|mount| mount.image.is_none());
    let paths: Vec<String> = paths.map(|mount| mount.host_path.clone()).collect();
    blocking("look at volumes", move || {
        for path in &paths {
            if let Err(error) = fs::metadata(path) {
                return Err(Failure::invalid("mounts.host_path", path, error));
            }
        }
        Ok(())
    })
    .await
}

/// Reads the pid a runtime wrote.
///
/// # Errors
/// `FailedPrecondition` when there is none.
pub fn read_pid_file(path: &Path) -> Result<u32, Failure> {
    let text = fs::read_to_string(path).ok();
    let pid = text.and_then(|text| text.trim().parse().ok());
    pid.ok_or_else(|| {
        Failure::new(
            Class::FailedPrecondition,
            format!("no pid in {}", path.display()),
        )
    })
}

/// The OCI document of a bundle, for people who look into it; none when there is none.
pub async fn read_document(bundle: &Path) -> Option<serde_json::Value> {
    let text = tokio::fs::read(bundle.join("config.json")).await.ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_bits_become_names() {
        let names = capability_names(1 | 1 << 21);
        assert_eq!(
            names.into_iter().collect::<Vec<_>>(),
            ["CAP_CHOWN", "CAP_SYS_ADMIN"]
        );
    }

    #[test]
    fn a_device_directory_gives_its_devices() {
        let mut found = Vec::new();
        collect_devices(Path::new("/dev/null"), "/dev/x", "r", 0, &mut found).unwrap();
        assert_eq!((found[0].major, found[0].minor), (1, 3));
        assert_eq!(found[0].container_path, "/dev/x");
    }
}
