//! The compressions a layer may have, as readers. Rules for concatenated members and for bytes
//! after the end are those of Go's gzip: members follow each other, anything else is an error.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

/// How the blob of a layer is compressed, from its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// A plain tar archive.
    None,
    /// gzip, one or more members.
    Gzip,
    /// zstd, one or more frames, with a window up to [`Limits::zstd_window`](super::limits::Limits).
    Zstd,
}

/// Returns a reader of the inflated bytes. A zstd window may have `zstd_window` bytes, rounded down to a power of
/// two.
pub(crate) fn reader<'a, R: BufRead + 'a>(
    compression: Compression,
    input: R,
    zstd_window: u64,
) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(MultiGzDecoder::new(input)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            // The format has windows from 1 KiB.
            decoder.window_log_max(zstd_window.checked_ilog2().unwrap_or(0).clamp(10, 31))?;
            Box::new(decoder)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn inflate(compression: Compression, bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        reader(compression, bytes, 64 << 20)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn members_and_frames_follow_each_other() {
        let members = [gzip(b"one"), gzip(b""), gzip(b"two")].concat();
        assert_eq!(inflate(Compression::Gzip, &members).unwrap(), b"onetwo");
        let frame = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
        let frames = [frame(b"one"), frame(b"two")].concat();
        assert_eq!(inflate(Compression::Zstd, &frames).unwrap(), b"onetwo");
    }

    #[test]
    fn cut_empty_and_followed_by_garbage_are_errors() {
        let member = gzip(b"content that is long enough to be cut");
        assert!(inflate(Compression::Gzip, &member[..member.len() - 1]).is_err());
        assert!(inflate(Compression::Gzip, b"").is_err());
        assert!(inflate(Compression::Gzip, &[&member[..], b"garbage bytes"].concat()).is_err());
        assert!(inflate(Compression::Gzip, &[&member[..], &[0; 16]].concat()).is_err());
        let frame = zstd::encode_all(&b"content"[..], 3).unwrap();
        assert!(inflate(Compression::Zstd, &frame[..frame.len() - 1]).is_err());
        assert!(inflate(Compression::Zstd, &[&frame[..], b"garbage"].concat()).is_err());
    }

    #[test]
    fn cve_2017_14992_a_zstd_window_of_two_gib_is_refused() {
        // Frame header: magic, descriptor without single segment, window descriptor 2^31.
        let frame = [
            &[0x28, 0xb5, 0x2f, 0xfd, 0x00, (31 - 10) << 3][..],
            &[1, 0, 0],
        ]
        .concat();
        let error = inflate(Compression::Zstd, &frame).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
    }
}
