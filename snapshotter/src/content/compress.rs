//! Compressing an archive as it is read. Equal archives give equal bytes, so that a digest can be told before the
//! bytes are written.

use std::io::{self, Read};

use crate::layer::inflate::Compression;

/// zlib's own choice between time and size.
const GZIP_LEVEL: u32 = 6;
/// zstd's own choice.
const ZSTD_LEVEL: i32 = 3;

/// Compresses what `archive` reads.
///
/// # Errors
/// The compressor cannot be set up.
pub fn compress<'a>(
    archive: impl Read + 'a,
    compression: Compression,
) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(archive),
        // Without a time or a name in its header.
        Compression::Gzip => Box::new(flate2::read::GzEncoder::new(
            archive,
            flate2::Compression::new(GZIP_LEVEL),
        )),
        Compression::Zstd => {
            let input = io::BufReader::new(archive);
            Box::new(zstd::stream::read::Encoder::with_buffer(input, ZSTD_LEVEL)?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_archives_give_equal_bytes() {
        let archive: Vec<u8> = (0..200_000u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let packed = || {
                let mut bytes = Vec::new();
                let mut input = compress(&archive[..], compression).unwrap();
                input.read_to_end(&mut bytes).unwrap();
                bytes
            };
            let first = packed();
            assert_eq!(first, packed());
            let mut back = Vec::new();
            let read = match compression {
                Compression::None => (&first[..]).read_to_end(&mut back),
                Compression::Gzip => {
                    flate2::read::GzDecoder::new(&first[..]).read_to_end(&mut back)
                }
                Compression::Zstd => zstd::stream::read::Decoder::new(&first[..])
                    .unwrap()
                    .read_to_end(&mut back),
            };
            read.unwrap();
            assert!(back == archive, "{compression:?}");
        }
    }
}
