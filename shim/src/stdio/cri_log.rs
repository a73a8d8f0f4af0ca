//! The CRI log format as a pure encoder: bytes of a stream in, tagged lines out.
//!
//! `2026-01-02T03:04:05.000000006Z stdout F text`: `F` ends a line of the container, `P` is a piece
//! of one that goes on in the next entry of the same stream (Kubernetes, "CRI log format").

use crate::clock::RFC3339_LENGTH;

/// Longest text of one entry, in bytes. A longer line becomes several entries.
pub const PIECE: usize = 16 * 1024;

/// Which stream an entry is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and everything of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Stdout => b"stdout",
            Self::Stderr => b"stderr",
        }
    }
}

/// Turns one stream into entries. Holds back a line that has not ended, up to [`PIECE`] bytes.
#[derive(Debug)]
pub struct LineEncoder {
    stream: Stream,
    /// Whether lines end in a carriage return and a newline.
    terminal: bool,
    pending: Vec<u8>,
}

impl LineEncoder {
    /// Holds nothing yet.
    #[must_use]
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            terminal: false,
            pending: Vec::new(),
        }
    }

    /// Of a terminal, which puts a carriage return before each newline (`ONLCR`, termios(3)): it is no part of the
    /// line.
    #[must_use]
    pub fn of_terminal(mut self, terminal: bool) -> Self {
        self.terminal = terminal;
        self
    }

    /// Appends the entries of `input`, stamped `time`, to `out`, until `out` has `limit` bytes or
    /// more. Answers how much of `input` was taken.
    pub fn encode(
        &mut self,
        input: &[u8],
        time: &[u8; RFC3339_LENGTH],
        out: &mut Vec<u8>,
        limit: usize,
    ) -> usize {
        let mut taken = 0;
        while taken < input.len() && out.len() < limit {
            let rest = &input[taken..];
            let room = PIECE - self.pending.len();
            // One byte more than there is room for: a line of exactly one piece is one full entry.
            let window = &rest[..rest.len().min(room + 1)];
            if let Some(end) = window.iter().position(|b| *b == b'\n') {
                self.line(time, &rest[..end], out);
                taken += end + 1;
            } else if rest.len() > room {
                self.entry(time, b'P', &rest[..room], out);
                taken += room;
            } else {
                self.pending.extend_from_slice(rest);
                taken = input.len();
            }
        }
        taken
    }

    /// Appends what is held back as a piece. What follows in the stream then continues that line.
    pub fn flush(&mut self, time: &[u8; RFC3339_LENGTH], out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.entry(time, b'P', &[], out);
        }
    }

    /// Appends the entry of a line that ends with `text`.
    fn line(&mut self, time: &[u8; RFC3339_LENGTH], text: &[u8], out: &mut Vec<u8>) {
        let mut text = text;
        if self.terminal {
            match text.strip_suffix(b"\r") {
                Some(shorter) => text = shorter,
                None if text.is_empty() && self.pending.last() == Some(&b'\r') => {
                    self.pending.pop();
                }
                None => {}
            }
        }
        self.entry(time, b'F', text, out);
    }

    /// Appends the entry of what is held back and `text`.
    fn entry(&mut self, time: &[u8; RFC3339_LENGTH], tag: u8, text: &[u8], out: &mut Vec<u8>) {
        let pending = std::mem::take(&mut self.pending);
        for part in [
            &time[..],
            b" ",
            self.stream.name(),
            b" ",
            &[tag, b' '],
            &pending,
            text,
        ] {
            out.extend_from_slice(part);
        }
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIME: &[u8; RFC3339_LENGTH] = b"2026-01-02T03:04:05.000000006Z";

    /// What a reader of the log sees of a stream: the text, and the length of each entry's text.
    fn decode(log: &[u8], stream: &str) -> (Vec<u8>, Vec<usize>) {
        let mut text = Vec::new();
        let mut lengths = Vec::new();
        for line in log.split_inclusive(|b| *b == b'\n') {
            let line = line.strip_suffix(b"\n").expect("every entry ends");
            let mut fields = line.splitn(4, |b| *b == b' ');
            assert_eq!(fields.next().unwrap(), TIME);
            let from = fields.next().unwrap();
            let tag = fields.next().unwrap();
            let part = fields.next().unwrap();
            if from == stream.as_bytes() {
                text.extend_from_slice(part);
                lengths.push(part.len());
                match tag {
                    b"F" => text.push(b'\n'),
                    b"P" => {}
                    _ => panic!("tag {tag:?}"),
                }
            }
        }
        (text, lengths)
    }

    fn encode(chunks: &[&[u8]]) -> Vec<u8> {
        let mut encoder = LineEncoder::new(Stream::Stdout);
        let mut out = Vec::new();
        for chunk in chunks {
            assert_eq!(
                encoder.encode(chunk, TIME, &mut out, usize::MAX),
                chunk.len()
            );
        }
        encoder.flush(TIME, &mut out);
        out
    }

    #[test]
    fn tags_lines_and_an_unfinished_end() {
        let out = encode(&[b"one\ntw", b"o\n\nthree"]);
        let expect = "\
2026-01-02T03:04:05.000000006Z stdout F one
2026-01-02T03:04:05.000000006Z stdout F two
2026-01-02T03:04:05.000000006Z stdout F 
2026-01-02T03:04:05.000000006Z stdout P three
";
        assert_eq!(String::from_utf8(out).unwrap(), expect);
        assert_eq!(encode(&[]), b"");
    }

    #[test]
    fn the_returns_of_a_terminal_are_no_part_of_its_lines() {
        let lines = |chunks: &[&[u8]]| {
            let mut encoder = LineEncoder::new(Stream::Stdout).of_terminal(true);
            let mut out = Vec::new();
            for chunk in chunks {
                encoder.encode(chunk, TIME, &mut out, usize::MAX);
            }
            String::from_utf8(decode(&out, "stdout").0).unwrap()
        };
        assert_eq!(lines(&[b"one\r\ntwo\r", b"\n\r\n"]), "one\ntwo\n\n");
        // Others are the program's own.
        assert_eq!(lines(&[b"10%\r20%\r\r\nx\n"]), "10%\r20%\r\nx\n");
        assert_eq!(decode(&encode(&[b"a\r\n"]), "stdout").0, b"a\r\n");
    }

    #[test]
    fn a_line_of_exactly_one_piece_is_full() {
        let line = vec![b'x'; PIECE];
        let out = encode(&[&line, b"\n"]);
        assert_eq!(out[38], b'F');
        let longer = vec![b'x'; PIECE + 1];
        let out = encode(&[&longer, b"\n"]);
        assert_eq!(decode(&out, "stdout").1, [PIECE, 1]);
        assert_eq!(out[38], b'P');
    }

    #[test]
    fn stops_at_the_limit() {
        let mut encoder = LineEncoder::new(Stream::Stderr);
        let mut out = Vec::new();
        assert_eq!(encoder.encode(b"a\nb\nc\n", TIME, &mut out, 1), 2);
        assert_eq!(encoder.encode(b"b\nc\n", TIME, &mut out, usize::MAX), 4);
        assert_eq!(decode(&out, "stderr").0, b"a\nb\nc\n");
    }

    proptest! {
        /// However the stream is cut into reads, the reader of the log gets the same bytes.
        #[test]
        fn decoding_gives_back_the_stream(
            chunks in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200),
                    (0usize..3 * PIECE).prop_map(|n| vec![b'z'; n]),
                ],
                0..8,
            ),
            limit in 1usize..100_000,
        ) {
            let mut encoder = LineEncoder::new(Stream::Stdout);
            let mut other = LineEncoder::new(Stream::Stderr);
            let (mut log, mut out) = (Vec::new(), Vec::new());
            for chunk in &chunks {
                let mut rest = chunk.as_slice();
                while !rest.is_empty() {
                    rest = &rest[encoder.encode(rest, TIME, &mut out, limit)..];
                    other.encode(b"noise\n", TIME, &mut out, usize::MAX);
                    log.append(&mut out);
                }
            }
            encoder.flush(TIME, &mut log);
            let (text, lengths) = decode(&log, "stdout");
            prop_assert_eq!(text, chunks.concat());
            prop_assert!(lengths.iter().all(|length| *length <= PIECE));
        }
    }
}
