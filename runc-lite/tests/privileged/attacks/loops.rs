//! The attacks that are races: each is repeated for a number of rounds and tells what it tried. The tests run a
//! few rounds; `examples/attack-loops` as many as one has time for.

use std::fs::{self, File};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::json;

use super::arena::{
    Canary, Racer, armed, assert_nothing_got, bind, digest, empower, let_loose, names, present,
    tried, without_mounts,
};
use crate::bundle::{Bundle, Done, eventually, runtime};

/// What an attack tried: a number and what it counts.
pub(crate) type Tried = Vec<(u64, &'static str)>;

/// Creations under exchange, of which some went as far as their program.
fn counted(runs: usize, ran: usize, exchanges: u64) -> Tried {
    assert!(exchanges > 0, "nothing was exchanged");
    vec![
        (number(runs), "creations"),
        (number(ran), "programs that ran"),
        (exchanges, "exchanges"),
    ]
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap()
}

/// Opens the host's root and hands it to the runtime without close-on-exec, as a careless caller would.
pub(crate) fn leak_host_directories() -> Vec<File> {
    (0..20)
        .map(|_| {
            let file = File::open("/").unwrap();
            rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
            file
        })
        .collect()
}

/// Runs `true` in a container whose init attacks whoever enters, until it has met `victims`, and gives what it
/// said.
pub(crate) fn execs_under_attack(capabilities: &[&str], victims: usize) -> String {
    let mut bundle = armed(&["crawl", "600"]);
    empower(&mut bundle, capabilities);
    let_loose(&bundle);
    for _ in 0..victims * 10 {
        let mut command = bundle.command(&["exec", &bundle.id, "true"]);
        command.env("AXIL_HOST_SECRET", "1");
        // The attacker may keep it from working; that is no way out of the container.
        command.output().unwrap();
        if bundle.output().matches("TRIED").count() >= victims {
            break;
        }
    }
    bundle.output()
}

/// The runtime as a file that may be lost, should an attack get through.
pub(crate) fn own_copy(bundle: &Bundle) -> std::path::PathBuf {
    let copy = bundle.dir.path().join("runtime");
    fs::copy(runtime(), &copy).unwrap();
    copy
}

/// The command line of `bundle` with another binary.
pub(crate) fn by(binary: &std::path::Path, bundle: &Bundle, args: &[&str]) -> Command {
    let plain = bundle.command(args);
    let mut command = Command::new(binary);
    command
        .args(plain.get_args())
        .current_dir(bundle.dir.path())
        .stdin(std::process::Stdio::null());
    command
}

/// Execs and runs while the container's init tries to write to every executable it sees.
pub(crate) fn entries_under_attack(execs: usize) -> String {
    let mut bundle = armed(&["overwrite", "600"]);
    // With every power over the newcomers that a container may have.
    empower(
        &mut bundle,
        &["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_FOWNER"],
    );
    let copy = own_copy(&bundle);
    let before = digest(&copy);
    let_loose(&bundle);
    let seconds = std::time::Instant::now();
    let mut done = 0;
    while done < execs || (tried_so_far(&bundle) == 0 && seconds.elapsed().as_secs() < 10) {
        by(&copy, &bundle, &["exec", &bundle.id, "sleep", "0.01"])
            .output()
            .unwrap();
        done += 1;
    }
    // The handles stay: what was busy while it ran is not any more.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(digest(&copy) == before, "the runtime was overwritten");
    bundle.output()
}

fn tried_so_far(bundle: &Bundle) -> usize {
    bundle.output().matches("SEEN").count()
}

/// CVE-2021-30465, CVE-2024-45310: directory and link change places in a volume while a container with mounts
/// inside that volume is created.
pub(crate) fn creations_under_exchange(runs: usize) -> Tried {
    let canary = Canary::new();
    let mut bundle = Bundle::new("cat /proc/self/mountinfo");
    let volume = bundle.dir.path().join("volume");
    let source = bundle.dir.path().join("source");
    fs::create_dir_all(volume.join("a/b")).unwrap();
    fs::create_dir(&source).unwrap();
    symlink(canary.path(), volume.join("link")).unwrap();
    bind(&mut bundle, &volume, "/mnt", &["rbind"]);
    bundle.set(
        "/mounts/-",
        json!({"destination": "/mnt/a/b/c/d", "type": "tmpfs"}),
    );
    bind(&mut bundle, &source, "/mnt/a/b/e/f", &[]);
    bundle.set("/process/cwd", json!("/mnt/a/b/g/h"));
    bundle.write();
    let undisturbed = mounts_inside(&bundle.call(&["run", &bundle.id]).ok());
    let racer = Racer::exchanging(&volume.join("a"), &volume.join("link"));
    let mut ran = 0;
    for _ in 0..runs {
        // It works or it fails; it never reaches the canary.
        let done = bundle.call(&["run", &bundle.id]);
        if done.code == 0 {
            ran += 1;
            assert_eq!(mounts_inside(&done.out), undisturbed, "{}", done.out);
        }
    }
    let exchanges = racer.finish();
    assert_eq!(names(&volume), ["a", "link"]);
    canary.assert_alive();
    counted(runs, ran, exchanges)
}

/// Mounts of a container that printed its mountinfo. What was mounted outside of its root is not among them, since
/// the kernel leaves out what cannot be reached (proc_pid_mountinfo(5)).
fn mounts_inside(mountinfo: &str) -> usize {
    mountinfo.lines().count()
}

fn host_mounts() -> usize {
    fs::read_to_string("/proc/thread-self/mountinfo")
        .unwrap()
        .lines()
        .count()
}

/// Whole lives of containers for each propagation.
pub(crate) fn lives_leave_no_mount(lives: usize) -> Tried {
    let canary = Canary::new();
    let mut count = 0;
    for propagation in ["rprivate", "rslave", "rshared"] {
        let mut bundle = Bundle::new("true");
        let volume = bundle.dir.path().join("volume");
        fs::create_dir_all(volume.join("inner")).unwrap();
        rustix::mount::mount_bind(&volume, &volume).unwrap();
        let shared = rustix::mount::MountPropagationFlags::SHARED;
        rustix::mount::mount_change(&volume, shared).unwrap();
        let before = host_mounts();
        bind(&mut bundle, &volume, "/mnt", &["rbind", propagation]);
        if propagation != "rshared" {
            // In a shared volume a mount is the host's too, as asked.
            bundle.set(
                "/mounts/-",
                json!({"destination": "/mnt/inner", "type": "tmpfs"}),
            );
        }
        for _ in 0..lives {
            bundle.run().ok();
            count += 1;
        }
        assert_eq!(host_mounts(), before, "{propagation}");
        rustix::mount::unmount(&volume, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    canary.assert_alive();
    vec![(count, "lives")]
}

/// CVE-2025-31133, CVE-2025-62161: the null device changes under the runtime's hands.
pub(crate) fn masks_under_exchange(runs: usize) -> Tried {
    let canary = Canary::new();
    let mut bundle = Bundle::new(&format!(
        "cat /secret; echo '{}' > /secret; cat /proc/kcore | head -c 1",
        present("kernel/core_pattern")
    ));
    without_mounts(&mut bundle, "/dev");
    let dev = bundle.rootfs().join("dev");
    fs::create_dir(&dev).unwrap();
    let (kind, mode) = (rustix::fs::FileType::CharacterDevice, 0o666.into());
    let number = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(rustix::fs::CWD, dev.join("null"), kind, mode, number).unwrap();
    symlink("/proc/sys/kernel/core_pattern", dev.join("evil")).unwrap();
    fs::write(bundle.rootfs().join("secret"), "hidden").unwrap();
    bundle.set("/linux/maskedPaths", json!(["/secret", "/proc/kcore"]));
    bundle.set("/linux/readonlyPaths", json!([]));
    bundle.write();
    let racer = Racer::exchanging(&dev.join("null"), &dev.join("evil"));
    let mut ran = 0;
    for _ in 0..runs {
        let done = bundle.call(&["run", &bundle.id]);
        ran += usize::from(done.code == 0);
        // Neither the file below the mask nor the one that would have been its cover.
        assert_eq!(done.out, "", "{done:?}");
    }
    let exchanges = racer.finish();
    assert_eq!(
        fs::read_to_string(bundle.rootfs().join("secret")).unwrap(),
        "hidden"
    );
    canary.assert_alive();
    counted(runs, ran, exchanges)
}

/// Takes a terminal's master if one was sent.
pub(crate) fn receive_master(listener: &UnixListener) -> Option<OwnedFd> {
    listener.set_nonblocking(true).unwrap();
    let (stream, _) = listener.accept().ok()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0u8; 64];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    rustix::net::recvmsg(
        stream.as_fd(),
        &mut parts,
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )
    .ok()?;
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}

pub(crate) fn with_terminal(script: &str) -> (Bundle, UnixListener) {
    let mut bundle = Bundle::new(script);
    bundle.set("/process/terminal", json!(true));
    let listener = UnixListener::bind(bundle.dir.path().join("tty.sock")).unwrap();
    (bundle, listener)
}

pub(crate) fn create(bundle: &Bundle) -> Done {
    bundle.write();
    bundle.call(&[
        "create",
        "--console-socket",
        "tty.sock",
        "--pid-file",
        "pid",
        &bundle.id,
    ])
}

/// Whether a descriptor is the master of a pseudo-terminal.
fn is_master(fd: &OwnedFd) -> bool {
    let stat = rustix::fs::fstat(fd).unwrap();
    stat.st_rdev == rustix::fs::makedev(5, 2)
}

/// CVE-2025-52565: /dev/pts and /dev/console change places with links while a terminal is made.
pub(crate) fn terminals_under_exchange(runs: usize) -> Tried {
    let canary = Canary::new();
    let (mut bundle, listener) = with_terminal("true");
    without_mounts(&mut bundle, "/dev");
    let dev = bundle.rootfs().join("dev");
    fs::create_dir_all(dev.join("pts")).unwrap();
    fs::write(dev.join("console"), "").unwrap();
    // What /dev/pts and /dev/console change places with.
    fs::create_dir(dev.join("pts.evil")).unwrap();
    symlink(canary.file(), dev.join("pts.evil/0")).unwrap();
    symlink(canary.file(), dev.join("pts.evil/ptmx")).unwrap();
    symlink(canary.file(), dev.join("console.evil")).unwrap();
    bundle.set(
        "/mounts/-",
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
               "options": ["newinstance", "ptmxmode=0666", "mode=0620"]}),
    );
    let racers = [
        Racer::exchanging(&dev.join("pts"), &dev.join("pts.evil")),
        Racer::exchanging(&dev.join("console"), &dev.join("console.evil")),
    ];
    let mut masters = 0u64;
    for _ in 0..runs {
        let created = create(&bundle).code == 0;
        if let Some(master) = receive_master(&listener) {
            assert!(is_master(&master), "something else than a terminal came");
            masters += 1;
        } else {
            assert!(!created, "no terminal, but a container");
        }
        bundle.call(&["delete", "--force", &bundle.id]).ok();
    }
    let exchanges = racers.into_iter().map(Racer::finish).sum();
    canary.assert_alive();
    assert!(exchanges > 0, "nothing was exchanged");
    vec![
        (number(runs), "creations"),
        (masters, "terminals"),
        (exchanges, "exchanges"),
    ]
}

/// As in the advisory of CVE-2021-30465: the neighbour is a container with the same volume, and the link leads to
/// `/`.
pub(crate) fn creations_beside_a_hostile_container(runs: usize) -> Tried {
    let canary = Canary::new();
    let mut hostile = armed(&["exchange", "600", "/volume/target", "/volume/link"]);
    let volume = hostile.dir.path().join("volume");
    fs::create_dir_all(volume.join("target")).unwrap();
    symlink("/", volume.join("link")).unwrap();
    bind(&mut hostile, &volume, "/volume", &["rw"]);
    let before = names(Path::new("/"));
    let mut victim = Bundle::new("cat /proc/self/mountinfo");
    let source = victim.dir.path().join("source");
    fs::create_dir(&source).unwrap();
    bind(&mut victim, &volume, "/volume", &["rw"]);
    bind(&mut victim, &source, "/volume/target", &[]);
    // Through the link this is a place in the canary's directory, which sees what is made there.
    let made = format!("/volume/target{}/made", canary.path().display());
    bind(&mut victim, &source, &made, &[]);
    let undisturbed = mounts_inside(&victim.run().ok());
    let_loose(&hostile);
    let mut ran = 0;
    for _ in 0..runs {
        let done = victim.run();
        if done.code == 0 {
            ran += 1;
            assert_eq!(mounts_inside(&done.out), undisturbed, "{}", done.out);
        }
    }
    // On a busy machine it may not have told how often yet.
    eventually("the attacker counts", || hostile.output().contains("TRIED"));
    let exchanges = tried(&hostile.output(), "exchanges");
    assert_eq!(names(Path::new("/")), before);
    canary.assert_alive();
    counted(runs, ran, number(exchanges))
}

/// A directory that is moved out of the volume between its lookup and its use as the working directory.
pub(crate) fn directories_under_exchange(runs: usize) -> Tried {
    let canary = Canary::new();
    let world = tempfile::tempdir().unwrap();
    let volume = world.path().join("volume");
    let (inside, outside) = (volume.join("work"), world.path().join("outside"));
    fs::create_dir_all(&inside).unwrap();
    fs::create_dir(&outside).unwrap();
    let mut bundle = Bundle::new("readlink /proc/self/cwd; ls ..");
    bind(&mut bundle, &volume, "/volume", &[]);
    bundle.set("/process/cwd", json!("/volume/work"));
    bundle.write();
    let racer = Racer::exchanging(&inside, &outside);
    let mut ran = 0;
    for _ in 0..runs {
        let done = bundle.call(&["run", &bundle.id]);
        if done.code == 0 {
            ran += 1;
            assert!(!done.out.contains("outside"), "{done:?}");
        }
    }
    let exchanges = racer.finish();
    canary.assert_alive();
    counted(runs, ran, exchanges)
}

/// One id that several callers create, start and delete at once.
pub(crate) fn callers_of_one_id(runs: usize) -> Tried {
    let canary = Canary::new();
    let bundle = Bundle::new("sleep 1000");
    bundle.write();
    let verbs: [&[&str]; 4] = [
        &["create"],
        &["start"],
        &["delete", "--force"],
        &["kill", "-a"],
    ];
    std::thread::scope(|scope| {
        for first in 0..3 {
            let (bundle, verbs) = (&bundle, &verbs);
            scope.spawn(move || {
                for round in 0..runs {
                    let mut args = verbs[(first + round) % verbs.len()].to_vec();
                    args.push(&bundle.id);
                    let mut command = bundle.command(&args);
                    let quiet = || std::process::Stdio::null();
                    command.stdout(quiet()).stderr(quiet()).status().unwrap();
                }
            });
        }
    });
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.assert_gone();
    canary.assert_alive();
    vec![(number(runs) * 3, "commands")]
}

/// CVE-2016-9962 as a race of its own: init stops and looks at whoever enters, with and without the power to
/// trace.
pub(crate) fn newcomers_under_attack(victims: usize) -> Tried {
    let canary = Canary::new();
    let leaked = leak_host_directories();
    let mut total = vec![(0, "victims"), (0, "looks"), (0, "system calls traced")];
    for capabilities in [
        &["CAP_KILL"][..],
        &["CAP_KILL", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"],
    ] {
        let out = execs_under_attack(capabilities, victims);
        assert_nothing_got(&out);
        let may_trace = capabilities.contains(&"CAP_SYS_PTRACE");
        assert_eq!(out.contains("TRACED"), may_trace, "{out}");
        for (count, name) in total.iter_mut().zip(["victims", "looks", "steps"]) {
            count.0 += number(tried(&out, name));
        }
    }
    drop(leaked);
    canary.assert_alive();
    total
}

/// CVE-2019-5736 under many entries.
pub(crate) fn executables_under_attack(execs: usize) -> Tried {
    let canary = Canary::new();
    let out = entries_under_attack(execs);
    assert_nothing_got(&out);
    canary.assert_alive();
    let seen = out.matches("SEEN").count();
    vec![
        (number(execs), "entries"),
        (number(seen), "executables attacked"),
    ]
}
