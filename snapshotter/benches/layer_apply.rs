//! How fast a layer goes from compressed bytes to a committed snapshot, each time into a new
//! directory. Run as root: `cargo bench -p axil-snapshotter [-- LAYER.tar.gz]`.

#![expect(clippy::print_stdout, reason = "a bench reports on standard output")]

use std::io::{Read, Write};
use std::time::Instant;

use axil_snapshotter::{ChainId, Compression, Digest, LayerRequest, Limits, Store};

/// Runs of the bench; the median is reported.
const RUNS: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return Ok(());
    }
    let path = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let blob = match path {
        Some(path) => std::fs::read(path)?,
        None => synthetic()?,
    };
    let mut archive = Vec::new();
    flate2::bufread::MultiGzDecoder::new(&blob[..]).read_to_end(&mut archive)?;
    let diff_id = Digest::sha256_of(&archive);
    let megabytes = archive.len() as f64 / 1e6;
    drop(archive);
    let mut seconds = Vec::new();
    for _ in 0..RUNS {
        let root = tempfile::tempdir()?;
        let store = Store::open(root.path())?;
        let request = LayerRequest {
            blob: Digest::sha256_of(&blob),
            size: blob.len() as u64,
            compression: Compression::Gzip,
            diff_id: diff_id.clone(),
            chain: ChainId::first(&diff_id),
            parent: None,
            limits: Limits::default(),
            is_resumable: true,
        };
        let start = Instant::now();
        let staged = store.begin_layer(request)?.unpack(&blob[..])?;
        let unpacked = start.elapsed().as_secs_f64();
        store.commit_layers(vec![staged])?;
        let committed = start.elapsed().as_secs_f64();
        println!("unpack {unpacked:.3} s, with commit {committed:.3} s");
        seconds.push(unpacked);
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[RUNS / 2];
    println!(
        "median unpack {median:.3} s, {:.0} MB/s of {megabytes:.0} MB",
        megabytes / median
    );
    Ok(())
}

/// A layer of ten thousand files of about 20 kB, half of it compressible.
fn synthetic() -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    let mut builder = tar::Builder::new(encoder);
    let mut state = 1_u64;
    for file in 0..10_000_u64 {
        let content: Vec<u8> = (0..20_000 + file % 2000)
            .map(|at| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                if at % 64 < 32 {
                    b'a'
                } else {
                    state.to_be_bytes()[0]
                }
            })
            .collect();
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(
            &mut header,
            format!("d{}/f{file}", file / 100),
            &content[..],
        )?;
    }
    let mut encoder = builder.into_inner()?;
    encoder.flush()?;
    Ok(encoder.finish()?)
}
