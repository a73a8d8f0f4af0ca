//! Whether a privileged test can run here: it runs, is skipped with a printed reason, or fails where it has to
//! run.
//!
//! `AXIL_TEST_REQUIRE=1` says that this machine has what every test needs. `AXIL_TEST_HAS` lists what else it
//! has, by the names of [`Need`] with commas between: `cgroup-v2,systemd,apparmor` inside the VM lane. A test
//! that needs one of these and does not find it fails instead of being skipped.
//!
//! `AXIL_TEST_CGROUP_DRIVER` says who makes the containers' cgroups: `cgroupfs`, which is the default, or
//! `systemd`.

use std::path::Path;

use runc_lite::cgroup::Hierarchies;

const REQUIRE: &str = "AXIL_TEST_REQUIRE";
const HAS: &str = "AXIL_TEST_HAS";
const DRIVER: &str = "AXIL_TEST_CGROUP_DRIVER";
pub(super) const BUSYBOX: &str = "/usr/bin/busybox";

/// What some machines have and others cannot have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Controllers of cgroup v1.
    CgroupV1,
    /// The unified tree alone, with every controller in it.
    CgroupV2,
    /// systemd as process 1, which can be asked for units.
    Systemd,
    /// That the runtime makes the cgroups itself in this run.
    CgroupfsDriver,
    /// An active AppArmor and the program that loads profiles.
    AppArmor,
}

impl Need {
    const ALL: [Need; 5] = [
        Need::CgroupV1,
        Need::CgroupV2,
        Need::CgroupfsDriver,
        Need::Systemd,
        Need::AppArmor,
    ];

    fn name(self) -> &'static str {
        match self {
            Need::CgroupV1 => "cgroup-v1",
            Need::CgroupV2 => "cgroup-v2",
            Need::CgroupfsDriver => "cgroupfs-driver",
            Need::Systemd => "systemd",
            Need::AppArmor => "apparmor",
        }
    }

    /// Why this machine does not have it.
    fn missing(self) -> Option<&'static str> {
        let version = || Hierarchies::of_this_host().unwrap().version();
        let (found, reason) = match self {
            Need::CgroupV1 => (
                version() == Some(1),
                "the host has no cgroup v1 controllers",
            ),
            Need::CgroupV2 => (
                Path::new("/sys/fs/cgroup/cgroup.controllers").exists() && version() == Some(2),
                "the host is not on cgroup v2 alone",
            ),
            Need::CgroupfsDriver => (!systemd_driver(), "systemd makes the cgroups in this run"),
            Need::Systemd => (
                Path::new("/run/systemd/system").is_dir()
                    && Path::new("/run/dbus/system_bus_socket").exists(),
                "systemd is not the init process here",
            ),
            Need::AppArmor => (
                std::fs::read("/sys/module/apparmor/parameters/enabled")
                    .is_ok_and(|text| text.starts_with(b"Y"))
                    && ["/sbin/apparmor_parser", "/usr/sbin/apparmor_parser"]
                        .iter()
                        .any(|path| Path::new(path).exists()),
                "AppArmor is not active here, or apparmor_parser is not installed",
            ),
        };
        (!found).then_some(reason)
    }

    /// Whether the environment says that this machine has it.
    fn promised(self) -> bool {
        let names = std::env::var(HAS).unwrap_or_default();
        let mut names = names.split(',').filter(|name| !name.is_empty());
        let known = |name: &str| Need::ALL.iter().any(|need| need.name() == name);
        names
            .clone()
            .for_each(|name| assert!(known(name), "{HAS} names {name:?}, which is nothing"));
        names.any(|name| name == self.name())
    }
}

/// Whether systemd makes the cgroups of the containers in this run.
pub(crate) fn systemd_driver() -> bool {
    match std::env::var(DRIVER).as_deref() {
        Ok("systemd") => true,
        Ok("cgroupfs") | Err(_) => false,
        Ok(other) => panic!("{DRIVER}={other:?} is no cgroup driver"),
    }
}

/// Whether this test can run here. Prints why not, and fails instead where the machine must be able to.
/// The calling thread gets a mount namespace of its own.
pub(crate) fn ready_with(needs: &[Need]) -> bool {
    let driver = if systemd_driver() {
        &[Need::Systemd][..]
    } else {
        &[]
    };
    let mut all = driver.iter().chain(needs);
    let unmet = all.find_map(|n| Some((n, n.missing()?)));
    let (reason, must_run) = if !rustix::process::geteuid().is_root() {
        ("it needs root", required())
    } else if !Path::new(BUSYBOX).exists() {
        ("it needs /usr/bin/busybox (busybox-static)", required())
    } else if Hierarchies::of_this_host().unwrap().version().is_none() {
        ("it needs a cgroup file system", required())
    } else if let Some((need, reason)) = unmet {
        (reason, need.promised())
    } else {
        private_mounts();
        return true;
    };
    assert!(!must_run, "cannot run: {reason}");
    println!("skipped: {reason}");
    false
}

fn required() -> bool {
    std::env::var(REQUIRE).as_deref() == Ok("1")
}

fn private_mounts() {
    if let Err(error) = runc_lite::sys::unshare(0x0002_0000) {
        panic!("no mount namespace: {error}");
    }
    let root = std::fs::File::open("/").unwrap();
    let private = runc_lite::sys::MountAttributes {
        propagation: libc::MS_PRIVATE,
        ..Default::default()
    };
    runc_lite::sys::mount_setattr(std::os::fd::AsFd::as_fd(&root), c"", true, private).unwrap();
}
