//! The way out of a root that is only a changed root: a second chroot(2) below leaves the working directory above,
//! and from there up it goes (chroot(2), NOTES). It is what `--no-pivot` would give away.

use std::path::Path;

use rustix::io::Errno;
use rustix::process::{chdir, chroot};

/// More than any directory is deep.
const UP: usize = 64;

/// Leaves, if it can, and looks for `path`, which is the host's.
pub(crate) fn run(path: &str) {
    match climb() {
        Ok(()) if Path::new(path).exists() => println!("GOT {path}"),
        Ok(()) => println!("REFUSED {path} is not there"),
        Err(error) => println!("REFUSED {error}"),
    }
    println!("TRIED up={UP}");
}

fn climb() -> Result<(), Errno> {
    // Ignored: it may be there from an earlier attempt.
    let _ = std::fs::create_dir("/tmp/jail");
    chdir("/")?;
    chroot("/tmp/jail")?;
    for _ in 0..UP {
        chdir("..")?;
    }
    chroot(".")
}
