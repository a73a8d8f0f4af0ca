//! Images that mean harm: layers no honest tool writes, each under the name of what it tries.
//!
//! Every attack aims at a directory of the test, the canary, which must not change whether the image is
//! refused or kept in bounds.

use std::io::Write as _;

use serde_json::json;

use crate::images::{Image, Packed, digest};

/// Most bytes a layer of [`attacks`] may unpack to; the node is configured so, or a bomb would take a minute.
pub const UNPACKED_MAX: u64 = 48 << 20;
/// Most entries of a layer, likewise.
pub const ENTRIES_MAX: u64 = 5000;

/// One such image.
#[derive(Debug)]
pub struct Attack {
    /// What it tries.
    pub name: &'static str,
    /// The image.
    pub image: Image,
    /// What it does is never meant well; otherwise a link may simply lead inside.
    pub is_refused: bool,
}

/// The entries of an archive, as bytes.
#[derive(Debug, Clone, Default)]
pub struct Raw(Vec<u8>);

impl Raw {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry of any kind; its size is that of its content.
    #[must_use]
    pub fn entry(self, name: &str, kind: u8, link: &str, content: &[u8]) -> Self {
        self.sized(name, kind, link, content.len() as u64, content)
    }

    /// Adds an entry that states another size.
    #[must_use]
    pub fn sized(mut self, name: &str, kind: u8, link: &str, size: u64, content: &[u8]) -> Self {
        self.0.extend(header(name, kind, link, size));
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// Adds a file.
    #[must_use]
    pub fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(name, b'0', "", content)
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(self, name: &str, target: &str) -> Self {
        self.entry(name, b'2', target, b"")
    }

    /// Adds a directory.
    #[must_use]
    pub fn dir(self, name: &str) -> Self {
        self.entry(name, b'5', "", b"")
    }

    /// Adds an extended header for the next entry.
    #[must_use]
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            // The length counts its own digits.
            let mut length = body + 1;
            while length != body + length.to_string().len() {
                length = body + length.to_string().len();
            }
            text.extend(format!("{length} {key}=").bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.entry("pax", b'x', "", &text)
    }

    /// Ends the archive and makes a gzip layer of it.
    #[must_use]
    pub fn gzip(mut self) -> Packed {
        self.0.extend([0; 1024]);
        layer(&self.0, gzip(&self.0), "gzip")
    }
}

/// A ustar header.
#[must_use]
pub fn header(name: &str, kind: u8, link: &str, size: u64) -> [u8; 512] {
    let mut block = [0_u8; 512];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(
        100,
        if kind == b'5' {
            b"0000755\0"
        } else {
            b"0000644\0"
        },
    );
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &link.as_bytes()[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    put(329, b"0000001\0");
    put(337, b"0000003\0");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let fast = flate2::Compression::fast();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), fast);
    encoder.write_all(bytes).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

/// A layer whose blob and archive are given apart, as honest or not as they are.
#[must_use]
pub fn layer(archive: &[u8], blob: Vec<u8>, compression: &str) -> Packed {
    Packed {
        media_type: match compression {
            "zstd" => "application/vnd.oci.image.layer.v1.tar+zstd",
            _ => "application/vnd.oci.image.layer.v1.tar+gzip",
        },
        diff_id: digest(archive),
        bytes: blob,
    }
}

fn image(layers: Vec<Packed>) -> Image {
    Image::of(&json!({ "Cmd": ["/none"] }), layers)
}

/// All of them, aimed at `canary`, an absolute path.
#[must_use]
pub fn attacks(canary: &str) -> Vec<Attack> {
    let mut all = Vec::new();
    let mut add = |name, is_refused, layers: Vec<Raw>| {
        let layers = layers.into_iter().map(Raw::gzip).collect();
        all.push(Attack {
            name,
            image: image(layers),
            is_refused,
        });
    };
    let up = format!("{}{canary}", "../".repeat(30));
    add("a name with dots", true, vec![Raw::new().file(&up, b"x")]);
    add(
        "a name with dots in the middle",
        true,
        vec![Raw::new().dir("a/").file("a/../../../../x", b"x")],
    );
    let absolute = format!("{canary}/x");
    add(
        "an absolute name",
        false,
        vec![Raw::new().file(&absolute, b"x")],
    );
    for (name, first, last) in [
        ("a file through a link", "d", Raw::new().file("d/f", b"x")),
        (
            "a directory over a link",
            "d",
            Raw::new().dir("d").file("d/g", b"x"),
        ),
        (
            "a hard link through a link",
            "d",
            Raw::new().file("t", b"x").entry("d/h", b'1', "t", b""),
        ),
        (
            "a hard link to what a link leads to",
            "d",
            Raw::new().entry("h", b'1', "d/file", b""),
        ),
        (
            "a device through a link",
            "d",
            Raw::new().entry("d/n", b'3', "", b""),
        ),
        (
            "a whiteout through a link",
            "d",
            Raw::new().file("d/.wh.file", b""),
        ),
        (
            "an opaque marker through a link",
            "d",
            Raw::new().file("d/.wh..wh..opq", b""),
        ),
    ] {
        let linked = Raw::new().link(first, canary);
        let mut together = linked.clone();
        together.0.extend(&last.0);
        add(name, false, vec![together]);
        add(name, false, vec![linked.clone(), last.clone()]);
        add(
            name,
            false,
            vec![linked, Raw::new().file("between", b"x"), last],
        );
    }
    add(
        "a parent that becomes a link (CVE-2025-47290)",
        false,
        vec![
            Raw::new()
                .dir("a/")
                .file("a/f", b"x")
                .link("a", canary)
                .file("a/g", b"x"),
        ],
    );
    add(
        "attributes through a link (CVE-2021-32760)",
        false,
        vec![
            Raw::new()
                .link("d", canary)
                .pax(&[("SCHILY.xattr.user.mark", b"x"), ("mtime", b"1")])
                .dir("d"),
        ],
    );
    add(
        "two sizes for one file (CVE-2025-62518)",
        true,
        vec![Raw::new().pax(&[("size", b"1024")]).sized(
            "f",
            b'0',
            "",
            0,
            &header("smuggled", b'0', "", 0),
        )],
    );
    add(
        "two thousand million holes (CVE-2025-58183)",
        true,
        vec![
            Raw::new()
                .pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.realsize", b"1"),
                ])
                .file("f", b"2147483648\n"),
        ],
    );
    for (name, path) in [
        ("a whiteout of nothing", ".wh."),
        ("a whiteout of the root", ".wh.."),
        ("a whiteout of the parent", "d/.wh..."),
    ] {
        add(name, true, vec![Raw::new().dir("d").file(path, b"")]);
    }
    let deep = vec!["d"; 10_000].join("/");
    let long = "n".repeat(1 << 20);
    for (name, path) in [
        ("ten thousand directories deep", &deep),
        ("a name of a mebibyte", &long),
    ] {
        let file = Raw::new().pax(&[("path", path.as_bytes())]).file("f", b"x");
        add(name, true, vec![file]);
    }
    let value = vec![b'v'; 64 << 10];
    let keys: Vec<String> = (0..1000)
        .map(|n| format!("SCHILY.xattr.user.{n}"))
        .collect();
    let records: Vec<(&str, &[u8])> = keys.iter().map(|key| (key.as_str(), &value[..])).collect();
    let file = Raw::new().pax(&records).file("f", b"x");
    add("a thousand attributes of 64 KiB", true, vec![file]);
    let many = (0..=ENTRIES_MAX).fold(Raw::new(), |raw, n| raw.file(&n.to_string(), b""));
    add("more files than allowed", true, vec![many]);
    let size = UNPACKED_MAX + 1;
    let zeros = vec![0; usize::try_from(size).expect("it fits into memory")];
    add(
        "more zeros than allowed",
        true,
        vec![Raw::new().file("zeros", &zeros)],
    );
    all.extend(streams());
    all
}

/// Blobs that are no archives, or not those they should be.
fn streams() -> Vec<Attack> {
    let mut good = Raw::new().file("f", &[7; 5000]).0;
    good.extend([0; 1024]);
    let blob = gzip(&good);
    let cut = blob[..blob.len() / 2].to_vec();
    // Frame header: magic, descriptor without single segment, window descriptor of 2^31.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (31 - 10) << 3, 1, 0, 0].to_vec();
    let mut trailed = blob.clone();
    trailed.extend_from_slice(b"and more");
    let mut rotten = good.clone();
    rotten[600] ^= 1;
    [
        (
            "a stream that ends early (CVE-2021-20291)",
            layer(&good, cut, "gzip"),
        ),
        ("bytes after the stream", layer(&good, trailed, "gzip")),
        (
            "no stream at all",
            layer(&good, b"not compressed".to_vec(), "gzip"),
        ),
        ("a window of two gibibytes", layer(&good, window, "zstd")),
        (
            "another archive than the configuration says",
            layer(&good, gzip(&rotten), "gzip"),
        ),
    ]
    .into_iter()
    .map(|(name, packed)| Attack {
        name,
        image: image(vec![packed]),
        is_refused: true,
    })
    .collect()
}
