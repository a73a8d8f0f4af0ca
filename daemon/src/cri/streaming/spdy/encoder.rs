//! Frames to bytes.

use bytes::{BufMut as _, BytesMut};
use flate2::{Compress, Compression, FlushCompress};

use super::dictionary::dictionary;
use super::{FLAG_FIN, Frame, Headers, MAX_HEADER_BYTES, SpdyError, kind};

/// Spare room for what zlib writes besides the headers: its head, block heads, the flush.
const ZLIB_OVERHEAD: usize = 1024;

/// The sending side of a connection.
#[derive(Debug)]
pub struct Encoder {
    zlib: Compress,
    primed: bool,
}

impl Default for Encoder {
    fn default() -> Self {
        Self {
            zlib: Compress::new(Compression::fast(), true),
            primed: false,
        }
    }
}

impl Encoder {
    /// Appends a frame to `out`.
    ///
    /// # Errors
    /// A part is longer than its length field, or headers are more than a peer takes; a part of the frame may be
    /// in `out` then, and the connection cannot go on.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), SpdyError> {
        match frame {
            Frame::Data { stream, fin, bytes } => {
                out.put_u32(*stream & 0x7fff_ffff);
                head(out, *fin, bytes.len())?;
                out.extend_from_slice(bytes);
            }
            Frame::SynStream {
                stream,
                fin,
                headers,
            } => {
                let block = self.block(headers)?;
                control(out, kind::SYN_STREAM, *fin, 10 + block.len())?;
                out.put_u32(*stream);
                // No associated stream, the highest priority, no slot.
                out.put_u32(0);
                out.put_u16(0);
                out.extend_from_slice(&block);
            }
            Frame::SynReply {
                stream,
                fin,
                headers,
            } => self.with_headers(kind::SYN_REPLY, *stream, *fin, headers, out)?,
            Frame::Headers {
                stream,
                fin,
                headers,
            } => self.with_headers(kind::HEADERS, *stream, *fin, headers, out)?,
            Frame::RstStream { stream, code } => pair(out, kind::RST_STREAM, *stream, *code)?,
            Frame::GoAway { last_stream, code } => pair(out, kind::GOAWAY, *last_stream, *code)?,
            Frame::WindowUpdate { stream, delta } => {
                pair(out, kind::WINDOW_UPDATE, *stream, *delta)?;
            }
            Frame::Ping { id } => {
                control(out, kind::PING, false, 4)?;
                out.put_u32(*id);
            }
            Frame::Settings { entries } => {
                control(out, kind::SETTINGS, false, 4 + 8 * entries)?;
                out.put_u32(u32::try_from(*entries).unwrap_or(u32::MAX));
                // Setting 4, most streams at once: the only one whose value a peer may read.
                for _ in 0..*entries {
                    out.put_u32(4);
                    out.put_u32(super::super::MAX_STREAMS);
                }
            }
        }
        Ok(())
    }

    fn with_headers(
        &mut self,
        kind: u16,
        stream: u32,
        fin: bool,
        headers: &Headers,
        out: &mut BytesMut,
    ) -> Result<(), SpdyError> {
        let block = self.block(headers)?;
        control(out, kind, fin, 4 + block.len())?;
        out.put_u32(stream);
        out.extend_from_slice(&block);
        Ok(())
    }

    /// Deflates one block up to a flush, so that the peer can inflate all of it.
    fn block(&mut self, headers: &Headers) -> Result<Vec<u8>, SpdyError> {
        let bad = |reason| SpdyError::HeaderBlock { reason };
        if !self.primed {
            let set = self.zlib.set_dictionary(&dictionary());
            set.map_err(|_| bad("zlib does not take the dictionary"))?;
            self.primed = true;
        }
        let mut text = BytesMut::new();
        text.put_u32(length(headers.len())?);
        for part in headers.iter().flat_map(|(name, value)| [name, value]) {
            text.put_u32(length(part.len())?);
            text.extend_from_slice(part.as_bytes());
        }
        if text.len() > MAX_HEADER_BYTES {
            return Err(SpdyError::TooLarge {
                what: "a header block",
                value: text.len(),
                limit: MAX_HEADER_BYTES,
            });
        }
        let mut block = Vec::with_capacity(text.len() + ZLIB_OVERHEAD);
        let done = self
            .zlib
            .compress_vec(&text, &mut block, FlushCompress::Sync);
        done.map_err(|_| bad("it does not deflate"))?;
        if block.len() == block.capacity() {
            return Err(bad("it deflates to more than there is room for"));
        }
        Ok(block)
    }
}

fn length(value: usize) -> Result<u32, SpdyError> {
    let what = "a header";
    u32::try_from(value).map_err(|_| SpdyError::Length { what, value })
}

fn control(out: &mut BytesMut, kind: u16, fin: bool, length: usize) -> Result<(), SpdyError> {
    out.put_u16(0x8003);
    out.put_u16(kind);
    head(out, fin, length)
}

fn pair(out: &mut BytesMut, kind: u16, first: u32, second: u32) -> Result<(), SpdyError> {
    control(out, kind, false, 8)?;
    out.put_u32(first);
    out.put_u32(second);
    Ok(())
}

/// Flags and length, the second half of any frame's head.
fn head(out: &mut BytesMut, fin: bool, length: usize) -> Result<(), SpdyError> {
    let value = u32::try_from(length).ok().filter(|value| *value < 1 << 24);
    let Some(value) = value else {
        let (what, value) = ("a frame", length);
        return Err(SpdyError::Length { what, value });
    };
    let flags = if fin { u32::from(FLAG_FIN) } else { 0 };
    out.put_u32(flags << 24 | value);
    Ok(())
}
