//! What a program finds around it: HOME, its working directory, its file.

use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};

use rustix::fs::{Access, AtFlags, CWD, FileType, OFlags, accessat, fstat, statat};
use rustix::io::Errno;

use crate::rootfs::Root;

/// Search path of a program whose environment has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bound of the image's passwd file: it is hostile input.
const MAX_PASSWD: u64 = 1 << 20;

/// The value of `name` in an environment list; the last entry wins.
pub(super) fn variable<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter()
        .rev()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// The home directory the image's passwd file gives to `uid`, `/` when it gives none.
pub(super) fn home_of(root: &Root, uid: u32) -> String {
    find_home(root, uid).unwrap_or_else(|| "/".to_owned())
}

fn find_home(root: &Root, uid: u32) -> Option<String> {
    // Non-blocking: the image may have put a FIFO there.
    let fd = root
        .open(
            "/etc/passwd",
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY,
        )
        .ok()?;
    if !FileType::from_raw_mode(fstat(&fd).ok()?.st_mode).is_file() {
        return None;
    }
    let reader = BufReader::new(File::from(fd).take(MAX_PASSWD));
    for line in reader.split(b'\n') {
        let line = line.ok()?;
        let Ok(line) = std::str::from_utf8(&line) else {
            continue;
        };
        let fields: Vec<&str> = line.split(':').collect();
        if fields.len() >= 6 && fields[2].parse() == Ok(uid) && fields[5].starts_with('/') {
            return Some(fields[5].to_owned());
        }
    }
    None
}

/// Changes to `cwd` and makes sure that it lies inside the container (CVE-2024-21626): it is opened below
/// the root without magic links, so that no descriptor of this process can be meant.
pub(super) fn change_directory(root: &Root, cwd: &str) -> Result<(), ChangeDirectory> {
    let opened = root.open(cwd, OFlags::PATH | OFlags::DIRECTORY);
    match opened.and_then(rustix::process::fchdir) {
        Ok(()) => {}
        Err(Errno::ACCESS | Errno::PERM) => return Err(ChangeDirectory::Denied),
        Err(errno) => {
            return Err(ChangeDirectory::Failed(format!(
                "cannot change directory to {cwd:?}: {errno}"
            )));
        }
    }
    // The kernel puts "(unreachable)" before a directory that the root does not lead to.
    let inside =
        rustix::process::getcwd(Vec::new()).is_ok_and(|now| now.as_bytes().starts_with(b"/"));
    if inside {
        Ok(())
    } else {
        let text = format!("process.cwd {cwd:?} is outside of the container's root");
        Err(ChangeDirectory::Failed(text))
    }
}

/// Why the working directory could not be taken.
pub(super) enum ChangeDirectory {
    /// As this user; another one may be allowed to.
    Denied,
    /// For good.
    Failed(String),
}

/// Finds the file that `program` names, as execvp(3) would, in the container and as its user.
pub(super) fn find_program(program: &str, env: &[String]) -> Result<CString, String> {
    if program.contains('/') {
        return check(program).map_err(|errno| {
            let reason = crate::errno_text(&errno.into());
            format!("exec: {program:?}: {reason}")
        });
    }
    let path = variable(env, "PATH").unwrap_or(DEFAULT_PATH);
    let mut denied = false;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        match check(&format!("{directory}/{program}")) {
            Ok(found) => return Ok(found),
            Err(Errno::ACCESS) => denied = true,
            Err(_) => {}
        }
    }
    if denied {
        return Err(format!("exec: {program:?}: permission denied"));
    }
    Err(format!(
        "exec: {program:?}: executable file not found in $PATH"
    ))
}

fn check(path: &str) -> Result<CString, Errno> {
    let stat = statat(CWD, path, AtFlags::empty())?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(Errno::ACCESS);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)?;
    CString::new(path).map_err(|_| Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_entry_of_a_variable_wins() {
        let env = ["A=1".to_owned(), "AB=2".to_owned(), "A=3".to_owned()];
        assert_eq!(variable(&env, "A"), Some("3"));
        assert_eq!(variable(&env, "AB"), Some("2"));
        assert_eq!(variable(&env, "B"), None);
    }

    #[test]
    fn programs_are_found_as_execvp_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("plain"), "").unwrap();
        std::fs::create_dir(dir.path().join("directory")).unwrap();
        let env = [format!("PATH=/nonexistent:{}:/bin", dir.path().display())];
        assert!(find_program("sh", &env).is_ok());
        assert_eq!(
            find_program("nope", &env).unwrap_err(),
            "exec: \"nope\": executable file not found in $PATH"
        );
        assert!(
            find_program("plain", &env)
                .unwrap_err()
                .contains("permission denied")
        );
        assert!(
            find_program("directory", &env)
                .unwrap_err()
                .contains("permission denied")
        );
        assert!(
            find_program("/no/such", &env)
                .unwrap_err()
                .starts_with("exec: \"/no/such\"")
        );
    }

    /// The lookup is confined to the root it is given; should that ever lie outside of the process's own, or be
    /// moved there in between, getcwd(2) tells.
    #[test]
    fn privileged_a_directory_that_the_root_does_not_lead_to_is_refused() {
        if !rustix::process::geteuid().is_root() {
            assert!(
                std::env::var("AXIL_TEST_REQUIRE").as_deref() != Ok("1"),
                "cannot run: it needs root"
            );
            println!("skipped: it needs root");
            return;
        }
        let world = tempfile::tempdir().unwrap();
        for name in ["inside/here", "outside/there"] {
            std::fs::create_dir_all(world.path().join(name)).unwrap();
        }
        let root = |name: &str| {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let path = world.path().join(name);
            Root::new(rustix::fs::openat(CWD, path, flags, rustix::fs::Mode::empty()).unwrap())
        };
        let (inside, outside) = (root("inside"), root("outside"));
        let place = world.path().join("inside");
        let moved = std::thread::spawn(move || {
            // CLONE_FS: root and working directory of this thread alone.
            crate::sys::unshare(0x200).unwrap();
            rustix::process::chroot(&place).unwrap();
            rustix::process::chdir("/").unwrap();
            let text = |outcome| match outcome {
                Ok(()) => String::new(),
                Err(ChangeDirectory::Denied) => "denied".to_owned(),
                Err(ChangeDirectory::Failed(text)) => text,
            };
            [
                text(change_directory(&inside, "/here")),
                text(change_directory(&outside, "/there")),
            ]
        });
        let [inside, outside] = moved.join().unwrap();
        assert_eq!(inside, "");
        assert!(
            outside.contains("outside of the container's root"),
            "{outside}"
        );
    }
}
