//! A real web server image from the packages of this machine: seven layers, gzip and zstd mixed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::layer::Entry;
use super::{Compression, Image, Layer, busybox};
use crate::children;
use crate::guard::find_program;

/// What the server answers for `/`.
pub const PAGE: &str = "<h1>served by a pod of axil</h1>\n";

const CONFIG: &str = "user www-data;
worker_processes 1;
daemon off;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 64; }
http {
  include /etc/nginx/mime.types;
  access_log /dev/stdout;
  server {
    listen 80;
    listen [::]:80;
    root /usr/share/nginx/html;
    location = /hostname { alias /etc/hostname; default_type text/plain; }
  }
}
";
const ENTRY: &str = "#!/bin/sh
set -e
echo \"starting nginx in $(hostname)\"
exec nginx -c /etc/nginx/nginx.conf \"$@\"
";

/// Builds the image.
///
/// # Errors
/// When nginx or busybox is not installed, or a library of theirs cannot be found.
pub fn image() -> Result<Image> {
    let nginx =
        find_program("nginx").context("nginx is not installed (Debian package nginx-light)")?;
    let all = libraries(&nginx)?;
    let (libc, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|path| is_libc(path));
    let modules = existing("/usr/lib/nginx/modules");
    let layers = [
        busybox::base(Compression::Gzip)?,
        files(Compression::Zstd, &libc),
        files(Compression::Gzip, &others)
            .parents("usr/sbin/nginx")
            .copy("usr/sbin/nginx", &nginx)
            .parents("var/lib/nginx")
            .entry("var/lib/nginx", 0o755, 33, Entry::Dir)
            .parents("var/log/nginx")
            .entry("var/log/nginx", 0o755, 33, Entry::Dir),
        files(Compression::Zstd, &modules)
            .dir("usr/share")
            .dir("usr/share/nginx"),
        Layer::new(Compression::Gzip)
            .dir("etc/nginx")
            .text("etc/nginx/nginx.conf", CONFIG)
            .text(
                "etc/nginx/mime.types",
                "types { text/html html; text/plain txt; }\n",
            ),
        Layer::new(Compression::Zstd)
            .parents("usr/share/nginx/html")
            .dir("usr/share/nginx/html")
            .text("usr/share/nginx/html/index.html", PAGE),
        Layer::new(Compression::Gzip).script("entry.sh", ENTRY),
    ];
    Image::build(
        &json!({
            "Entrypoint": ["/entry.sh"],
            "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "ExposedPorts": { "80/tcp": {} },
            "StopSignal": "SIGQUIT",
            "WorkingDir": "/",
        }),
        &layers,
    )
}

fn files(compression: Compression, paths: &[PathBuf]) -> Layer {
    let mut layer = Layer::new(compression);
    for path in paths {
        let inside = path.to_string_lossy().trim_start_matches('/').to_owned();
        layer = layer.parents(&inside).copy(&inside, path);
    }
    layer
}

fn existing(dir: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let files: BTreeSet<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.into_iter().filter(|path| path.is_file()).collect()
}

/// The dynamic loader and the C library: one layer that other images of the machine would share.
fn is_libc(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    [
        "ld-linux",
        "libc.so",
        "libdl.so",
        "libpthread.so",
        "libm.so",
        "libcrypt.so",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix))
}

/// What `ldd` says a program needs, plus the name service modules nginx opens by itself.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let text = children::read("ldd", &[&program.to_string_lossy()])?;
    let mut found: BTreeSet<PathBuf> = text
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect();
    if let Some(dir) = found
        .iter()
        .find(|path| is_libc(path) && path.to_string_lossy().contains("libc.so"))
    {
        let files = dir.with_file_name("libnss_files.so.2");
        if files.exists() {
            found.insert(files);
        }
    }
    Ok(found.into_iter().collect())
}
