//! PAX extended headers (POSIX.1-2001, pax, "ustar-Compatible ... Extended Header") as values. Pure.

/// The part of a PAX key that announces an extended attribute, as star and Go write it.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// A point in time as archives state it; seconds may be negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// What the extended header of one entry says. A record with an empty value cancels itself.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Extended {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) mtime: Option<Time>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: SparseRecords,
}

/// The GNU sparse records of an extended header.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct SparseRecords {
    pub(crate) major: Option<u64>,
    pub(crate) minor: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    /// Size with holes: `GNU.sparse.realsize` of 1.0, `GNU.sparse.size` of 0.x.
    pub(crate) real_size: Option<u64>,
    /// Number of segments of 0.x.
    pub(crate) count: Option<u64>,
    /// Alternating offsets and lengths of 0.x.
    pub(crate) map: Vec<u64>,
}

impl SparseRecords {
    pub(crate) fn is_used(&self) -> bool {
        *self != Self::default()
    }
}

/// Key and value.
type Record<'a> = (&'a [u8], &'a [u8]);

/// Splits a header into its records: `"<length> <key>=<value>\n"`.
fn records(mut rest: &[u8]) -> Result<Vec<Record<'_>>, &'static str> {
    let mut found = Vec::new();
    while !rest.is_empty() {
        let space = rest
            .iter()
            .take(20)
            .position(|&b| b == b' ')
            .ok_or("record has no length")?;
        let length = decimal(&rest[..space]).ok_or("record length is not a number")?;
        let length = usize::try_from(length).map_err(|_| "record length is too large")?;
        if length <= space + 1 || length > rest.len() || rest[length - 1] != b'\n' {
            return Err("record length is wrong");
        }
        let record = &rest[space + 1..length - 1];
        let equals = record
            .iter()
            .position(|&b| b == b'=')
            .ok_or("record has no \"=\"")?;
        let key = &record[..equals];
        if key.is_empty() || key.contains(&0) {
            return Err("record key is not valid");
        }
        found.push((key, &record[equals + 1..]));
        rest = &rest[length..];
    }
    Ok(found)
}

/// Reads the records that matter to unpacking; others (names, access times, comments) are left out.
pub(crate) fn parse(bytes: &[u8], sparse_segments: usize) -> Result<Extended, &'static str> {
    let mut out = Extended::default();
    for (key, value) in records(bytes)? {
        let some = !value.is_empty();
        match key {
            b"path" => out.path = some.then(|| name(value)).transpose()?,
            b"linkpath" => out.link = some.then(|| name(value)).transpose()?,
            b"size" => out.size = integer(value, "size record is not a number")?,
            b"uid" => out.uid = integer(value, "uid record is not a number")?,
            b"gid" => out.gid = integer(value, "gid record is not a number")?,
            b"mtime" => {
                out.mtime = some
                    .then(|| time(value).ok_or("mtime record is not a time"))
                    .transpose()?;
            }
            _ if key.starts_with(b"GNU.sparse.") => {
                sparse_record(&mut out.sparse, &key[11..], value, sparse_segments)?;
            }
            _ => {
                if let Some(attribute) = key.strip_prefix(XATTR_PREFIX) {
                    out.xattrs.retain(|(known, _)| known != attribute);
                    out.xattrs.push((attribute.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(out)
}

/// Refuses a global header that would change where entries end or what they are called: readers
/// disagree on those, which is how entries are smuggled (CVE-2025-62518).
pub(crate) fn check_global(bytes: &[u8]) -> Result<(), &'static str> {
    for (key, _) in records(bytes)? {
        if matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.") {
            return Err("global header sets path, linkpath, size or a sparse map");
        }
    }
    Ok(())
}

fn sparse_record(
    sparse: &mut SparseRecords,
    key: &[u8],
    value: &[u8],
    limit: usize,
) -> Result<(), &'static str> {
    const BAD: &str = "sparse record is not a number";
    match key {
        b"major" => sparse.major = integer(value, BAD)?,
        b"minor" => sparse.minor = integer(value, BAD)?,
        b"name" => sparse.name = Some(name(value)?),
        b"realsize" | b"size" => sparse.real_size = integer(value, BAD)?,
        b"numblocks" => sparse.count = integer(value, BAD)?,
        b"offset" | b"numbytes" => {
            let expect_offset = sparse.map.len().is_multiple_of(2);
            if expect_offset != (key == b"offset") {
                return Err("sparse offsets and lengths do not alternate");
            }
            sparse.map.push(decimal(value).ok_or(BAD)?);
        }
        b"map" => {
            sparse.map.clear();
            for part in value.split(|&b| b == b',') {
                sparse.map.push(decimal(part).ok_or(BAD)?);
                if sparse.map.len() > limit.saturating_mul(2) {
                    break;
                }
            }
        }
        _ => {}
    }
    if sparse.map.len() > limit.saturating_mul(2) {
        return Err("sparse map has too many segments");
    }
    Ok(())
}

fn name(value: &[u8]) -> Result<Vec<u8>, &'static str> {
    if value.contains(&0) {
        return Err("path or linkpath record contains a NUL");
    }
    Ok(value.to_vec())
}

fn integer(value: &[u8], error: &'static str) -> Result<Option<u64>, &'static str> {
    if value.is_empty() {
        return Ok(None);
    }
    decimal(value).map(Some).ok_or(error)
}

/// Decodes digits only: no sign, no space. The value fits a file offset.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    let value = digits.iter().try_fold(0_u64, |value, &b| {
        b.is_ascii_digit().then(|| value * 10 + u64::from(b - b'0'))
    })?;
    (value <= i64::MAX.unsigned_abs()).then_some(value)
}

/// Decodes `[-]seconds[.fraction]`; digits beyond nanoseconds are cut.
fn time(value: &[u8]) -> Option<Time> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let mut parts = digits.splitn(2, |&b| b == b'.');
    let whole = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or(b"");
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds = (0..9)
        .map(|i| u32::from(fraction.get(i).map_or(0, |b| b - b'0')))
        .fold(0, |value, digit| value * 10 + digit);
    Some(match (negative, nanoseconds) {
        (false, _) => Time {
            seconds: whole,
            nanoseconds,
        },
        (true, 0) => Time {
            seconds: -whole,
            nanoseconds,
        },
        // Nanoseconds count forward, so -1.25 is two seconds back and 0.75 forward.
        (true, _) => Time {
            seconds: -whole - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_records() {
        let parsed = parse(b"12 path=a/b\n21 mtime=1350244992.5\n", 8);
        assert_eq!(parsed, Err("record length is wrong"));
        let parsed = parse(b"12 path=a/b\n22 mtime=1350244992.5\n11 size=12\n", 8).unwrap();
        assert_eq!(parsed.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(parsed.size, Some(12));
        assert_eq!(
            parsed.mtime,
            Some(Time {
                seconds: 1_350_244_992,
                nanoseconds: 500_000_000
            })
        );
    }

    #[test]
    fn negative_times_count_forward() {
        assert_eq!(
            time(b"-1.25"),
            Some(Time {
                seconds: -2,
                nanoseconds: 750_000_000
            })
        );
        assert_eq!(
            time(b"-3"),
            Some(Time {
                seconds: -3,
                nanoseconds: 0
            })
        );
        assert_eq!(time(b"1.x"), None);
    }

    #[test]
    fn refuses_malformed_records() {
        for text in [
            &b"x path=a\n"[..],
            b"5\n",
            b"99 path=a\n",
            b"6 a=b\n7",
            b"6 =bc\n",
            b"5 a=b\n",
            b"8 abcde\n",
            b"99999999999999999999 a=b\n",
            b"0 a=b\n",
        ] {
            assert!(parse(text, 8).is_err(), "{}", text.escape_ascii());
        }
        assert!(parse(b"10 path=\0\0\n", 8).is_err());
        assert!(check_global(b"10 size=1\n").is_err() && check_global(b"11 size=12\n").is_err());
        assert!(check_global(b"13 comment=x\n").is_ok());
    }

    proptest! {
        #[test]
        fn parse_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, 4);
        }
    }
}
