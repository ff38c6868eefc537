//! Byte streams to ports inside that go through the agent: framed on the way, and dialled there.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use sandbank_agent_protocol::{Frame, Reply, Request, WriteHalf, encode_frame};
use sandbank_driver::PortIo;
use sandbank_model::Sandbox;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::Result;
use crate::agent::Incoming;
use crate::control::Inner;

/// Most bytes of one frame that is written.
const CHUNK: usize = 64 * 1024;

/// Connects through the agent: for drivers that cannot dial, and where the server may not enter network namespaces.
pub(super) async fn dial(inner: &Arc<Inner>, sandbox: &Sandbox, port: u16) -> Result<Box<dyn PortIo>> {
    let mut connection = inner.open_in(sandbox, &Request::Dial { port }).await?;
    let Reply::Done = inner.first_reply(sandbox.id, &mut connection).await? else {
        return Err(inner.confused(sandbox.id));
    };
    let (reader, writer) = connection.split();
    let incoming = Incoming::uncounted(Arc::clone(inner), sandbox.id, reader);
    let reader = PortReader { state: Reading::Idle(Box::new(incoming)), piece: Bytes::new() };
    let writer = PortWriter { writer, pending: BytesMut::new(), closed: false };
    Ok(Box::new(tokio::io::join(reader, writer)))
}

type NextFrame = Pin<Box<dyn Future<Output = (Box<Incoming>, Result<Option<Bytes>>)> + Send + Sync>>;

enum Reading {
    Idle(Box<Incoming>),
    Waiting(NextFrame),
    Ended,
}

struct PortReader {
    state: Reading,
    piece: Bytes,
}

async fn next_piece(mut incoming: Box<Incoming>) -> (Box<Incoming>, Result<Option<Bytes>>) {
    let piece = match incoming.frame().await {
        Ok(Some(Frame::Data(data))) => Ok(Some(data)),
        Ok(Some(Frame::End) | None) => Ok(None),
        Ok(Some(Frame::Message(body))) => Err(incoming.reply(&body).err().unwrap_or_else(|| incoming.confused())),
        Ok(Some(Frame::Output(..))) => Err(incoming.confused()),
        Err(error) => Err(error),
    };
    (incoming, piece)
}

impl AsyncRead for PortReader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.piece.is_empty() {
                let part = self.piece.len().min(buf.remaining());
                buf.put_slice(&self.piece.split_to(part));
                return Poll::Ready(Ok(()));
            }
            match std::mem::replace(&mut self.state, Reading::Ended) {
                Reading::Ended => return Poll::Ready(Ok(())),
                Reading::Idle(incoming) => self.state = Reading::Waiting(Box::pin(next_piece(incoming))),
                Reading::Waiting(mut next) => match next.as_mut().poll(cx) {
                    Poll::Pending => {
                        self.state = Reading::Waiting(next);
                        return Poll::Pending;
                    }
                    Poll::Ready((incoming, Ok(Some(piece)))) => {
                        self.piece = piece;
                        self.state = Reading::Idle(incoming);
                    }
                    Poll::Ready((_, Ok(None))) => return Poll::Ready(Ok(())),
                    Poll::Ready((_, Err(error))) => return Poll::Ready(Err(io::Error::other(error))),
                },
            }
        }
    }
}

struct PortWriter {
    writer: WriteHalf,
    pending: BytesMut,
    closed: bool,
}

impl PortWriter {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let written = ready!(Pin::new(&mut self.writer).poll_write(cx, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PortWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // The frame before has left: what is buffered here is never more than one.
        ready!(self.poll_drain(cx))?;
        let part = data.len().min(CHUNK);
        if part > 0 {
            encode_frame(&Frame::Data(Bytes::copy_from_slice(&data[..part])), &mut self.pending);
            if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(part))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed {
            ready!(self.poll_drain(cx))?;
            encode_frame(&Frame::End, &mut self.pending);
            self.closed = true;
        }
        // The socket itself stays open: the agent takes its closing for a cancellation of the whole stream.
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.writer).poll_flush(cx)
    }
}
