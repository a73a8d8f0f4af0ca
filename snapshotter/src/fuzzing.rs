//! What the fuzz targets do with their bytes (`fuzz/fuzz_targets` only names these functions, so that the
//! everyday build checks them). Each panics when something that must always hold does not.

use crate::layer::entry::{Action, LayerPath, plan};
use crate::layer::limits::Limits;
use crate::layer::skeleton::Recorder;
use crate::layer::tar::TarReader;
use crate::layer::whiteout::{Marker, is_reserved, marker};
use crate::worker::fuzzed_report;

fn small() -> Limits {
    Limits {
        entries: 1000,
        pax_bytes: 4096,
        sparse_segments: 64,
        ..Limits::default()
    }
}

fn assert_inside(path: &LayerPath) {
    assert!(path.as_bytes().len() <= small().path_bytes);
    assert!(!path.as_bytes().contains(&0));
    for name in path.components() {
        assert!(!matches!(name, b"" | b"." | b".."), "{path:?}");
        assert!(name.len() <= small().name_bytes);
    }
}

/// An archive: entries that stay inside and within their limits, or an error.
pub fn layer_tar(bytes: &[u8]) {
    let limits = small();
    let mut archive = TarReader::new(Recorder::counting(bytes), limits);
    let mut entries = 0;
    let mut content = 0;
    while let Ok(Some(entry)) = archive.next_entry() {
        entries += 1;
        assert!(entries <= limits.entries);
        let (stored, segments) = (entry.size, entry.sparse.clone());
        let Ok(action) = plan(entry, &limits) else {
            continue;
        };
        match &action {
            Action::Directory { path, .. }
            | Action::File { path, .. }
            | Action::Symlink { path, .. }
            | Action::Node { path, .. }
            | Action::Whiteout { path }
            | Action::Opaque { directory: path } => assert_inside(path),
            Action::HardLink { path, target } => {
                assert_inside(path);
                assert_inside(target);
                assert!(!target.is_root());
            }
            Action::Nothing => {}
        }
        if let Some(segments) = segments {
            assert!(segments.len() <= limits.sparse_segments);
            let ends = segments.iter().map(|s| s.offset + s.length);
            assert!(ends.max().unwrap_or(0) <= stored, "{segments:?}");
        }
        if matches!(action, Action::File { .. }) {
            while let Ok(piece) = archive.content() {
                let amount = piece.len();
                if amount == 0 {
                    break;
                }
                content += amount;
                assert!(content <= bytes.len(), "more content than archive");
                if archive.take_content(amount).is_err() {
                    break;
                }
            }
        }
    }
}

/// A path of an archive and the meaning of its last name.
pub fn whiteout_names(bytes: &[u8]) {
    if let Ok(Marker::Remove(hidden)) = marker(bytes) {
        assert!(!matches!(hidden, b"" | b"." | b".."));
        assert!(is_reserved(bytes));
    }
    let Ok(path) = LayerPath::parse(bytes, &small()) else {
        return;
    };
    assert_inside(&path);
    let again = LayerPath::parse(&[b"/./", path.as_bytes()].concat(), &small());
    // Three bytes more may be too long.
    assert!(again.is_err() || again.as_ref() == Ok(&path));
    if let Some((directory, name)) = path.split() {
        assert_eq!(directory.join(name), path);
        assert!(path.is_below(&directory));
        if let Ok(Marker::Remove(hidden)) = marker(name) {
            assert_inside(&directory.join(hidden));
        }
    }
}

/// What an unpack process that was taken over may say.
pub fn unpack_report(bytes: &[u8]) {
    for path in fuzzed_report(bytes) {
        assert_inside_record(&path);
    }
}

/// Paths that come back are in the form of our own records; their length is bounded by the frame.
fn assert_inside_record(path: &[u8]) {
    assert!(!path.contains(&0) && !path.starts_with(b"/") && !path.ends_with(b"/"));
    let plain = |name: &[u8]| !matches!(name, b"" | b"." | b"..");
    assert!(path.is_empty() || path.split(|&b| b == b'/').all(plain));
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    type Target = (&'static str, fn(&[u8]));

    /// The seeds are valid inputs, so each target does something with them.
    #[test]
    fn the_seeds_of_the_fuzz_targets_hold() {
        let targets: [Target; 3] = [
            ("layer_tar", layer_tar),
            ("whiteout_names", whiteout_names),
            ("unpack_report", unpack_report),
        ];
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        for (name, target) in targets {
            let text = fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
            assert!(text.contains(&format!("fuzzing::{name}(bytes)")));
            let mut count = 0;
            for seed in fs::read_dir(fuzz.join("seeds").join(name)).unwrap() {
                target(&fs::read(seed.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count >= 3, "{name} has {count} seeds");
        }
    }
}
