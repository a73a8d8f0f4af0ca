//! An image of about 500 MB in six gzip layers, from compressed bytes at hand to unpacked and durable: by us, by
//! the containerd that is installed, and the raw limit, in turns, each time into new directories. Run as root:
//! `cargo bench -p axil-snapshotter --bench image_unpack [-- ROUNDS]`.
//!
//! containerd gets the same blobs as an OCI archive by `ctr images import`; both keep the compressed bytes on
//! disk, check both digests of each layer and unpack. CPU time is that of all processes concerned.

#![expect(clippy::print_stdout, reason = "a bench reports on standard output")]
#![expect(
    clippy::unwrap_used,
    reason = "a bench fails by panicking, as a test does"
)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use axil_snapshotter::{
    ChainId, Compression, Digest, LayerRequest, Limits, Store, StoreOptions, Worker,
};
use sha2::{Digest as _, Sha256};

const LAYERS: u64 = 6;
/// Files of one layer; about 80 MB of an average of 17 kB, as in images of distributions.
const FILES: u64 = 4800;

struct Layer {
    blob: Vec<u8>,
    digest: Digest,
    diff_id: Digest,
    bytes: u64,
}

/// Wall and CPU seconds.
#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
}

fn main() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let argument = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let rounds: usize = argument.map_or(5, |text| text.parse().unwrap());
    println!("making {LAYERS} layers");
    let layers: Vec<Layer> = thread::scope(|scope| {
        let made: Vec<_> = (0..LAYERS).map(|n| scope.spawn(move || layer(n))).collect();
        made.into_iter()
            .map(|layer| layer.join().unwrap())
            .collect()
    });
    let gigabytes = layers.iter().map(|layer| layer.bytes).sum::<u64>() as f64 / 1e9;
    let compressed = layers.iter().map(|layer| layer.blob.len()).sum::<usize>();
    println!(
        "{gigabytes:.3} GB in {LAYERS} layers, {:.0} MB compressed",
        compressed as f64 / 1e6
    );
    let place = tempfile::Builder::new()
        .prefix("axil-bench-")
        .tempdir()
        .unwrap();
    let archive = place.path().join("image.tar");
    write_archive(&layers, &archive);
    let has_containerd = Command::new("containerd")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !has_containerd {
        println!("containerd is not installed: without it");
    }
    let mut costs: [Vec<Cost>; 3] = Default::default();
    // Order: in turns, so that what the machine does otherwise hits all alike; nothing is deleted in between,
    // since inodes that were freed a moment ago make ext4 slow for minutes.
    for round in 0..rounds {
        let dir = |name: &str| {
            let dir = place.path().join(format!("{name}-{round}"));
            fs::create_dir(&dir).unwrap();
            dir
        };
        costs[0].push(raw(&layers, &dir("raw")));
        costs[1].push(axil(&layers, &dir("axil")));
        if has_containerd {
            costs[2].push(containerd(&archive, &dir("containerd")));
        }
        for (name, costs) in ["raw", "axil", "containerd"].iter().zip(&costs) {
            if let Some(last) = costs.last() {
                println!(
                    "round {round} {name:>10}: wall {:.2} s, cpu {:.2} s",
                    last.wall, last.cpu
                );
            }
        }
    }
    let median = |costs: &[Cost], of: fn(&Cost) -> f64| {
        let mut values: Vec<f64> = costs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    let medians = costs.each_ref().map(|costs| {
        let wall = median(costs, |cost| cost.wall)?;
        let cpu = median(costs, |cost| cost.cpu)?;
        Some(Cost { wall, cpu })
    });
    for (name, cost) in ["raw", "axil", "containerd"].iter().zip(medians) {
        if let Some(Cost { wall, cpu }) = cost {
            println!(
                "{name:>10}: {:.2} s wall, {:.2} s cpu per GB",
                wall / gigabytes,
                cpu / gigabytes
            );
        }
    }
    let ratio = |of: Option<Cost>, to: Option<Cost>, what: &str| {
        if let (Some(of), Some(to)) = (of, to) {
            println!(
                "{what}: wall {:.2}, cpu {:.2}",
                of.wall / to.wall,
                of.cpu / to.cpu
            );
        }
    };
    ratio(medians[1], medians[2], "axil / containerd");
    ratio(medians[0], medians[1], "raw limit / axil");
}

/// A layer of many files in directories of fifty, half of each file compressible.
fn layer(number: u64) -> Layer {
    let mut builder = tar::Builder::new(Vec::new());
    let mut state = number + 1;
    for file in 0..FILES {
        if file % 50 == 0 {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_size(0);
            header.set_mode(0o755);
            let path = format!("l{number}/d{}/", file / 50);
            builder
                .append_data(&mut header, path, std::io::empty())
                .unwrap();
        }
        let length = (file * 7919 + number * 104_729) % 34_000;
        let content: Vec<u8> = (0..length)
            .map(|at| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                if at % 64 < 36 {
                    b'a'
                } else {
                    // Six bits of chance, as text has.
                    state.to_be_bytes()[0] & 63
                }
            })
            .collect();
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        let path = format!("l{number}/d{}/f{file}", file / 50);
        builder
            .append_data(&mut header, path, &content[..])
            .unwrap();
    }
    let archive = builder.into_inner().unwrap();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(&archive).unwrap();
    let blob = encoder.finish().unwrap();
    Layer {
        digest: Digest::sha256_of(&blob),
        diff_id: Digest::sha256_of(&archive),
        bytes: archive.len() as u64,
        blob,
    }
}

/// Writes the image as an OCI layout in a tar archive.
fn write_archive(layers: &[Layer], path: &Path) {
    let mut archive = tar::Builder::new(File::create(path).unwrap());
    let mut put = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).unwrap();
    };
    let blob = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
    let diff_ids: Vec<String> = layers.iter().map(|l| l.diff_id.to_string()).collect();
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string();
    let config_digest = Digest::sha256_of(config.as_bytes());
    let descriptors: Vec<_> = layers
        .iter()
        .map(|layer| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": layer.digest.to_string(),
                "size": layer.blob.len(),
            })
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest.to_string(),
            "size": config.len(),
        },
        "layers": descriptors,
    })
    .to_string();
    let manifest_digest = Digest::sha256_of(manifest.as_bytes());
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest_digest.to_string(),
            "size": manifest.len(),
            "annotations": { "io.containerd.image.name": "bench.example/image:latest" },
        }],
    })
    .to_string();
    put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    put("index.json", index.as_bytes());
    put(&blob(&config_digest), config.as_bytes());
    put(&blob(&manifest_digest), manifest.as_bytes());
    for layer in layers {
        put(&blob(&layer.digest), &layer.blob);
    }
    archive.finish().unwrap();
}

/// CPU seconds of this process and of children that were waited for.
fn own_cpu() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    ticks(&stat, &[13, 14, 15, 16])
}

/// Sums fields of proc_pid_stat(5), numbered from the process number as 0, in seconds.
fn ticks(stat: &str, fields: &[usize]) -> f64 {
    // The name may contain anything; what follows its closing parenthesis starts with field 2.
    let rest: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let sum: u64 = fields
        .iter()
        .map(|at| rest[at - 2].parse::<u64>().unwrap())
        .sum();
    // sysconf(3): a second has a hundred clock ticks on all supported machines.
    sum as f64 / 100.0
}

/// Runs `work` and takes the time, with a sync of what it wrote at the end.
fn measured(dir: &Path, work: impl FnOnce()) -> Cost {
    let (start, cpu) = (Instant::now(), own_cpu());
    work();
    let file = File::open(dir).unwrap();
    rustix::fs::syncfs(&file).unwrap();
    Cost {
        wall: start.elapsed().as_secs_f64(),
        cpu: own_cpu() - cpu,
    }
}

fn axil(layers: &[Layer], dir: &Path) -> Cost {
    let program = Path::new(env!("CARGO_BIN_EXE_axil-unpack"));
    let options = StoreOptions {
        worker: Some(Worker::program(program)),
        ..StoreOptions::default()
    };
    let store = Store::open_with(dir, options).unwrap();
    measured(dir, || {
        let mut chain: Option<ChainId> = None;
        let mut requests = Vec::new();
        for layer in layers {
            let parent = chain.clone();
            let next = parent.as_ref().map_or_else(
                || ChainId::first(&layer.diff_id),
                |p| p.extend(&layer.diff_id),
            );
            chain = Some(next.clone());
            requests.push(LayerRequest {
                blob: layer.digest.clone(),
                size: layer.blob.len() as u64,
                compression: Compression::Gzip,
                diff_id: layer.diff_id.clone(),
                chain: next,
                parent,
                limits: Limits::default(),
                is_resumable: true,
            });
        }
        // Three at a time, as the daemon does.
        let mut staged = Vec::new();
        for (requests, layers) in requests.chunks(3).zip(layers.chunks(3)) {
            thread::scope(|scope| {
                let running: Vec<_> = requests
                    .iter()
                    .zip(layers)
                    .map(|(request, layer)| {
                        let ingest = store.begin_layer(request.clone()).unwrap();
                        scope.spawn(move || ingest.unpack(&layer.blob[..]).unwrap())
                    })
                    .collect();
                staged.extend(running.into_iter().map(|layer| layer.join().unwrap()));
            });
        }
        store.commit_layers(staged).unwrap();
    })
}

/// What cannot be spared: both hashes, inflating, and a file system call for each thing written.
fn raw(layers: &[Layer], dir: &Path) -> Cost {
    measured(dir, || {
        for chunk in layers.chunks(2) {
            thread::scope(|scope| {
                for layer in chunk {
                    scope.spawn(move || raw_layer(layer, dir));
                }
            });
        }
    })
}

fn raw_layer(layer: &Layer, dir: &Path) {
    assert_eq!(hex::encode(Sha256::digest(&layer.blob)), layer.digest.hex());
    let inflated = flate2::bufread::MultiGzDecoder::new(&layer.blob[..]);
    let mut archive = tar::Archive::new(Hashed(inflated, Sha256::new()));
    let mut content = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = dir.join(entry.path().unwrap());
        if entry.header().entry_type().is_dir() {
            fs::create_dir_all(&path).unwrap();
            continue;
        }
        content.clear();
        entry.read_to_end(&mut content).unwrap();
        let mut options = File::options();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&path)
            .unwrap();
        file.write_all(&content).unwrap();
        fchown(&file, Some(0), Some(0)).unwrap();
        let time = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        file.set_modified(time).unwrap();
    }
    let mut hashed = archive.into_inner();
    std::io::copy(&mut hashed, &mut std::io::sink()).unwrap();
    assert_eq!(hex::encode(hashed.1.finalize()), layer.diff_id.hex());
}

/// Hashes what is read through it.
struct Hashed<R>(R, Sha256);

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let amount = self.0.read(out)?;
        self.1.update(&out[..amount]);
        Ok(amount)
    }
}

/// A containerd of its own; killed when dropped.
struct Containerd(Child);

impl Drop for Containerd {
    fn drop(&mut self) {
        // Ignored: it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn containerd(archive: &Path, dir: &Path) -> Cost {
    let socket = dir.join("containerd.sock");
    let config = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\naddress = {:?}\n",
        dir.join("root"),
        dir.join("state"),
        socket,
    );
    let file = dir.join("config.toml");
    fs::write(&file, config).unwrap();
    let child = Command::new("containerd")
        .arg("--config")
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let daemon = Containerd(child);
    let ctr = |arguments: &[&str]| {
        Command::new("ctr")
            .arg("--address")
            .arg(&socket)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !ctr(&["version"]) {
        assert!(Instant::now() < deadline, "containerd did not start");
        thread::sleep(Duration::from_millis(50));
    }
    let daemon_cpu = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.0.id())).unwrap();
        ticks(&stat, &[13, 14, 15, 16])
    };
    let before = daemon_cpu();
    let archive = archive.display().to_string();
    let mut cost = measured(dir, || {
        assert!(ctr(&["images", "import", &archive]), "ctr images import");
    });
    cost.cpu += daemon_cpu() - before;
    cost
}
