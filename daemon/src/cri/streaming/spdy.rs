//! SPDY/3.1 frames, as far as Kubernetes' streams need them: one connection, streams opened by the client.
//!
//! ```text
//!  control  |1| version 3 (15) | type (16) | flags (8) | length (24) | length bytes
//!  data     |0| stream id (31)             | flags (8) | length (24) | length bytes
//! ```
//!
//! Names and values of headers are one zlib stream per direction with a preset dictionary, flushed after each
//! block. No crate that is kept speaks SPDY, and the kubelet speaks nothing else to a runtime. Flow control is
//! not used: the peers (spdystream) neither send nor heed WINDOW_UPDATE, so TCP is what holds a sender back.
//! Every length is checked against a bound before anything is allocated for it. Nothing here does I/O.

mod decoder;
mod dictionary;
mod encoder;
#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use decoder::Decoder;
pub use encoder::Encoder;

/// Most bytes of one control frame; clients send some hundred.
pub const MAX_CONTROL: usize = 32 << 10;

/// Most bytes of one header block once inflated.
pub const MAX_HEADER_BYTES: usize = 16 << 10;

/// Most headers of one frame; Kubernetes has three.
pub const MAX_HEADERS: usize = 32;

/// Most bytes of a frame's payload handed on at once: larger data frames come in pieces.
pub const MAX_PIECE: usize = 32 << 10;

/// Status codes of RST_STREAM.
pub mod reset {
    /// The peer broke the protocol on this stream.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// The stream is not taken.
    pub const REFUSED_STREAM: u32 = 3;
    /// Nobody is interested any more.
    pub const CANCEL: u32 = 5;
}

pub(super) mod kind {
    pub(in super::super) const SYN_STREAM: u16 = 1;
    pub(in super::super) const SYN_REPLY: u16 = 2;
    pub(in super::super) const RST_STREAM: u16 = 3;
    pub(in super::super) const SETTINGS: u16 = 4;
    pub(in super::super) const PING: u16 = 6;
    pub(in super::super) const GOAWAY: u16 = 7;
    pub(in super::super) const HEADERS: u16 = 8;
    pub(in super::super) const WINDOW_UPDATE: u16 = 9;
}

/// Ends the sender's half of a stream.
const FLAG_FIN: u8 = 1;

/// Names in lower case and values, in the order sent.
pub type Headers = Vec<(String, String)>;

/// The first value of a header.
#[must_use]
pub fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    let found = headers.iter().find(|(known, _)| known == name)?;
    Some(found.1.as_str())
}

/// One frame, or a piece of a data frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Bytes of a stream.
    Data {
        /// Which stream.
        stream: u32,
        /// Whether the sender's half ends with them.
        fin: bool,
        /// At most [`MAX_PIECE`].
        bytes: Bytes,
    },
    /// Opens a stream.
    SynStream {
        /// Which stream; a client's are odd and grow.
        stream: u32,
        /// Whether the sender's half has ended already.
        fin: bool,
        /// What the stream is for.
        headers: Headers,
    },
    /// Takes a stream.
    SynReply {
        /// Which stream.
        stream: u32,
        /// Whether the sender's half has ended already.
        fin: bool,
        /// Usually none.
        headers: Headers,
    },
    /// Ends a stream both ways.
    RstStream {
        /// Which stream.
        stream: u32,
        /// Why.
        code: u32,
    },
    /// Settings of the sender, all of which are hints.
    Settings {
        /// How many.
        entries: usize,
    },
    /// Asks for itself back.
    Ping {
        /// Odd when the client asks.
        id: u32,
    },
    /// The sender opens and takes no more streams.
    GoAway {
        /// The last stream it has taken.
        last_stream: u32,
        /// Why; 0 when nothing is wrong.
        code: u32,
    },
    /// More headers of a stream.
    Headers {
        /// Which stream.
        stream: u32,
        /// Whether the sender's half ends.
        fin: bool,
        /// The headers.
        headers: Headers,
    },
    /// Room for more bytes of a stream, or of all with stream 0.
    WindowUpdate {
        /// Which stream.
        stream: u32,
        /// How many bytes more.
        delta: u32,
    },
}

/// Why bytes are no SPDY that is taken. The connection cannot go on after any of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpdyError {
    /// Another version.
    #[error("frame of SPDY version {version}, only 3 is spoken")]
    Version {
        /// What the frame says.
        version: u16,
    },
    /// More than is taken.
    #[error("{what}: {value} is above {limit}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How much there is.
        value: usize,
        /// How much is taken.
        limit: usize,
    },
    /// A length that does not fit the frame's type, or one part to the other.
    #[error("{what} of {value} bytes does not fit")]
    Length {
        /// Of what.
        what: &'static str,
        /// The length.
        value: usize,
    },
    /// A header block that does not inflate.
    #[error("header block: {reason}")]
    HeaderBlock {
        /// Why.
        reason: &'static str,
    },
    /// Stream 0, or one where it cannot be.
    #[error("{what} names stream {stream}")]
    Stream {
        /// The frame.
        what: &'static str,
        /// The stream.
        stream: u32,
    },
}
