//! SELinux: whether it is on, whether the policy knows a context, and the labels of files.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    CWD, Dir, FileType, Mode, OFlags, ResolveFlags, XattrFlags, fstat, openat, openat2,
};
use rustix::io::Errno;

use super::read_small;
use crate::domain::failure::{Class, Failure};
use crate::domain::selinux::{Contexts, Selinux};
use crate::engine::spawn::blocking;

/// Where the kernel takes questions about its policy.
const SELINUXFS: &str = "/sys/fs/selinux";

/// Contexts of containers that the package container-selinux brings, before those of the policy itself.
const CONTEXTS: &str = "/usr/share/containers/selinux/contexts";

/// The extended attribute with a file's context.
const LABEL: &str = "security.selinux";

/// Longest context read, in bytes.
const MAX_CONTEXT: usize = 4096;

/// Deepest directory of a volume that is relabelled: no path of the kernel's length goes deeper.
const MAX_DEPTH: usize = 2048;

/// Directories of the node that are never relabelled, though what is below them may be: nothing of the node would
/// work any more.
const KEPT: [&str; 24] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
];

/// Trees of the kernel and of programs, of which nothing is relabelled.
const KEPT_WHOLE: [&str; 8] = [
    "/bin", "/boot", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr",
];

/// Looks whether SELinux is on and what contexts containers have.
#[must_use]
pub fn facts() -> Selinux {
    if !Path::new(SELINUXFS).join("enforce").exists() {
        return Selinux::Off;
    }
    let config = read_small("/etc/selinux/config").unwrap_or_default();
    let policy = config
        .lines()
        .find_map(|line| line.strip_prefix("SELINUXTYPE="));
    let of_policy =
        policy.map(|name| format!("/etc/selinux/{}/contexts/lxc_contexts", name.trim()));
    let mut files = std::iter::once(CONTEXTS.to_owned()).chain(of_policy);
    match files.find_map(|path| Contexts::parse(&read_small(&path)?)) {
        Some(contexts) => Selinux::On(contexts),
        None => {
            tracing::warn!(
                "SELinux is on and its policy has no contexts for containers: they have no label"
            );
            Selinux::NoContexts
        }
    }
}

/// Asks the kernel whether its policy knows a context.
///
/// # Errors
/// `InvalidArgument`: it does not.
pub async fn check(context: &str) -> Result<(), Failure> {
    let context = context.to_owned();
    blocking("check an SELinux context", move || {
        let file = fs::OpenOptions::new()
            .write(true)
            .open(format!("{SELINUXFS}/context"));
        let mut file =
            file.map_err(|error| Failure::io(format!("open {SELINUXFS}/context"), &error))?;
        // One write is one question (security/selinux/selinuxfs.c, sel_write_context).
        file.write_all(context.as_bytes()).map_err(|_| {
            let field = "linux.security_context.selinux_options";
            Failure::invalid(
                field,
                &context,
                "the SELinux policy does not know this context",
            )
        })
    })
    .await
}

/// Labels a volume of the node and all below it.
///
/// # Errors
/// `InvalidArgument` for a path of the node itself, or what the kernel said.
pub async fn relabel_volume(path: &str, context: &str) -> Result<(), Failure> {
    let (path, context) = (path.to_owned(), context.to_owned());
    blocking("relabel a volume", move || {
        let field = "mounts.host_path";
        let real =
            fs::canonicalize(&path).map_err(|error| Failure::invalid(field, &path, error))?;
        if is_kept(&real) {
            let why = "is a part of the node that is never relabelled (mounts.selinux_relabel)";
            return Err(Failure::invalid(field, &path, why));
        }
        // What was checked is what is labelled: whoever can write above the volume may have put a link there since.
        let top = open_top(&real, ResolveFlags::NO_SYMLINKS)?;
        relabel_all(top, &real, &context)
    })
    .await
}

fn is_kept(path: &Path) -> bool {
    KEPT.iter().any(|kept| path == Path::new(kept))
        || KEPT_WHOLE.iter().any(|kept| path.starts_with(kept))
}

/// Labels a file or directory and all below it, through descriptors: no link is followed, whatever a container does
/// to the tree meanwhile. What has the label already is left alone, and so is a file system without labels.
///
/// # Errors
/// What the kernel said, with the path.
pub fn relabel_tree(path: &Path, context: &str) -> Result<(), Failure> {
    relabel_all(open_top(path, ResolveFlags::empty())?, path, context)
}

fn failed(at: &Path, errno: Errno) -> Failure {
    Failure::io(format!("relabel {}", at.display()), &errno.into())
}

fn open_top(path: &Path, resolve: ResolveFlags) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat2(CWD, path, flags, Mode::empty(), resolve).map_err(|errno| failed(path, errno))
}

/// Labels what is open as `top`; `path` is its name in errors.
fn relabel_all(top: OwnedFd, path: &Path, context: &str) -> Result<(), Failure> {
    let mut at = path.to_owned();
    let mut walk = vec![Level::enter(top, context).map_err(|errno| failed(path, errno))?];
    while let Some(level) = walk.last_mut() {
        let Some(name) = level.names.pop() else {
            walk.pop();
            at.pop();
            continue;
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let below = match openat(&level.dir, &*name, flags, Mode::empty()) {
            Ok(below) => below,
            // Gone meanwhile.
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(failed(&at.join(path_of(&name)), errno)),
        };
        at.push(path_of(&name));
        let level = Level::enter(below, context).map_err(|errno| failed(&at, errno))?;
        if walk.len() >= MAX_DEPTH {
            let why = format!(
                "relabel {}: more than {MAX_DEPTH} directories deep",
                path.display()
            );
            return Err(Failure::new(Class::Exhausted, why));
        }
        walk.push(level);
    }
    Ok(())
}

fn path_of(name: &std::ffi::CStr) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

/// An entry that is labelled, and the names in it that are not yet.
struct Level {
    dir: OwnedFd,
    names: Vec<std::ffi::CString>,
}

impl Level {
    fn enter(entry: OwnedFd, context: &str) -> Result<Self, Errno> {
        label(&entry, context)?;
        let mut names = Vec::new();
        if FileType::from_raw_mode(fstat(&entry)?.st_mode) == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            for entry in Dir::new(openat(&entry, ".", flags, Mode::empty())?)? {
                let name = entry?.file_name().to_owned();
                if !matches!(name.to_bytes(), b"." | b"..") {
                    names.push(name);
                }
            }
        }
        Ok(Self { dir: entry, names })
    }
}

/// Labels what a descriptor of any kind, also of a link, stands for.
fn label(entry: &OwnedFd, context: &str) -> Result<(), Errno> {
    let name = format!("/proc/self/fd/{}", entry.as_raw_fd());
    let mut now = [0; MAX_CONTEXT];
    let length = rustix::fs::getxattr(&*name, LABEL, &mut now);
    let now = length.ok().and_then(|length| now.get(..length));
    let same = |now: &[u8]| now.strip_suffix(b"\0").unwrap_or(now) == context.as_bytes();
    if now.is_some_and(same) {
        return Ok(());
    }
    let mut value = context.as_bytes().to_vec();
    value.push(0);
    match rustix::fs::setxattr(&*name, LABEL, &value, XattrFlags::empty()) {
        // Gone meanwhile, or of a file system that keeps no labels.
        Ok(()) | Err(Errno::NOENT | Errno::OPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const CONTEXT: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    fn label_of(path: &Path) -> Option<String> {
        let mut value = [0; MAX_CONTEXT];
        let length = rustix::fs::lgetxattr(path, LABEL, &mut value).ok()?;
        let text = String::from_utf8(value[..length].to_vec()).unwrap();
        Some(text.trim_end_matches('\0').to_owned())
    }

    #[test]
    fn what_the_node_stands_on_is_kept() {
        for kept in [
            "/",
            "/etc",
            "/usr/bin/sh",
            "/var/lib",
            "/proc/1",
            "/etc/shadow",
            "/root",
        ] {
            assert!(is_kept(Path::new(kept)), "{kept}");
        }
        for free in [
            "/var/lib/app",
            "/etc/app.conf",
            "/srv/www",
            "/usrlocal",
            "/home/me",
        ] {
            assert!(!is_kept(Path::new(free)), "{free}");
        }
    }

    #[test]
    fn privileged_a_tree_is_labelled_and_no_link_followed() {
        if !nix::unistd::geteuid().is_root() {
            assert_ne!(std::env::var("AXIL_TEST_REQUIRE").as_deref(), Ok("1"));
            println!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("volume"), dir.path().join("outside"));
        fs::create_dir_all(volume.join("a/b/c")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("secret"), "x").unwrap();
        fs::write(volume.join("a/b/file"), "x").unwrap();
        symlink("../outside", volume.join("link")).unwrap();
        symlink(outside.join("secret"), volume.join("a/secret")).unwrap();
        relabel_tree(&volume, CONTEXT).unwrap();
        for path in ["", "a", "a/b", "a/b/c", "a/b/file", "link", "a/secret"] {
            assert_eq!(
                label_of(&volume.join(path)).as_deref(),
                Some(CONTEXT),
                "{path}"
            );
        }
        assert_eq!(label_of(&outside), None);
        assert_eq!(label_of(&outside.join("secret")), None);
        // A link above what was checked leads nowhere.
        let turned = volume.join("link/secret");
        assert!(open_top(&turned, ResolveFlags::NO_SYMLINKS).is_err());
        assert!(open_top(&volume.join("a/b/file"), ResolveFlags::NO_SYMLINKS).is_ok());
        relabel_tree(&volume.join("a/b/file"), "u:r:t").unwrap();
        assert_eq!(label_of(&volume.join("a/b/file")).as_deref(), Some("u:r:t"));
    }
}
