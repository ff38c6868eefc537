//! Frames: a five-byte head (length of the body as u32 little-endian, then the kind), then the body.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::Stream;

/// Most bytes in one frame's body. A longer one is an error before anything is allocated.
pub const FRAME_MAX: usize = 1024 * 1024;
/// Most bytes of bulk data that a sender puts in one frame.
pub const DATA_MAX: usize = 256 * 1024;

const HEAD: usize = 5;
const KIND_DATA: u8 = 1;
/// Room for one read of a head and a small message at once.
const READ_AHEAD: usize = 4096;

const fn output_kind(stream: Stream) -> u8 {
    match stream {
        Stream::Stdout => 2,
        Stream::Stderr => 3,
        Stream::Pty => 4,
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A JSON message: a `Request` first, then `HostMessage`s or `Reply`s.
    Message(Bytes),
    /// Bulk data: stdin, a file's content, a port's bytes.
    Data(Bytes),
    /// A process's output.
    Output(Stream, Bytes),
    /// No more data in this direction.
    End,
}

impl Frame {
    /// Encodes a message.
    pub fn message<T: Serialize>(message: &T) -> Result<Self, FrameError> {
        let body = serde_json::to_vec(message).map_err(|_| FrameError::Malformed { what: "message" })?;
        if body.len() > FRAME_MAX {
            return Err(FrameError::TooLong { length: body.len() });
        }
        Ok(Self::Message(body.into()))
    }

    /// Decodes a message's body.
    pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
        serde_json::from_slice(body).map_err(|_| FrameError::Malformed { what: "message" })
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Message(_) => 0,
            Self::Data(_) => KIND_DATA,
            Self::Output(stream, _) => output_kind(*stream),
            Self::End => 5,
        }
    }

    fn from_parts(kind: u8, body: Bytes) -> Result<Self, FrameError> {
        match kind {
            0 => Ok(Self::Message(body)),
            KIND_DATA => Ok(Self::Data(body)),
            2 => Ok(Self::Output(Stream::Stdout, body)),
            3 => Ok(Self::Output(Stream::Stderr, body)),
            4 => Ok(Self::Output(Stream::Pty, body)),
            5 if body.is_empty() => Ok(Self::End),
            _ => Err(FrameError::Malformed { what: "frame kind" }),
        }
    }

    /// The frame's body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        match self {
            Self::Message(body) | Self::Data(body) | Self::Output(_, body) => body,
            Self::End => &[],
        }
    }
}

/// What can be wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer is gone, or the socket failed.
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    /// The connection ended inside a frame.
    #[error("the connection ended inside a frame")]
    Truncated,
    /// Longer than [`FRAME_MAX`].
    #[error("a frame of {length} bytes is longer than the {FRAME_MAX} allowed")]
    TooLong {
        /// Length said.
        length: usize,
    },
    /// Not what the protocol knows.
    #[error("malformed {what}")]
    Malformed {
        /// Which part.
        what: &'static str,
    },
}

/// Appends a frame to `out`.
pub fn encode_frame(frame: &Frame, out: &mut BytesMut) {
    let body = frame.body();
    out.reserve(HEAD + body.len());
    // Bodies are at most FRAME_MAX long by construction (`Frame::message`) or by the sender's chunking.
    out.put_u32_le(u32::try_from(body.len()).unwrap_or(u32::MAX));
    out.put_u8(frame.kind());
    out.put_slice(body);
}

/// Writes a frame: head and body in one write where the body is small, else without copying the body.
pub async fn write_frame<W: AsyncWrite + Unpin>(writer: &mut W, frame: &Frame) -> Result<(), FrameError> {
    write_parts(writer, frame.kind(), frame.body()).await
}

/// Writes a `Data` frame of borrowed bytes, so that a sender can use one buffer again and again.
pub async fn write_data<W: AsyncWrite + Unpin>(writer: &mut W, data: &[u8]) -> Result<(), FrameError> {
    write_parts(writer, KIND_DATA, data).await
}

/// Writes an `Output` frame of borrowed bytes.
pub async fn write_output<W: AsyncWrite + Unpin>(writer: &mut W, stream: Stream, data: &[u8]) -> Result<(), FrameError> {
    write_parts(writer, output_kind(stream), data).await
}

async fn write_parts<W: AsyncWrite + Unpin>(writer: &mut W, kind: u8, body: &[u8]) -> Result<(), FrameError> {
    if body.len() > FRAME_MAX {
        return Err(FrameError::TooLong { length: body.len() });
    }
    let mut head = [0u8; HEAD];
    head[..4].copy_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    head[4] = kind;
    let mut parts = Buf::chain(&head[..], body);
    while parts.has_remaining() {
        if writer.write_buf(&mut parts).await? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into());
        }
    }
    Ok(())
}

/// Reads frames, buffering what it read too much of.
#[derive(Debug)]
pub struct FrameReader<R> {
    reader: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `reader`.
    pub fn new(reader: R) -> Self {
        Self { reader, buffer: BytesMut::new() }
    }

    /// The next frame; `None` when the connection ended between frames. Cancel-safe: what was read stays buffered.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.decode()? {
                return Ok(Some(frame));
            }
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(FrameError::Truncated) };
            }
        }
    }

    fn decode(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.buffer.len() < HEAD {
            self.buffer.reserve(READ_AHEAD);
            return Ok(None);
        }
        let length = u32::from_le_bytes([self.buffer[0], self.buffer[1], self.buffer[2], self.buffer[3]]) as usize;
        if length > FRAME_MAX {
            return Err(FrameError::TooLong { length });
        }
        if self.buffer.len() < HEAD + length {
            self.buffer.reserve(HEAD + length - self.buffer.len());
            return Ok(None);
        }
        let kind = self.buffer[4];
        self.buffer.advance(HEAD);
        let body = self.buffer.split_to(length).freeze();
        Frame::from_parts(kind, body).map(Some)
    }
}

/// Reads one frame without reading past it. `None` when the connection ended before it began.
pub async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Option<Frame>, FrameError> {
    let mut head = [0u8; HEAD];
    if reader.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut head[1..]).await.map_err(|_| FrameError::Truncated)?;
    let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if length > FRAME_MAX {
        return Err(FrameError::TooLong { length });
    }
    let mut body = vec![0u8; length];
    reader.read_exact(&mut body).await.map_err(|_| FrameError::Truncated)?;
    Frame::from_parts(head[4], body.into()).map(Some)
}
