//! A tiny image with a shell: Debian's static busybox and links for its applets.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::layer::Entry;
use super::{Compression, Image, Layer};
use crate::children;
use crate::guard::find_program;

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
app:x:1000:1000:app:/home/app:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
";
const GROUP: &str = "root:x:0:
daemon:x:1:
adm:x:4:app
www-data:x:33:
app:x:1000:
extra:x:2000:app
nogroup:x:65534:
";

/// The busybox program of this machine.
///
/// # Errors
/// When it is not installed.
pub fn program() -> Result<PathBuf> {
    find_program("busybox").context("busybox is not installed (Debian package busybox-static)")
}

/// The base layer: busybox, its applets, users, and the directories programs expect.
///
/// # Errors
/// When busybox cannot be asked for its applets.
pub fn base(compression: Compression) -> Result<Layer> {
    let program = program()?;
    let mut layer = Layer::new(compression);
    for dir in [
        "bin", "dev", "etc", "home", "home/app", "proc", "root", "run", "sbin", "sys",
    ] {
        layer = layer.dir(dir);
    }
    for dir in ["usr", "usr/bin", "usr/sbin", "var", "var/log", "var/www"] {
        layer = layer.dir(dir);
    }
    layer = layer
        .entry("tmp", 0o1777, 0, Entry::Dir)
        .entry("var/tmp", 0o1777, 0, Entry::Dir)
        .text("etc/passwd", PASSWD)
        .text("etc/group", GROUP)
        .copy("bin/busybox", &program);
    let applets = children::read(&program.to_string_lossy(), &["--list"])?;
    for applet in applets
        .lines()
        .filter(|name| !matches!(*name, "busybox" | ""))
    {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    Ok(layer)
}

/// The image: entry point none, command a shell, user root.
///
/// # Errors
/// When busybox is missing.
pub fn image() -> Result<Image> {
    Image::build(
        &json!({ "Env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin", "FROM_IMAGE=yes"], "Cmd": ["sh"] }),
        &[base(Compression::Gzip)?],
    )
}

/// The same with a user named in the image and a working directory and a second layer of its own.
///
/// # Errors
/// When busybox is missing.
pub fn image_of_user(user: &str) -> Result<Image> {
    let note = Layer::new(Compression::Zstd)
        .dir("srv")
        .text("srv/note", "from the image\n");
    Image::build(
        &json!({
            "Env": ["PATH=/bin"],
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": ["id; pwd; cat note"],
            "WorkingDir": "/srv",
            "User": user,
        }),
        &[base(Compression::Gzip)?, note],
    )
}
