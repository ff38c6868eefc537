//! Things that end with the client, or come back when it is done: the connection inside and what was held for the request.

use std::any::Any;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::task::JoinHandle;

use super::pool::{Connection, PortKey, PortPool};

/// What a request holds for as long as it lasts; dropped with its answer.
pub type Hold = Box<dyn Any + Send>;

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

/// An answer's body. Read to its end it gives its connection back to the pool; dropped before, it closes it.
pub(super) struct GuardedBody {
    body: Incoming,
    // hyper ends a connection whose sender is gone as soon as it is idle, which may be before the body was read.
    connection: Option<(PortPool, PortKey, Connection)>,
    _hold: Hold,
}

impl GuardedBody {
    pub(super) fn new(body: Incoming, pool: PortPool, key: PortKey, connection: Connection, hold: Hold) -> Self {
        let mut guarded = Self { body, connection: Some((pool, key, connection)), _hold: hold };
        if guarded.body.is_end_stream() {
            guarded.give_back();
        }
        guarded
    }

    fn give_back(&mut self) {
        if let Some((pool, key, connection)) = self.connection.take() {
            pool.put(key, connection);
        }
    }
}

impl HttpBody for GuardedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(None) => self.give_back(),
            Poll::Ready(Some(Ok(_))) if self.body.is_end_stream() => self.give_back(),
            Poll::Ready(Some(Err(_))) => drop(self.connection.take()),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
