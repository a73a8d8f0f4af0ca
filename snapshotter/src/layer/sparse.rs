//! Maps of sparse files: which stored bytes belong where. Pure; old GNU notation and checks.

use super::header::{BLOCK, number};

/// A run of stored bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

const BAD: &str = "sparse map is not valid";

/// Reads the part of an old GNU map that is in the header block. Returns the segments, the size
/// with holes, and whether more blocks follow.
pub(crate) fn old_header(block: &[u8; BLOCK]) -> Result<(Vec<Segment>, u64, bool), &'static str> {
    let mut segments = Vec::new();
    slots(&block[386..482], &mut segments)?;
    let size = number(&block[483..495])
        .and_then(|n| u64::try_from(n).ok())
        .ok_or(BAD)?;
    Ok((segments, size, block[482] != 0))
}

/// Reads one continuation block and returns whether another follows.
pub(crate) fn old_extension(
    block: &[u8; BLOCK],
    segments: &mut Vec<Segment>,
) -> Result<bool, &'static str> {
    slots(&block[..504], segments)?;
    Ok(block[504] != 0)
}

fn slots(bytes: &[u8], segments: &mut Vec<Segment>) -> Result<(), &'static str> {
    for slot in bytes.chunks_exact(24) {
        if slot[0] == 0 || slot[12] == 0 {
            break;
        }
        let field = |range: &[u8]| number(range).and_then(|n| u64::try_from(n).ok()).ok_or(BAD);
        segments.push(Segment {
            offset: field(&slot[..12])?,
            length: field(&slot[12..])?,
        });
    }
    Ok(())
}

/// Pairs up alternating offsets and lengths.
pub(crate) fn pairs(numbers: &[u64]) -> Result<Vec<Segment>, &'static str> {
    if !numbers.len().is_multiple_of(2) {
        return Err(BAD);
    }
    Ok(numbers
        .chunks_exact(2)
        .map(|p| Segment {
            offset: p[0],
            length: p[1],
        })
        .collect())
}

/// Checks that a map is ordered, stays inside the file and accounts for every stored byte.
pub(crate) fn check(segments: &[Segment], size: u64, stored: u64) -> Result<(), &'static str> {
    let mut end = 0_u64;
    let mut total = 0_u64;
    for segment in segments {
        if segment.offset < end {
            return Err("sparse map is not in order");
        }
        end = segment.offset.checked_add(segment.length).ok_or(BAD)?;
        total = total.checked_add(segment.length).ok_or(BAD)?;
    }
    if end > size || size > i64::MAX.unsigned_abs() {
        return Err("sparse map exceeds the file");
    }
    if total != stored {
        return Err("sparse map and stored content differ in size");
    }
    Ok(())
}
