//! The bundle all contestants run: what docker would ask for, with its default seccomp profile.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::images::busybox;

/// The profile of docker and podman as Debian's golang-github-containers-common installs it.
pub const PROFILE: &str = "/usr/share/containers/seccomp.json";

/// docker's default capabilities.
const CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// A directory with a document and a root file system.
#[derive(Debug)]
pub struct Bundle {
    dir: PathBuf,
    text: String,
}

impl Bundle {
    /// Makes it in `dir`, for a container below `cgroup` that runs `args` of busybox.
    ///
    /// # Errors
    /// When busybox or the profile is missing.
    pub fn make(dir: &Path, cgroup: &str, args: &[&str]) -> Result<Self> {
        let bin = dir.join("rootfs/bin");
        fs::create_dir_all(&bin).with_context(|| format!("make {}", bin.display()))?;
        for name in ["dev", "etc", "proc", "sys"] {
            fs::create_dir(dir.join("rootfs").join(name))?;
        }
        fs::copy(busybox::program()?, bin.join("busybox")).context("copy busybox")?;
        for applet in ["cat", "sleep", "true"] {
            symlink("busybox", bin.join(applet))?;
        }
        let path = dir.join("config.json");
        fs::write(&path, document(cgroup, args)?.to_string())
            .with_context(|| format!("write {}", path.display()))?;
        Ok(Self {
            dir: dir.to_owned(),
            text: dir.to_string_lossy().into_owned(),
        })
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.text
    }

    /// Its document.
    #[must_use]
    pub fn document(&self) -> PathBuf {
        self.dir.join("config.json")
    }
}

fn document(cgroup: &str, args: &[&str]) -> Result<Value> {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            },
        },
        "root": { "path": "rootfs" },
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "cgroupsPath": format!("{cgroup}/box"),
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" },
                { "type": "uts" }, { "type": "mount" },
            ],
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }],
                "memory": { "limit": 268_435_456 },
                "cpu": { "shares": 512 },
                "pids": { "limit": 100 },
            },
            "seccomp": seccomp()?,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi",
                "/sys/firmware",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    }))
}

/// The profile as an engine resolves it: the rules for this machine and these capabilities.
fn seccomp() -> Result<Value> {
    let text = fs::read(PROFILE).with_context(|| format!("read {PROFILE}"))?;
    let profile: Value = serde_json::from_slice(&text).with_context(|| PROFILE.to_owned())?;
    let (arch, architectures) = match std::env::consts::ARCH {
        "aarch64" => ("arm64", json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"])),
        _ => (
            "amd64",
            json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        ),
    };
    let rules = profile["syscalls"].as_array().into_iter().flatten();
    let rules: Vec<Value> = rules
        .filter(|rule| applies(rule, arch))
        .map(|rule| {
            let mut rule = rule.clone();
            if let Some(rule) = rule.as_object_mut() {
                let known = ["names", "action", "errnoRet", "args"];
                rule.retain(|key, value| known.contains(&key.as_str()) && !value.is_null());
            }
            rule
        })
        .collect();
    Ok(json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"].as_u64().unwrap_or(1),
        "architectures": architectures,
        "syscalls": rules,
    }))
}

/// Whether a rule is for this architecture and docker's default capabilities.
fn applies(rule: &Value, arch: &str) -> bool {
    let words = |set: &str, key: &str| -> Vec<&str> {
        let list = rule[set][key].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).collect()
    };
    let (arches, capabilities) = (words("includes", "arches"), words("includes", "caps"));
    (arches.is_empty() || arches.contains(&arch))
        && capabilities.iter().all(|c| CAPABILITIES.contains(c))
        && !words("excludes", "arches").contains(&arch)
        && !words("excludes", "caps")
            .iter()
            .any(|c| CAPABILITIES.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_chosen_by_architecture_and_capability() {
        let rule = |text: &str| applies(&serde_json::from_str(text).unwrap(), "amd64");
        assert!(rule(r#"{"names":["read"]}"#));
        assert!(rule(r#"{"includes":{"arches":["amd64"]},"excludes":{}}"#));
        assert!(!rule(r#"{"includes":{"arches":["s390x"]}}"#));
        assert!(!rule(r#"{"includes":{"caps":["CAP_SYS_ADMIN"]}}"#));
        assert!(rule(r#"{"excludes":{"caps":["CAP_SYS_ADMIN"]}}"#));
        assert!(!rule(r#"{"excludes":{"caps":["CAP_CHOWN"]}}"#));
    }
}
