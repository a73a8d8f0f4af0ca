//! Bytes to frames. Nothing is allocated for a length that is not checked.

use bytes::{Buf as _, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::dictionary;
use super::{
    FLAG_FIN, Frame, Headers, MAX_CONTROL, MAX_HEADER_BYTES, MAX_HEADERS, MAX_PIECE, SpdyError,
    kind,
};

/// Bytes before the payload of any frame.
const HEAD: usize = 8;

/// The receiving side of a connection.
#[derive(Debug)]
pub struct Decoder {
    zlib: Decompress,
    /// What is still to come of a data frame that is handed on in pieces.
    rest: Option<Rest>,
}

#[derive(Debug)]
struct Rest {
    stream: u32,
    fin: bool,
    left: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            zlib: Decompress::new(true),
            rest: None,
        }
    }
}

impl Decoder {
    /// Takes the next frame, or the next piece of one, off `input`; `None` when more bytes are needed.
    ///
    /// # Errors
    /// The bytes are no SPDY that is taken; the connection has to be closed.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, SpdyError> {
        loop {
            if let Some(rest) = self.rest.take() {
                return Ok(self.piece(rest, input));
            }
            let Some(head) = input.first_chunk::<HEAD>() else {
                return Ok(None);
            };
            let [a, b, c, d, flags, length @ ..] = *head;
            let length =
                usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2]);
            if a & 0x80 == 0 {
                let stream = u32::from_be_bytes([a, b, c, d]);
                if stream == 0 {
                    let what = "a data frame";
                    return Err(SpdyError::Stream { what, stream });
                }
                input.advance(HEAD);
                self.rest = Some(Rest {
                    stream,
                    fin: flags & FLAG_FIN != 0,
                    left: length,
                });
                continue;
            }
            let version = u16::from_be_bytes([a & 0x7f, b]);
            if version != 3 {
                return Err(SpdyError::Version { version });
            }
            if length > MAX_CONTROL {
                return Err(SpdyError::TooLarge {
                    what: "a control frame",
                    value: length,
                    limit: MAX_CONTROL,
                });
            }
            if input.len() < HEAD + length {
                return Ok(None);
            }
            input.advance(HEAD);
            let payload = input.split_to(length).freeze();
            let frame = self.control(u16::from_be_bytes([c, d]), flags, payload)?;
            // A type that is not known is to be ignored (SPDY/3, 2.2.1).
            if frame.is_some() {
                return Ok(frame);
            }
        }
    }

    /// As much of a data frame as there is.
    fn piece(&mut self, rest: Rest, input: &mut BytesMut) -> Option<Frame> {
        let Rest { stream, fin, left } = rest;
        let count = left.min(input.len()).min(MAX_PIECE);
        if count == 0 && left > 0 {
            self.rest = Some(rest);
            return None;
        }
        let left = left - count;
        if left > 0 {
            self.rest = Some(Rest { stream, fin, left });
        }
        Some(Frame::Data {
            stream,
            fin: fin && left == 0,
            bytes: input.split_to(count).freeze(),
        })
    }

    fn control(
        &mut self,
        kind: u16,
        flags: u8,
        mut payload: Bytes,
    ) -> Result<Option<Frame>, SpdyError> {
        let fin = flags & FLAG_FIN != 0;
        let frame = match kind {
            kind::SYN_STREAM => {
                let what = "SYN_STREAM";
                at_least(what, &payload, 10)?;
                let stream = stream_id(what, &mut payload)?;
                // The associated stream, priority and slot mean nothing here.
                payload.advance(6);
                let headers = self.headers(&payload)?;
                Frame::SynStream {
                    stream,
                    fin,
                    headers,
                }
            }
            kind::SYN_REPLY | kind::HEADERS => {
                let what = "SYN_REPLY or HEADERS";
                at_least(what, &payload, 4)?;
                let stream = stream_id(what, &mut payload)?;
                let headers = self.headers(&payload)?;
                if kind == kind::SYN_REPLY {
                    Frame::SynReply {
                        stream,
                        fin,
                        headers,
                    }
                } else {
                    Frame::Headers {
                        stream,
                        fin,
                        headers,
                    }
                }
            }
            kind::RST_STREAM => {
                let what = "RST_STREAM";
                exactly(what, &payload, 8)?;
                let stream = stream_id(what, &mut payload)?;
                let code = payload.get_u32();
                Frame::RstStream { stream, code }
            }
            kind::SETTINGS => {
                let what = "SETTINGS";
                at_least(what, &payload, 4)?;
                let claimed = payload.get_u32();
                // The claim is compared with what is there and not used for anything else.
                if u64::from(claimed) * 8 != payload.len() as u64 {
                    let value = payload.len();
                    return Err(SpdyError::Length { what, value });
                }
                Frame::Settings {
                    entries: payload.len() / 8,
                }
            }
            kind::PING => {
                exactly("PING", &payload, 4)?;
                Frame::Ping {
                    id: payload.get_u32(),
                }
            }
            kind::GOAWAY => {
                exactly("GOAWAY", &payload, 8)?;
                let last_stream = payload.get_u32() & 0x7fff_ffff;
                let code = payload.get_u32();
                Frame::GoAway { last_stream, code }
            }
            kind::WINDOW_UPDATE => {
                exactly("WINDOW_UPDATE", &payload, 8)?;
                let stream = payload.get_u32() & 0x7fff_ffff;
                let delta = payload.get_u32() & 0x7fff_ffff;
                Frame::WindowUpdate { stream, delta }
            }
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, SpdyError> {
        let text = self.inflate(block)?;
        parse_headers(text.into())
    }

    /// Inflates one block. The zlib stream goes on over all blocks, so an error is one of the connection.
    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let bad = |reason| SpdyError::HeaderBlock { reason };
        // One more than is taken, so that a longer block shows.
        let mut out = Vec::with_capacity(MAX_HEADER_BYTES + 1);
        loop {
            let before = self.zlib.total_in();
            let step = self
                .zlib
                .decompress_vec(block, &mut out, FlushDecompress::Sync);
            let taken = usize::try_from(self.zlib.total_in() - before).unwrap_or(block.len());
            block = block.get(taken..).unwrap_or_default();
            if out.len() > MAX_HEADER_BYTES {
                return Err(SpdyError::TooLarge {
                    what: "a header block",
                    value: out.len(),
                    limit: MAX_HEADER_BYTES,
                });
            }
            match step {
                Ok(Status::StreamEnd) => return Err(bad("its zlib stream ends")),
                // There was room for more, so all that is there has been inflated.
                Ok(Status::Ok | Status::BufError) if block.is_empty() => return Ok(out),
                Ok(_) if taken == 0 => return Err(bad("zlib makes no progress")),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.zlib.set_dictionary(&dictionary());
                    set.map_err(|_| bad("it asks for another dictionary"))?;
                }
                Err(_) => return Err(bad("it is no zlib stream")),
            }
        }
    }
}

/// Reads an inflated block: a count, then names and values after their lengths, all 32 bits.
fn parse_headers(mut text: Bytes) -> Result<Headers, SpdyError> {
    let what = "a header block";
    at_least(what, &text, 4)?;
    let count = usize::try_from(text.get_u32()).unwrap_or(usize::MAX);
    if count > MAX_HEADERS {
        return Err(SpdyError::TooLarge {
            what: "headers of one frame",
            value: count,
            limit: MAX_HEADERS,
        });
    }
    let mut headers = Headers::with_capacity(count);
    for _ in 0..count {
        let name = part(&mut text)?;
        let value = part(&mut text)?;
        if name.is_empty() {
            let reason = "a header has no name";
            return Err(SpdyError::HeaderBlock { reason });
        }
        // Names are in lower case on the wire (SPDY/3, 2.6.10); a peer that forgets is understood.
        headers.push((name.to_ascii_lowercase(), value));
    }
    if text.is_empty() {
        Ok(headers)
    } else {
        let value = text.len();
        Err(SpdyError::Length { what, value })
    }
}

fn part(text: &mut Bytes) -> Result<String, SpdyError> {
    let what = "a header";
    at_least(what, text, 4)?;
    let length = usize::try_from(text.get_u32()).unwrap_or(usize::MAX);
    if length > text.len() {
        let value = length;
        return Err(SpdyError::Length { what, value });
    }
    let bytes = text.split_to(length);
    let reason = "a header is not UTF-8";
    let text = std::str::from_utf8(&bytes).map_err(|_| SpdyError::HeaderBlock { reason })?;
    Ok(text.to_owned())
}

fn stream_id(what: &'static str, payload: &mut Bytes) -> Result<u32, SpdyError> {
    match payload.get_u32() & 0x7fff_ffff {
        0 => Err(SpdyError::Stream { what, stream: 0 }),
        stream => Ok(stream),
    }
}

fn exactly(what: &'static str, payload: &Bytes, length: usize) -> Result<(), SpdyError> {
    let value = payload.len();
    if value == length {
        Ok(())
    } else {
        Err(SpdyError::Length { what, value })
    }
}

fn at_least(what: &'static str, payload: &Bytes, length: usize) -> Result<(), SpdyError> {
    let value = payload.len();
    if value >= length {
        Ok(())
    } else {
        Err(SpdyError::Length { what, value })
    }
}
