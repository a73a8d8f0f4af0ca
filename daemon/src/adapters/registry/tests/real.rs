//! A real registry (Debian's docker-registry) with an image that a real tool (skopeo) pushed.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use axil_snapshotter::Digest;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::super::Registry;
use super::fixture::{Image, options, read};
use crate::domain::failure::Class;
use crate::domain::image::manifest::Platform;
use crate::domain::image::reference::Reference;

const REGISTRY: &str = "/usr/bin/docker-registry";
const SKOPEO: &str = "/usr/bin/skopeo";

/// Starts the registry on a free port of this machine; it is killed with the value.
async fn start(root: &Path) -> (Child, u16) {
    // The port is free a moment ago and not promised: another is tried when it is taken.
    for _ in 0..10 {
        let probe = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = probe.local_addr().unwrap().port();
        drop(probe);
        let config = root.join(format!("config-{port}.yml"));
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: 127.0.0.1:{port}\n",
            root.join("storage").display()
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new(REGISTRY)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        for _ in 0..200 {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return (child, port);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
    panic!("the registry does not start");
}

/// Writes an image as an OCI layout.
fn write_layout(image: &Image, layout: &Path) {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    for bytes in [&image.layer, &image.config, &image.manifest] {
        std::fs::write(blobs.join(Digest::sha256_of(bytes).hex()), bytes).unwrap();
    }
    let version = json!({"imageLayoutVersion": "1.0.0"});
    std::fs::write(layout.join("oci-layout"), version.to_string()).unwrap();
    let entry =
        super::fixture::descriptor(crate::domain::image::media::OCI_MANIFEST, &image.manifest);
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_what_skopeo_pushed_to_a_real_registry() {
    for binary in [REGISTRY, SKOPEO] {
        if !Path::new(binary).exists() {
            println!("skipped: {binary} is not installed");
            return;
        }
    }
    let root = tempfile::tempdir().unwrap();
    let image = Image::new(5 << 20);
    write_layout(&image, &root.path().join("layout"));
    let (mut child, port) = start(root.path()).await;
    let copy = Command::new(SKOPEO)
        .args([
            "copy",
            "--quiet",
            "--preserve-digests",
            "--dest-tls-verify=false",
            "--insecure-policy",
        ])
        .arg(format!("oci:{}", root.path().join("layout").display()))
        .arg(format!("docker://127.0.0.1:{port}/team/app:v1"))
        .kill_on_drop(true)
        .output();
    let copy = tokio::time::timeout(Duration::from_secs(60), copy)
        .await
        .unwrap()
        .unwrap();
    assert!(
        copy.status.success(),
        "{}",
        String::from_utf8_lossy(&copy.stderr)
    );

    let mut options = options();
    options.progress_timeout = Duration::from_secs(20);
    let registry = Registry::new(options);
    let reference = Reference::parse(&format!("127.0.0.1:{port}/team/app:v1")).unwrap();
    let found = registry
        .image(&reference, None, &Platform::host())
        .await
        .unwrap();
    assert_eq!(found.digest, Digest::sha256_of(&image.manifest));
    assert_eq!(found.manifest.layers.len(), 1);
    let layer = found.manifest.layers[0].descriptor();
    for offset in [0, 1, 3 << 20] {
        let bytes = read(&registry, &found.source, &layer, offset)
            .await
            .unwrap();
        let start = usize::try_from(offset).unwrap();
        assert!(
            bytes == image.layer[start..],
            "other bytes from offset {offset}"
        );
    }
    let by_digest = reference.with_digest(found.digest);
    assert!(registry.resolve(&by_digest, None).await.is_ok());
    let missing = Reference::parse(&format!("127.0.0.1:{port}/team/app:gone")).unwrap();
    let error = registry.resolve(&missing, None).await.unwrap_err();
    assert_eq!(error.class(), Class::NotFound, "{error}");
    child.kill().await.unwrap();
}
