//! The agent's end of one connection.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sandbank_agent_protocol::{AgentError, ErrorKind, Frame, FrameError, FrameReader, Reply, write_frame};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;

use crate::errors::Failure;

/// How often a half-closed connection is looked at.
const HANG_UP_INTERVAL: Duration = Duration::from_millis(200);

/// One connection from the host.
pub(crate) struct Host {
    /// What the host says.
    pub(crate) reader: HostReader,
    /// What the host is told.
    pub(crate) writer: HostWriter,
}

/// Frames from the host.
pub(crate) type HostReader = FrameReader<Receiving>;

/// The receiving half.
#[derive(Debug)]
pub(crate) struct Receiving(Rc<UnixStream>);

/// The sending half.
#[derive(Debug)]
pub(crate) struct HostWriter(Rc<UnixStream>);

/// Tells whether the host has closed both directions.
#[derive(Debug, Clone)]
pub(crate) struct HangUp(Rc<UnixStream>);

impl Host {
    /// Over an accepted stream.
    pub(crate) fn new(stream: UnixStream) -> Self {
        let stream = Rc::new(stream);
        Self { reader: FrameReader::new(Receiving(Rc::clone(&stream))), writer: HostWriter(stream) }
    }

    /// Sends one reply.
    pub(crate) async fn reply(&mut self, reply: &Reply) -> Result<(), Failure> {
        self.writer.reply(reply).await
    }

    /// To wait for the host to close.
    pub(crate) fn hang_up(&self) -> HangUp {
        HangUp(Rc::clone(&self.writer.0))
    }

    /// Asks the kernel for a larger send buffer, for bulk data; less is no harm.
    pub(crate) fn widen(&self, bytes: usize) {
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&*self.writer.0, bytes);
    }
}

impl HostWriter {
    /// Sends one reply.
    pub(crate) async fn reply(&mut self, reply: &Reply) -> Result<(), Failure> {
        let frame = Frame::message(reply)?;
        self.frame(&frame).await
    }

    /// Sends one frame.
    pub(crate) async fn frame(&mut self, frame: &Frame) -> Result<(), Failure> {
        Ok(write_frame(self, frame).await?)
    }
}

impl AsyncRead for Receiving {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read_buf(buf) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl HostWriter {
    fn poll_try<T>(&self, cx: &mut Context<'_>, mut write: impl FnMut(&UnixStream) -> io::Result<T>) -> Poll<io::Result<T>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match write(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }
}

impl AsyncWrite for HostWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_try(cx, |stream| stream.try_write(buf))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.poll_try(cx, |stream| stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl HangUp {
    fn has_happened(&self) -> bool {
        let mut fds = [PollFd::new(&*self.0, PollFlags::empty())];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut fds, Some(&at_once)) {
            Ok(_) => fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR),
            Err(_) => false,
        }
    }

    /// Returns when the host has closed both directions. A host that only shut down its sending side is still listening, and
    /// the kernel reports the difference to `poll` alone: hence the interval.
    pub(crate) async fn wait(&self) {
        while !self.has_happened() {
            tokio::time::sleep(HANG_UP_INTERVAL).await;
        }
    }

    /// Reads and drops what the host says until it is gone: for operations that take no more input.
    pub(crate) async fn wait_reading(&self, reader: &mut HostReader) {
        loop {
            match reader.next().await {
                Ok(Some(_)) => {}
                Ok(None) => return self.wait().await,
                Err(_) => return,
            }
        }
    }
}

/// Decodes a message; the host is told what was wrong with it.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, AgentError> {
    serde_json::from_slice(body).map_err(|error| {
        let text = error.to_string();
        let kind = if text.starts_with("unknown variant") { ErrorKind::Unsupported } else { ErrorKind::Invalid };
        AgentError::new(kind, format!("the message cannot be understood: {text}"))
    })
}

/// The next part of an upload, `None` at its end. A connection that closes before `End` has cancelled the operation.
pub(crate) async fn next_upload(reader: &mut HostReader) -> Result<Option<Bytes>, Failure> {
    match reader.next().await? {
        Some(Frame::Data(data)) => Ok(Some(data)),
        Some(Frame::End) => Ok(None),
        Some(_) => Err(FrameError::Malformed { what: "upload: expected data or its end" }.into()),
        None => Err(Failure::HostGone),
    }
}
