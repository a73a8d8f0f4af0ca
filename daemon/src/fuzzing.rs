//! What the fuzz targets do with their bytes (`fuzz/fuzz_targets` only names these functions, so that the
//! everyday build checks them). Each panics when something that must always hold does not.

use axil_snapshotter::Digest;
use bytes::BytesMut;

use crate::adapters::registry::fuzzing;
use crate::cri::streaming;
use crate::cri::streaming::spdy::{Decoder, Encoder, Frame, MAX_HEADERS, MAX_PIECE, SpdyError};
use crate::domain::image::manifest::{
    Document, DocumentRules, MAX_DESCRIPTORS, MAX_LAYER_BYTES, MAX_LAYERS, ManifestError, Platform,
    Step, Walk, parse_document,
};
use crate::domain::image::media::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::domain::image::reference::{Reference, parse_image_key};

/// An image's name: what is taken is the same after it was printed, and safe in paths of URLs and files.
pub fn image_reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    // Ignored: only a panic counts.
    let _ = parse_image_key(text);
    let Ok(reference) = Reference::parse(text) else {
        return;
    };
    let printed = reference.to_string();
    assert_eq!(
        Reference::parse(&printed).as_ref(),
        Ok(&reference),
        "{printed}"
    );
    let named = reference.tag().is_some() || reference.digest().is_some();
    assert!(named, "there is a tag or a digest");
    let name = reference.name();
    assert!(
        !name.contains("..") && !name.contains("//") && !name.starts_with('/'),
        "{name}"
    );
    let plain = |c: char| c.is_ascii_alphanumeric() || "./:_-[]".contains(c);
    assert!(name.chars().all(plain), "{name}");
    assert!(!reference.host().contains('/'), "{name}");
}

/// A manifest or index on its own, as each type it could be served as.
pub fn image_manifest(bytes: &[u8]) {
    let rules = DocumentRules::of_stored();
    for content_type in ["", OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST] {
        match parse_document(content_type, bytes, &rules) {
            Ok(Document::Manifest(manifest)) => {
                assert!(manifest.layers.len() <= MAX_LAYERS);
                let sum: u64 = manifest.layers.iter().map(|layer| layer.size).sum();
                assert!(sum <= MAX_LAYER_BYTES, "{sum}");
                let other = parse_document(OCI_INDEX, bytes, &rules);
                assert!(other.is_err(), "a manifest is never an index as well");
            }
            Ok(Document::Index(entries)) => {
                assert!(entries.len() <= MAX_DESCRIPTORS);
                let other = parse_document(OCI_MANIFEST, bytes, &rules);
                assert!(other.is_err(), "an index is never a manifest as well");
            }
            Err(error) => is_short(&error),
        }
    }
}

/// Documents between NUL bytes, served in their order whatever is asked for: a walk ends, within its limits.
pub fn image_index(bytes: &[u8]) {
    let rules = DocumentRules::default();
    let mut walk = Walk::new(Platform::new("linux", "amd64", Some("v3")), rules.clone());
    let mut asked = std::collections::BTreeSet::new();
    let mut digest = Digest::sha256_of(b"the reference");
    let mut media_type = String::new();
    for document in bytes.split(|byte| *byte == 0) {
        match walk.accept(&digest, &media_type, document) {
            Ok(Step::Fetch(descriptor)) => {
                assert!(descriptor.size <= rules.max_document_bytes as u64);
                assert!(
                    asked.insert(descriptor.digest.clone()),
                    "nothing is asked for twice"
                );
                assert!(asked.len() <= rules.max_documents);
                digest = descriptor.digest;
                media_type = descriptor.media_type;
            }
            Ok(Step::Image { manifest, .. }) => {
                assert!(manifest.layers.len() <= rules.max_layers);
                return;
            }
            Err(error) => return is_short(&error),
        }
    }
}

fn is_short(error: &ManifestError) {
    let text = error.to_string();
    assert!(text.len() < 8000, "an error of {} bytes", text.len());
}

/// A `hosts.toml`.
pub fn hosts_toml(bytes: &[u8]) {
    fuzzing::hosts_toml(bytes);
}

/// A `WWW-Authenticate` header.
pub fn registry_challenge(bytes: &[u8]) {
    fuzzing::registry_challenge(bytes);
}

/// What a client of the streaming server sends: the frames do not depend on how their bytes arrive, stay within
/// their bounds, and are the same after they were sent on.
pub fn spdy_frames(bytes: &[u8]) {
    let whole = spdy_decode(bytes, bytes.len().max(1));
    let torn = spdy_decode(bytes, 3);
    assert_eq!(
        whole.1.is_some(),
        torn.1.is_some(),
        "{:?} {:?}",
        whole.1,
        torn.1
    );
    let mut encoder = Encoder::default();
    let mut sent = BytesMut::new();
    for frame in &whole.0 {
        match frame {
            Frame::Data { bytes, .. } => assert!(bytes.len() <= MAX_PIECE),
            Frame::SynStream { headers, .. }
            | Frame::SynReply { headers, .. }
            | Frame::Headers { headers, .. } => assert!(headers.len() <= MAX_HEADERS),
            _ => {}
        }
        encoder
            .encode(frame, &mut sent)
            .expect("a frame that was taken can be sent");
    }
    let (again, error) = spdy_decode(&sent, sent.len().max(1));
    assert_eq!(error, None);
    assert_eq!(again, whole.0);
}

fn spdy_decode(bytes: &[u8], step: usize) -> (Vec<Frame>, Option<SpdyError>) {
    let mut decoder = Decoder::default();
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for piece in bytes.chunks(step) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// Messages of a client of the streaming server over WebSocket.
pub fn websocket_frames(bytes: &[u8]) {
    streaming::fuzzing::websocket_frames(bytes);
}

/// A request to the streaming server.
pub fn upgrade_request(bytes: &[u8]) {
    streaming::fuzzing::upgrade_request(bytes);
}

/// A target.
pub type Target = fn(&[u8]);

/// Every target by the name of its file in `fuzz/fuzz_targets`.
pub const TARGETS: [(&str, Target); 8] = [
    ("hosts_toml", hosts_toml),
    ("image_index", image_index),
    ("image_manifest", image_manifest),
    ("image_reference", image_reference),
    ("registry_challenge", registry_challenge),
    ("spdy_frames", spdy_frames),
    ("upgrade_request", upgrade_request),
    ("websocket_frames", websocket_frames),
];

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz")
            .join(name)
    }

    fn names(folder: &PathBuf) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn every_target_has_its_file_and_its_line_in_the_manifest() {
        let manifest = std::fs::read_to_string(folder("Cargo.toml")).unwrap();
        let files: Vec<String> = TARGETS
            .iter()
            .map(|(name, _)| format!("{name}.rs"))
            .collect();
        assert_eq!(names(&folder("fuzz_targets")), files);
        for (name, _) in TARGETS {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            let source = std::fs::read_to_string(folder("fuzz_targets").join(format!("{name}.rs")));
            let call = format!("axild::fuzzing::{name}(bytes)");
            assert!(source.unwrap().contains(&call), "{name}");
        }
    }

    #[test]
    fn the_seeds_and_their_damaged_neighbours_hold_what_the_targets_check() {
        for (name, target) in TARGETS {
            let folder = folder("seeds").join(name);
            let seeds = names(&folder);
            assert!(!seeds.is_empty(), "{name} has seeds");
            for seed in seeds {
                let bytes = std::fs::read(folder.join(seed)).unwrap();
                target(&bytes);
                for at in 0..bytes.len() {
                    target(&bytes[..at]);
                    for change in [0x01, 0x20, 0xff] {
                        let mut damaged = bytes.clone();
                        damaged[at] ^= change;
                        target(&damaged);
                    }
                }
            }
        }
    }

    #[test]
    fn the_seeds_are_documents_that_are_accepted() {
        let read = |target: &str, seed: &str| {
            std::fs::read(folder("seeds").join(target).join(seed)).unwrap()
        };
        let rules = DocumentRules::default();
        for seed in names(&folder("seeds/image_manifest")) {
            parse_document("", &read("image_manifest", &seed), &rules)
                .unwrap_or_else(|error| panic!("{seed}: {error}"));
        }
        for seed in names(&folder("seeds/image_reference")) {
            let text = String::from_utf8(read("image_reference", &seed)).unwrap();
            Reference::parse(&text).unwrap_or_else(|error| panic!("{seed}: {error}"));
        }
    }
}
