//! Things that end with the client: the connection's task, and the clock of activity.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::Touch;

/// Ends a task when dropped.
pub(super) struct AbortOnDrop(JoinHandle<()>);

impl AbortOnDrop {
    pub(super) fn new(task: JoinHandle<()>) -> Self {
        Self(task)
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An answer's body that keeps its connection's task alive exactly as long as itself.
pub(super) struct GuardedBody {
    body: Incoming,
    _guard: AbortOnDrop,
    // hyper ends a connection whose sender is gone as soon as it is idle, which may be before the body was read.
    _sender: SendRequest<Body>,
}

impl GuardedBody {
    pub(super) fn new(body: Incoming, guard: AbortOnDrop, sender: SendRequest<Body>) -> Self {
        Self { body, _guard: guard, _sender: sender }
    }
}

impl HttpBody for GuardedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that reports its traffic, at most once an interval.
pub(super) struct TouchedIo<T> {
    io: T,
    touch: Touch,
    interval: Duration,
    touched_at: Instant,
}

impl<T> TouchedIo<T> {
    pub(super) fn new(io: T, touch: Touch, interval: Duration) -> Self {
        // Dialling counted as activity already.
        Self { io, touch, interval, touched_at: Instant::now() }
    }

    fn moved(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.touched_at) >= self.interval {
            self.touched_at = now;
            (self.touch)();
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for TouchedIo<T> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.moved();
        }
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for TouchedIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(context, data);
        if matches!(polled, Poll::Ready(Ok(count)) if count > 0) {
            self.moved();
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
