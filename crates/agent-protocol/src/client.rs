//! The host's side of one operation.

use std::fmt;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use crate::{AgentError, DATA_MAX, Frame, FrameError, FrameReader, HostMessage, Reply, Request, write_frame};

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The agent refused.
    #[error(transparent)]
    Refused(#[from] AgentError),
    /// The connection or the protocol failed: the agent is gone or talks nonsense.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The agent said something else than the operation allows.
    #[error("the agent answered out of turn: expected {expected}")]
    OutOfTurn {
        /// What would have been right.
        expected: &'static str,
    },
}

/// The receiving half of a connection.
pub type ReadHalf = Box<dyn AsyncRead + Send + Sync + Unpin>;
/// The sending half of a connection.
pub type WriteHalf = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// One operation on one agent. Dropping it cancels the operation.
pub struct Connection {
    reader: FrameReader<ReadHalf>,
    writer: WriteHalf,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    /// Sends `request` over a fresh connection.
    pub async fn begin(stream: UnixStream, request: &Request) -> Result<Self, ClientError> {
        let (reader, writer) = stream.into_split();
        Self::over(Box::new(reader), Box::new(writer), request).await
    }

    /// Sends `request` over any fresh byte stream.
    pub async fn over(reader: ReadHalf, mut writer: WriteHalf, request: &Request) -> Result<Self, ClientError> {
        write_frame(&mut writer, &Frame::message(request)?).await?;
        Ok(Self { reader: FrameReader::new(reader), writer })
    }

    /// Splits it, for operations that stream both ways at once.
    #[must_use]
    pub fn split(self) -> (FrameReader<ReadHalf>, WriteHalf) {
        (self.reader, self.writer)
    }

    /// The next frame; `None` when the agent closed.
    pub async fn next(&mut self) -> Result<Option<Frame>, ClientError> {
        Ok(self.reader.next().await?)
    }

    /// The next frame as a reply; an `Error` reply becomes [`ClientError::Refused`].
    pub async fn reply(&mut self, expected: &'static str) -> Result<Reply, ClientError> {
        match self.next().await? {
            Some(Frame::Message(body)) => match Frame::parse::<Reply>(&body)? {
                Reply::Error(error) => Err(error.into()),
                reply => Ok(reply),
            },
            Some(_) => Err(ClientError::OutOfTurn { expected }),
            None => Err(FrameError::Truncated.into()),
        }
    }

    /// Sends bulk data, in frames of at most [`DATA_MAX`].
    pub async fn send_data(&mut self, mut data: Bytes) -> Result<(), ClientError> {
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(DATA_MAX));
            write_frame(&mut self.writer, &Frame::Data(chunk)).await?;
        }
        Ok(())
    }

    /// Says that no more data comes.
    pub async fn send_end(&mut self) -> Result<(), ClientError> {
        Ok(write_frame(&mut self.writer, &Frame::End).await?)
    }

    /// Sends a message.
    pub async fn send(&mut self, message: &HostMessage) -> Result<(), ClientError> {
        Ok(write_frame(&mut self.writer, &Frame::message(message)?).await?)
    }
}
