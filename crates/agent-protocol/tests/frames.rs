//! The frame codec: what is written is read, however it arrives; hostile input is refused without allocating for it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use sandbank_agent_protocol::{
    DATA_MAX, FRAME_MAX, Frame, FrameError, FrameReader, Reply, Stream, encode_frame, read_frame, write_data, write_frame,
    write_output,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A peer whose bytes come in pieces of given sizes, and which takes writes likewise.
struct Pieces {
    bytes: Vec<u8>,
    position: usize,
    sizes: Vec<usize>,
    turn: usize,
    stutter: bool,
}

impl Pieces {
    fn new(bytes: Vec<u8>, sizes: Vec<usize>) -> Self {
        Self { bytes, position: 0, sizes, turn: 0, stutter: false }
    }

    /// The next piece's size; every second call says "not now" first.
    fn size(&mut self, cx: &Context<'_>) -> Option<usize> {
        self.stutter = !self.stutter;
        if self.stutter {
            cx.waker().wake_by_ref();
            return None;
        }
        self.turn += 1;
        Some(self.sizes[self.turn % self.sizes.len()].max(1))
    }
}

impl AsyncRead for Pieces {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Some(size) = self.size(cx) else { return Poll::Pending };
        let end = (self.position + size.min(buf.remaining())).min(self.bytes.len());
        buf.put_slice(&self.bytes[self.position..end]);
        self.position = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Some(size) = self.size(cx) else { return Poll::Pending };
        let taken = size.min(buf.len());
        self.bytes.extend_from_slice(&buf[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn frame() -> impl Strategy<Value = Frame> {
    let body = || prop_oneof![prop::collection::vec(any::<u8>(), 0..200), prop::collection::vec(any::<u8>(), 4000..9000)];
    let stream = prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr), Just(Stream::Pty)];
    prop_oneof![
        body().prop_map(|body| Frame::Message(body.into())),
        body().prop_map(|body| Frame::Data(body.into())),
        (stream, body()).prop_map(|(stream, body)| Frame::Output(stream, body.into())),
        Just(Frame::End),
    ]
}

fn encoded(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    for frame in frames {
        encode_frame(frame, &mut bytes);
    }
    bytes.to_vec()
}

async fn read_all(mut reader: FrameReader<Pieces>) -> Result<Vec<Frame>, FrameError> {
    let mut frames = Vec::new();
    while let Some(frame) = reader.next().await? {
        frames.push(frame);
    }
    Ok(frames)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn frames_survive_any_cutting_of_the_stream(
        frames in prop::collection::vec(frame(), 0..8),
        sizes in prop::collection::vec(1usize..5000, 1..10),
    ) {
        let bytes = encoded(&frames);
        let read = block_on(read_all(FrameReader::new(Pieces::new(bytes.clone(), sizes.clone())))).unwrap();
        prop_assert_eq!(&read, &frames);
        let one_by_one = block_on(async {
            let mut pieces = Pieces::new(bytes.clone(), sizes.clone());
            let mut read = Vec::new();
            while let Some(frame) = read_frame(&mut pieces).await.unwrap() {
                read.push(frame);
            }
            read
        });
        prop_assert_eq!(&one_by_one, &frames);
        let written = block_on(async {
            let mut pieces = Pieces::new(Vec::new(), sizes.clone());
            for frame in &frames {
                match frame {
                    Frame::Data(data) => write_data(&mut pieces, data).await.unwrap(),
                    Frame::Output(stream, data) => write_output(&mut pieces, *stream, data).await.unwrap(),
                    other => write_frame(&mut pieces, other).await.unwrap(),
                }
            }
            pieces.bytes
        });
        prop_assert_eq!(written, bytes);
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_an_error(frame in frame(), cut in any::<prop::sample::Index>()) {
        let bytes = encoded(&[Frame::End, frame]);
        let cut = 6 + cut.index(bytes.len() - 6);
        prop_assume!(cut < bytes.len());
        let short = bytes[..cut].to_vec();
        let outcome = block_on(read_all(FrameReader::new(Pieces::new(short.clone(), vec![3]))));
        prop_assert!(matches!(outcome, Err(FrameError::Truncated)));
        let outcome = block_on(async {
            let mut pieces = Pieces::new(short, vec![3]);
            read_frame(&mut pieces).await.unwrap();
            read_frame(&mut pieces).await
        });
        prop_assert!(matches!(outcome, Err(FrameError::Truncated)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = block_on(read_all(FrameReader::new(Pieces::new(bytes.clone(), vec![7]))));
        let _ = block_on(read_frame(&mut Pieces::new(bytes.clone(), vec![7])));
        let _ = Frame::parse::<Reply>(&bytes);
    }

    #[test]
    fn lengths_over_the_limit_are_refused_before_the_body_comes(length in (FRAME_MAX as u32 + 1).., kind in any::<u8>()) {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.push(kind);
        let outcome = block_on(read_all(FrameReader::new(Pieces::new(bytes.clone(), vec![9]))));
        let refused = matches!(outcome, Err(FrameError::TooLong { length: said }) if said == length as usize);
        prop_assert!(refused);
        let outcome = block_on(read_frame(&mut Pieces::new(bytes, vec![9])));
        let refused = matches!(outcome, Err(FrameError::TooLong { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn unknown_kinds_are_refused(kind in 6u8.., body in prop::collection::vec(any::<u8>(), 0..50)) {
        let mut bytes = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
        bytes.push(kind);
        bytes.extend(body);
        let outcome = block_on(read_all(FrameReader::new(Pieces::new(bytes, vec![9]))));
        let refused = matches!(outcome, Err(FrameError::Malformed { .. }));
        prop_assert!(refused);
    }
}

#[test]
fn an_end_has_no_body() {
    let bytes = vec![1, 0, 0, 0, 5, 0];
    let outcome = block_on(read_all(FrameReader::new(Pieces::new(bytes, vec![9]))));
    assert!(matches!(outcome, Err(FrameError::Malformed { .. })));
}

#[test]
fn the_largest_frame_passes_and_a_larger_one_is_not_sent() {
    let largest = Frame::Data(vec![7; FRAME_MAX].into());
    let read = block_on(read_all(FrameReader::new(Pieces::new(encoded(std::slice::from_ref(&largest)), vec![DATA_MAX]))));
    assert!(read.unwrap() == [largest]);
    let too_large = Frame::Data(vec![7; FRAME_MAX + 1].into());
    let mut pieces = Pieces::new(Vec::new(), vec![9]);
    assert!(matches!(block_on(write_frame(&mut pieces, &too_large)), Err(FrameError::TooLong { .. })));
    assert!(matches!(block_on(write_data(&mut pieces, &vec![7; FRAME_MAX + 1])), Err(FrameError::TooLong { .. })));
    assert!(pieces.bytes.is_empty(), "nothing of it was sent");
    let long = "x".repeat(FRAME_MAX);
    assert!(matches!(Frame::message(&long), Err(FrameError::TooLong { .. })));
}

#[test]
fn a_reader_dropped_in_mid_frame_loses_nothing_when_asked_again() {
    let frames = [Frame::Data(Bytes::from(vec![1; 50_000])), Frame::End];
    block_on(async {
        let mut reader = FrameReader::new(Pieces::new(encoded(&frames), vec![1000]));
        let mut read = Vec::new();
        while read.len() < frames.len() {
            // Each attempt is given up at its first "not now", as a select does.
            tokio::select! {
                biased;
                frame = reader.next() => read.push(frame.unwrap().unwrap()),
                () = std::future::ready(()) => {}
            }
        }
        assert_eq!(read, frames);
    });
}
