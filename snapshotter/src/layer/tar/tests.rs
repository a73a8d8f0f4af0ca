//! The reader against another one: on damaged archives both see the same entries, or one refuses.

use std::io::Read;

use proptest::prelude::*;

use super::*;

/// What an archive contains, as far as a smuggled entry would show: path, size and digest.
type Listing = Vec<(String, usize, crate::Digest)>;

fn listed(path: &[u8], content: &[u8]) -> (String, usize, crate::Digest) {
    // The other reader keeps the NULs a long name is padded with.
    let path = String::from_utf8_lossy(path)
        .trim_end_matches('\0')
        .to_owned();
    (path, content.len(), crate::Digest::sha256_of(content))
}

fn ours(bytes: &[u8]) -> Result<Listing, TarError> {
    let mut reader = TarReader::new(bytes, Limits::default());
    let mut list = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        loop {
            let piece = reader.content()?;
            if piece.is_empty() {
                break;
            }
            content.extend_from_slice(piece);
            let amount = piece.len();
            reader.consume(amount);
        }
        if entry.sparse.is_none() {
            list.push(listed(&entry.path, &content));
        }
    }
    Ok(list)
}

fn theirs(bytes: &[u8]) -> std::io::Result<Listing> {
    let mut archive = ::tar::Archive::new(bytes);
    let mut list = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() || kind.is_gnu_sparse() {
            continue;
        }
        let path = entry.path_bytes().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        list.push(listed(&path, &content));
    }
    Ok(list)
}

/// An archive with short and long names, PAX headers and a nested archive to smuggle.
fn sample() -> Vec<u8> {
    let mut inner = ::tar::Builder::new(Vec::new());
    let add = |builder: &mut ::tar::Builder<Vec<u8>>, path: &str, content: &[u8]| {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content).unwrap();
    };
    add(&mut inner, "smuggled", b"evil");
    let inner = inner.into_inner().unwrap();
    let mut builder = ::tar::Builder::new(Vec::new());
    add(&mut builder, "first", b"1");
    builder
        .append_pax_extensions([("path", &b"renamed"[..]), ("mtime", b"12.5")])
        .unwrap();
    add(&mut builder, "second", &inner);
    add(&mut builder, &"long/".repeat(40), b"");
    let size = inner.len().to_string();
    builder
        .append_pax_extensions([("size", size.as_bytes())])
        .unwrap();
    add(&mut builder, "third", &inner);
    add(&mut builder, "last", b"the end");
    builder.into_inner().unwrap()
}

#[test]
fn both_readers_agree_on_a_valid_archive() {
    let bytes = sample();
    let list = ours(&bytes).unwrap();
    assert_eq!(list.len(), 5);
    assert_eq!(list[1].0, "renamed");
    assert_eq!(list, theirs(&bytes).unwrap());
}

/// Writes the checksum of every header block that had a right one before the damage.
fn repair(bytes: &mut [u8], headers: &[usize]) {
    for &at in headers {
        let block = &mut bytes[at..at + BLOCK];
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

fn headers_of(bytes: &[u8]) -> Vec<usize> {
    (0..bytes.len() / BLOCK)
        .map(|block| block * BLOCK)
        .filter(|at| {
            let block: &[u8; BLOCK] = bytes[*at..at + BLOCK].try_into().unwrap();
            matches!(header::parse(block), Ok(Some(_)))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn cve_2025_62518_damaged_archives_are_read_alike_or_refused(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), 0..BLOCK, any::<u8>(), any::<bool>()), 1..4),
    ) {
        let mut bytes = sample();
        let headers = headers_of(&bytes);
        for (header, offset, value, digit) in damage {
            // Mostly where sizes, types and the text of extended headers are.
            let value = if digit { b'0' + value % 8 } else { value };
            let at = headers[header.index(headers.len())] + offset;
            bytes[at] = value;
        }
        repair(&mut bytes, &headers);
        if let (Ok(ours), Ok(theirs)) = (ours(&bytes), theirs(&bytes)) {
            prop_assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn any_bytes_end_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = ours(&bytes);
    }
}
