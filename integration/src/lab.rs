//! A private place for one test: namespaces, a short directory, a cgroup of its own, images to pull.
//!
//! Closing it empties the node and lets the leak check compare; dropping it without that (a failed test)
//! removes everything by force, and only what is below this process, this directory and this cgroup.

use std::cell::OnceCell;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, umount2};

use crate::binaries::Binaries;
use crate::build::PodBuilder;
use crate::guard::{self, Need};
use crate::hosts::HostsDir;
use crate::images::busybox;
use crate::isolate::isolate;
use crate::kernel::Cgroup;
use crate::leakcheck::{self, Snapshot};
use crate::node::{Node, NodeOptions};
use crate::registry::{Registry, RegistryOptions};
use crate::shelf::Shelf;
use crate::{children, say};

/// What every system test needs.
const NEEDS: &[Need] = &[
    Need::Root,
    Need::Program("ip"),
    Need::Program("nft"),
    Need::Program("busybox"),
    Need::Path("/proc/self/ns/net"),
];

/// Who makes the cgroups of pods: `systemd`, or else axil itself.
pub const CGROUP_DRIVER: &str = "AXIL_TEST_CGROUP_DRIVER";

/// Labs of one process follow each other: the process tree is one of their oracles.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The place.
#[derive(Debug)]
pub struct Lab {
    ground: Ground,
    binaries: Binaries,
    before: Snapshot,
    shelf: OnceCell<Shelf>,
    _turn: std::sync::MutexGuard<'static, ()>,
}

impl Lab {
    /// Opens a lab, or prints why this test cannot run here.
    ///
    /// # Panics
    /// When the lab must open (see [`guard::ready`]) or cannot be set up.
    #[must_use]
    pub fn open() -> Option<Self> {
        Self::open_needing(&[])
    }

    /// Opens a lab for a test with more needs than usual.
    ///
    /// # Panics
    /// As [`Lab::open`].
    #[must_use]
    pub fn open_needing(needs: &[Need]) -> Option<Self> {
        let ready = guard::ready(NEEDS) && guard::ready(needs);
        ready.then(|| Self::set_up().unwrap_or_else(|error| panic!("set up the lab: {error:#}")))
    }

    fn set_up() -> Result<Self> {
        let turn = ONE_AT_A_TIME
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // Order: cargo may need the network of the machine, so the binaries come first.
        let binaries = Binaries::for_tests()?;
        isolate()?;
        children::adopt_orphans()?;
        let ground = Ground::claim("t")?;
        ground.clear_on_signal();
        let before = Snapshot::take(&ground)?;
        Ok(Self {
            ground,
            binaries,
            before,
            shelf: OnceCell::new(),
            _turn: turn,
        })
    }

    /// The directory everything of this lab is below.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.ground.dir
    }

    /// The directory and the cgroup.
    #[must_use]
    pub fn ground(&self) -> &Ground {
        &self.ground
    }

    /// The binaries under test.
    #[must_use]
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The lab's registry in memory, started with its first use.
    ///
    /// # Panics
    /// When no port can be bound.
    pub fn shelf(&self) -> &Shelf {
        self.shelf
            .get_or_init(|| Shelf::start().expect("a loopback port can be bound"))
    }

    /// The reference of a small image with a shell, on the lab's shelf.
    ///
    /// # Panics
    /// When the image cannot be built.
    pub fn busybox(&self) -> String {
        let image = busybox::image().unwrap_or_else(|error| panic!("build busybox: {error:#}"));
        self.shelf().put("axil/busybox", "1", &image)
    }

    /// Starts Debian's docker-registry; its files are below the lab.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn registry(&self, options: RegistryOptions) -> Registry {
        Registry::start(&self.unused("registry"), options)
            .unwrap_or_else(|error| panic!("start a registry: {error:#}"))
    }

    /// The registry host files every node of this lab reads.
    ///
    /// # Panics
    /// When the directory cannot be created.
    #[must_use]
    pub fn hosts(&self) -> HostsDir {
        HostsDir::create(&self.dir().join("certs.d"))
            .unwrap_or_else(|error| panic!("create the hosts directory: {error:#}"))
    }

    /// A node with the built-in network.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn node(&self) -> Node {
        self.node_with(NodeOptions::default())
    }

    /// A node with the built-in network that has a small image with a shell; answers its reference too.
    ///
    /// # Panics
    /// When it does not start or cannot pull.
    #[must_use]
    pub fn node_with_busybox(&self) -> (Node, String) {
        let (node, image) = (self.node(), self.busybox());
        node.pull(&image)
            .unwrap_or_else(|status| panic!("pull {image}: {status}"));
        (node, image)
    }

    /// A node with options.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn node_with(&self, options: NodeOptions) -> Node {
        Node::start(&self.ground, &self.binaries, options)
            .unwrap_or_else(|error| panic!("start the node: {error:#}"))
    }

    /// A pod that logs below the lab, in a directory made as the kubelet makes it.
    ///
    /// # Panics
    /// When the directory cannot be created.
    #[must_use]
    pub fn pod(&self, name: &str) -> PodBuilder {
        let logs = self.dir().join("logs").join(name);
        fs::create_dir_all(&logs).unwrap_or_else(|e| panic!("create {}: {e}", logs.display()));
        PodBuilder::new(name, &logs.to_string_lossy())
    }

    /// The cgroup of a container in a pod that was given no cgroup parent, past the daemon.
    #[must_use]
    pub fn cgroup_of(&self, pod: &str, container: &str) -> Cgroup {
        let below = self.ground.cgroup();
        Cgroup(match self.ground.slice() {
            None => format!("{below}/{pod}/{container}"),
            Some(slice) => {
                let pods = slice.trim_end_matches(".slice");
                format!("{below}/{pods}-{pod}.slice/axil-{container}.scope")
            }
        })
    }

    /// A path below the lab that nothing uses yet.
    #[must_use]
    pub fn unused(&self, name: &str) -> PathBuf {
        let mut path = self.dir().join(name);
        let mut count = 1;
        while path.exists() {
            count += 1;
            path = self.dir().join(format!("{name}-{count}"));
        }
        path
    }

    /// Removes every pod and image of the node and fails the test if anything else is left.
    ///
    /// # Panics
    /// When something cannot be removed, or is left.
    pub fn close(self, node: Node) {
        node.empty()
            .unwrap_or_else(|error| panic!("empty the node: {error:#}"));
        self.assert_clean(&node);
        let mut node = node;
        let status = node.term();
        assert!(
            status.is_none_or(|s| s.success()),
            "axild ended with {status:?} on SIGTERM"
        );
        assert!(!node.socket().exists(), "the socket is left");
    }

    /// Fails the test if the node, which was emptied, left anything.
    ///
    /// # Panics
    /// When something is left; the message lists it.
    pub fn assert_clean(&self, node: &Node) {
        let leaks = self.leaks(node);
        assert!(leaks.is_empty(), "left behind:\n  {}", leaks.join("\n  "));
    }

    /// What an emptied node left.
    #[must_use]
    pub fn leaks(&self, node: &Node) -> Vec<String> {
        leakcheck::leaks(&self.ground, &self.before, node)
    }
}

/// A directory and a cgroup name no other test uses; both are cleared when dropped.
#[derive(Debug)]
pub struct Ground {
    dir: PathBuf,
    cgroup: String,
    keep: bool,
}

impl Ground {
    /// Claims a short directory below `/tmp` and the cgroup `/axil-<kind>-<pid>-<n>`, or where
    /// [`CGROUP_DRIVER`] says so a slice of such a name.
    ///
    /// # Errors
    /// When the directory cannot be created.
    pub fn claim(kind: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!(
            "{kind}-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        // Short: socket paths below it are limited to 107 bytes (unix(7)).
        let dir = PathBuf::from(format!("/tmp/axil-{unique}"));
        fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        // A dash in the name of a slice is a level of the tree (systemd.slice(5)).
        let cgroup = match env::var_os(CGROUP_DRIVER) {
            Some(driver) if driver == "systemd" => {
                format!("/axil_{}.slice", unique.replace('-', "_"))
            }
            _ => format!("/axil-{unique}"),
        };
        Ok(Self {
            dir,
            cgroup,
            keep: false,
        })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cgroup every pod is below, from the root of each hierarchy.
    #[must_use]
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// That cgroup as a unit, where systemd makes the cgroups.
    #[must_use]
    pub fn slice(&self) -> Option<&str> {
        let name = self.cgroup.trim_start_matches('/');
        name.ends_with(".slice").then_some(name)
    }

    /// Leaves everything as it is when dropped.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Clears the ground when this process is told to end, by a test runner or by a person.
    pub fn clear_on_signal(&self) {
        let ground = Self {
            dir: self.dir.clone(),
            cgroup: self.cgroup.clone(),
            keep: true,
        };
        thread::spawn(move || {
            if wait_for_signal().is_ok() {
                say::err("interrupted; removing everything");
                ground.clear();
                leave();
            }
        });
    }

    /// Kills what this process left running, unmounts, removes cgroups and files.
    pub fn clear(&self) {
        children::kill_descendants();
        for mount in leakcheck::mounts_below(&self.dir).iter().rev() {
            let _ = umount2(
                Path::new(mount),
                MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW,
            );
        }
        if let Some(slice) = self.slice() {
            // Ignored: a slice that was never started is not there; what is left is removed below.
            let _ = Command::new("systemctl")
                .args(["--quiet", "stop", slice])
                .stderr(Stdio::null())
                .status();
        }
        leakcheck::remove_cgroups(&self.cgroup);
        if let Err(error) = fs::remove_dir_all(&self.dir)
            && self.dir.exists()
        {
            say::err(format!("cannot remove {}: {error}", self.dir.display()));
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if !self.keep {
            self.clear();
        }
    }
}

fn wait_for_signal() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let reactor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    reactor.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}

#[expect(
    clippy::exit,
    reason = "the thread that runs the test cannot be unwound from here"
)]
fn leave() {
    std::process::exit(130);
}
