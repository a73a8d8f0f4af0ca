//! Frames there and back, real bytes of a Go client, and what attackers send (CVE-2026-35469).

use bytes::{BufMut as _, Bytes, BytesMut};
use proptest::prelude::*;

use super::dictionary::{CHECKSUM, dictionary};
use super::*;

fn encoded(frames: &[Frame]) -> BytesMut {
    let mut encoder = Encoder::default();
    let mut bytes = BytesMut::new();
    for frame in frames {
        encoder.encode(frame, &mut bytes).unwrap();
    }
    bytes
}

/// Everything in `input`, decoded with the bytes coming `step` at a time.
fn decoded(input: &[u8], step: usize) -> Result<Vec<Frame>, SpdyError> {
    let mut decoder = Decoder::default();
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for piece in input.chunks(step) {
        buffer.extend_from_slice(piece);
        while let Some(frame) = decoder.decode(&mut buffer)? {
            frames.push(frame);
        }
    }
    Ok(frames)
}

/// Puts the pieces of data frames together again.
fn joined(frames: Vec<Frame>) -> Vec<Frame> {
    let mut whole: Vec<Frame> = Vec::new();
    for frame in frames {
        match (whole.last_mut(), frame) {
            (
                Some(Frame::Data { stream, fin, bytes }),
                Frame::Data {
                    stream: same,
                    fin: last,
                    bytes: more,
                },
            ) if *stream == same && !*fin => {
                *bytes = [bytes.as_ref(), more.as_ref()].concat().into();
                *fin = last;
            }
            (_, frame) => whole.push(frame),
        }
    }
    whole
}

fn headers() -> impl Strategy<Value = Headers> {
    prop::collection::vec(("[a-z-]{1,20}", "[ -~]{0,40}"), 0..=MAX_HEADERS)
}

fn frame() -> impl Strategy<Value = Frame> {
    let stream = || 1..=0x7fff_ffffu32;
    prop_oneof![
        (stream(), prop::collection::vec(any::<u8>(), 0..100_000)).prop_map(|(stream, bytes)| {
            Frame::Data {
                stream,
                fin: true,
                bytes: bytes.into(),
            }
        }),
        (stream(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| {
            Frame::SynStream {
                stream,
                fin,
                headers,
            }
        }),
        (stream(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| Frame::SynReply {
            stream,
            fin,
            headers,
        }),
        (stream(), any::<bool>(), headers()).prop_map(|(stream, fin, headers)| Frame::Headers {
            stream,
            fin,
            headers,
        }),
        (stream(), any::<u32>()).prop_map(|(stream, code)| Frame::RstStream { stream, code }),
        (0..64usize).prop_map(|entries| Frame::Settings { entries }),
        any::<u32>().prop_map(|id| Frame::Ping { id }),
        (stream(), any::<u32>())
            .prop_map(|(last_stream, code)| Frame::GoAway { last_stream, code }),
        (stream(), 0..=0x7fff_ffffu32)
            .prop_map(|(stream, delta)| Frame::WindowUpdate { stream, delta }),
    ]
}

proptest! {
    #[test]
    fn frames_come_back_however_their_bytes_arrive(
        frames in prop::collection::vec(frame(), 0..8),
        step in 1..70_000usize,
    ) {
        let bytes = encoded(&frames);
        prop_assert_eq!(joined(decoded(&bytes, step).unwrap()), frames);
    }

    #[test]
    fn any_bytes_end_in_frames_within_the_bounds_or_in_an_error(
        bytes in prop::collection::vec(any::<u8>(), 0..4096),
    ) {
        for frame in decoded(&bytes, 97).unwrap_or_default() {
            if let Frame::Data { bytes, .. } = frame {
                prop_assert!(bytes.len() <= MAX_PIECE);
            }
        }
    }
}

#[test]
fn the_dictionary_is_that_of_the_wire() {
    let bytes = dictionary();
    assert_eq!(bytes.len(), 1423);
    let (mut a, mut b) = (1u32, 0u32);
    for byte in bytes {
        a = (a + u32::from(byte)) % 65521;
        b = (b + a) % 65521;
    }
    assert_eq!(b << 16 | a, CHECKSUM);
}

fn control(kind: u16, payload: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::new();
    bytes.put_u16(0x8003);
    bytes.put_u16(kind);
    bytes.put_u32(u32::try_from(payload.len()).unwrap());
    bytes.extend_from_slice(payload);
    bytes
}

#[track_caller]
fn refused(bytes: &[u8], why: &str) {
    let error = decoded(bytes, usize::MAX).unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
}

#[test]
fn counts_are_not_believed_cve_2026_35469() {
    // SETTINGS that claims 2^24 entries and brings one.
    let mut settings = (1u32 << 24).to_be_bytes().to_vec();
    settings.extend_from_slice(&[0; 8]);
    refused(&control(kind::SETTINGS, &settings), "SETTINGS of 8 bytes");
    // A count whose eightfold wraps round 32 bits.
    refused(
        &control(kind::SETTINGS, &0x2000_0000u32.to_be_bytes()),
        "SETTINGS of 0 bytes",
    );
    // A control frame of 16 MiB is refused by its head alone.
    refused(
        &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
        "control frame: 16777215",
    );
}

/// A SYN_STREAM whose block is `text`, deflated without the dictionary.
fn syn_stream(text: &[u8]) -> BytesMut {
    let mut zlib = flate2::Compress::new(flate2::Compression::best(), true);
    let mut block = Vec::with_capacity(1 << 20);
    zlib.compress_vec(text, &mut block, flate2::FlushCompress::Sync)
        .unwrap();
    let mut payload = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    payload.extend_from_slice(&block);
    control(kind::SYN_STREAM, &payload)
}

#[test]
fn header_blocks_are_bounded_when_inflated_cve_2026_35469() {
    // A bomb: 4 MiB of zeros in some 4 KiB.
    refused(&syn_stream(&vec![0; 4 << 20]), "header block: 16385");
    refused(
        &syn_stream(&0x7fff_ffffu32.to_be_bytes()),
        "headers of one frame: 2147483647",
    );
    let mut long = 1u32.to_be_bytes().to_vec();
    long.extend_from_slice(&0x8000_0000u32.to_be_bytes());
    refused(&syn_stream(&long), "header of 2147483648 bytes");
    let mut nameless = 1u32.to_be_bytes().to_vec();
    nameless.extend_from_slice(&[0; 8]);
    refused(&syn_stream(&nameless), "no name");
    refused(&syn_stream(&[0, 0, 0, 0, 7]), "does not fit");
    // Without the dictionary is allowed: it is zlib's to say.
    let frames = decoded(&syn_stream(&[0; 4]), usize::MAX).unwrap();
    assert!(
        matches!(&frames[..], [Frame::SynStream { stream: 1, headers, .. }] if headers.is_empty())
    );
}

#[test]
fn a_block_of_another_dictionary_is_refused() {
    let mut zlib = flate2::Compress::new(flate2::Compression::fast(), true);
    zlib.set_dictionary(b"another dictionary").unwrap();
    let mut block = Vec::with_capacity(1024);
    zlib.compress_vec(&[0; 4], &mut block, flate2::FlushCompress::Sync)
        .unwrap();
    let mut payload = vec![0, 0, 0, 1];
    payload.extend_from_slice(&block);
    refused(&control(kind::SYN_REPLY, &payload), "another dictionary");
    refused(
        &control(kind::SYN_REPLY, &[0, 0, 0, 1, 1, 2, 3]),
        "no zlib stream",
    );
}

#[test]
fn what_is_no_spdy_is_refused() {
    refused(&[0x80, 2, 0, 1, 0, 0, 0, 0], "version 2");
    refused(&[0, 0, 0, 0, 0, 0, 0, 0], "stream 0");
    refused(&control(kind::PING, &[0; 5]), "PING of 5 bytes");
    refused(&control(kind::RST_STREAM, &[0; 8]), "stream 0");
    refused(&control(kind::SYN_STREAM, &[0; 9]), "SYN_STREAM of 9 bytes");
}

#[test]
fn unknown_control_frames_are_ignored() {
    let mut bytes = control(10, &[1, 2, 3]);
    bytes.extend_from_slice(&encoded(&[Frame::Ping { id: 7 }]));
    assert_eq!(decoded(&bytes, 1).unwrap(), [Frame::Ping { id: 7 }]);
}

#[test]
fn a_large_data_frame_comes_in_pieces_and_ends_with_the_last() {
    let sent = Frame::Data {
        stream: 5,
        fin: true,
        bytes: Bytes::from(vec![7; 3 * MAX_PIECE + 1]),
    };
    let frames = decoded(&encoded(std::slice::from_ref(&sent)), usize::MAX).unwrap();
    assert_eq!(frames.len(), 4);
    let fins: Vec<bool> = frames
        .iter()
        .map(|frame| matches!(frame, Frame::Data { fin: true, .. }))
        .collect();
    assert_eq!(fins, [false, false, false, true]);
    assert_eq!(joined(frames), [sent]);
}
