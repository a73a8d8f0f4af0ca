//! One 512-byte tar header block as a value. Formats: POSIX.1-1988 ustar, old V7, GNU and star.
//! Pure; long names and extended headers are put together in `tar.rs`.

/// Size of every header block and the unit content is padded to.
pub(crate) const BLOCK: usize = 512;

/// Which dialect the magic field names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    V7,
    Ustar,
    Gnu,
}

/// The fields of a header block, decoded but not yet judged.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    pub(crate) device: (u32, u32),
    pub(crate) dialect: Dialect,
}

/// Decodes a block. `None` is the block of zeros that ends an archive.
pub(crate) fn parse(block: &[u8; BLOCK]) -> Result<Option<Header>, &'static str> {
    if block.iter().all(|&b| b == 0) {
        return Ok(None);
    }
    check_sum(block)?;
    let dialect = match (&block[257..263], &block[263..265]) {
        (b"ustar\0", b"00") => Dialect::Ustar,
        // Some readers take this for ustar, some for V7.
        (b"ustar\0", _) => return Err("version of the ustar format is not known"),
        (b"ustar ", b" \0") => Dialect::Gnu,
        _ => Dialect::V7,
    };
    let mut name = text(&block[..100]).to_vec();
    if dialect == Dialect::Ustar {
        // star keeps its times in the last 24 bytes of what is the prefix in ustar.
        let prefix = if &block[508..512] == b"tar\0" {
            &block[345..476]
        } else {
            &block[345..500]
        };
        let prefix = text(prefix);
        if !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
    }
    let device = if dialect == Dialect::V7 {
        (0, 0)
    } else {
        (
            unsigned(&block[329..337], "device major number is not valid")?,
            unsigned(&block[337..345], "device minor number is not valid")?,
        )
    };
    Ok(Some(Header {
        name,
        link: text(&block[157..257]).to_vec(),
        kind: block[156],
        mode: permissions(&block[100..108])?,
        uid: unsigned(&block[108..116], "uid is not valid")?,
        gid: unsigned(&block[116..124], "gid is not valid")?,
        size: unsigned(&block[124..136], "size is not valid")?,
        mtime: number(&block[136..148]).ok_or("mtime is not valid")?,
        device,
        dialect,
    }))
}

/// Returns the part before the first NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|&b| b == 0).next().unwrap_or(&[])
}

/// Decodes a numeric field: octal digits, or base 256 when the first bit is set (GNU).
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    if field.first().is_some_and(|b| b & 0x80 != 0) {
        return base256(field);
    }
    let blank = |b: &u8| matches!(b, b' ' | 0);
    let start = field.iter().position(|b| !blank(b)).unwrap_or(field.len());
    let digits = text(&field[start..]);
    let end = digits
        .iter()
        .rposition(|b| *b != b' ')
        .map_or(0, |last| last + 1);
    let digits = &digits[..end];
    if digits.is_empty() {
        return Some(0);
    }
    digits.iter().try_fold(0_i64, |value, &b| match b {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(b - b'0')),
        _ => None,
    })
}

/// Two's complement, big endian, with the top bit of the first byte as the marker.
fn base256(field: &[u8]) -> Option<i64> {
    let negative = field[0] & 0x40 != 0;
    let mut value: i64 = if negative { -1 } else { 0 };
    for (index, &byte) in field.iter().enumerate() {
        let byte = match (index, negative) {
            (0, false) => byte & 0x7f,
            _ => byte,
        };
        value = value.checked_mul(256)?.checked_add(i64::from(byte))?;
    }
    // A negative number was started from -1, so its leading 0xff bytes changed nothing.
    Some(value)
}

/// Some writers put the file type into the upper bits; only permissions are wanted.
fn permissions(field: &[u8]) -> Result<u32, &'static str> {
    let mode = number(field).ok_or("mode is not valid")?;
    u32::try_from(mode & 0o7777).map_err(|_| "mode is not valid")
}

fn unsigned<T: TryFrom<i64>>(field: &[u8], error: &'static str) -> Result<T, &'static str> {
    T::try_from(number(field).ok_or(error)?).map_err(|_| error)
}

/// Compares the checksum, taken over unsigned bytes or, as some old writers did, signed ones.
fn check_sum(block: &[u8; BLOCK]) -> Result<(), &'static str> {
    let stored = number(&block[148..156]).ok_or("checksum is not a number")?;
    // Neither can overflow; without looking for that, many bytes are added at a time.
    let sum = |bytes: &[u8]| {
        let add = |sum: u32, &byte: &u8| sum.wrapping_add(byte.into());
        i64::from(bytes.iter().fold(0, add))
    };
    let negative = |bytes: &[u8]| {
        let add = |count: u32, &byte: &u8| count.wrapping_add(u32::from(byte >> 7));
        i64::from(bytes.iter().fold(0, add))
    };
    // The field itself counts as blanks.
    let (before, after) = (&block[..148], &block[156..]);
    let plain = sum(before) + sum(after) + 8 * i64::from(b' ');
    let signed = plain - 256 * (negative(before) + negative(after));
    if stored == plain || stored == signed {
        Ok(())
    } else {
        Err("checksum does not match")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_both_notations() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"644\0junk", Some(0o644)),
            (b"0000648\0", None),
            (b"-1\0", None),
            (b"\x80\0\0\0\0\0\0\x05", Some(5)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\x7f\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(number(field), expected, "{field:?}");
        }
    }
}
