//! Streaming bodies. A stream is pulled by the connection, never pushed through a channel: a client that does not read slows
//! its source down, and one that goes away drops it.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http::{HeaderValue, header};
use serde::Serialize;

/// One value as a line of NDJSON.
#[must_use]
pub fn ndjson_line<T: Serialize>(value: &T) -> Bytes {
    let mut buffer = BytesMut::with_capacity(128).writer();
    // A wire type always serialises; should one not, its reader gets an empty line instead of half a value.
    if serde_json::to_writer(&mut buffer, value).is_err() {
        return Bytes::from_static(b"\n");
    }
    let mut line = buffer.into_inner();
    line.put_u8(b'\n');
    line.freeze()
}

/// A 200 answer of `application/x-ndjson`, each item flushed as it comes.
pub fn ndjson_body(lines: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let body = Body::from_stream(lines.map(Ok::<_, Infallible>));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Reverse proxies that buffer answers would hold lines back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// A body of raw bytes; an error of the source breaks the connection, so that a cut file never looks complete.
pub fn bytes_body<E: std::error::Error + Send + Sync + 'static>(
    chunks: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> Body {
    Body::from_stream(chunks)
}

/// A piece of output for a text protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TextPiece {
    /// Whole UTF-8 characters.
    Text(String),
    /// Bytes that are not UTF-8.
    Binary(Bytes),
}

/// Cuts a byte stream into pieces for a text protocol without ever splitting a UTF-8 character: an unfinished one at the end
/// of a chunk waits for its rest. Holds at most three bytes.
#[derive(Debug, Default)]
pub struct TextCarry {
    held: Vec<u8>,
}

impl TextCarry {
    /// Takes a chunk; `None` when all of it waits.
    pub fn push(&mut self, chunk: &Bytes) -> Option<TextPiece> {
        let joined = if self.held.is_empty() {
            chunk.clone()
        } else {
            let mut joined = std::mem::take(&mut self.held);
            joined.extend_from_slice(chunk);
            Bytes::from(joined)
        };
        let cut = match std::str::from_utf8(&joined) {
            Ok(_) => joined.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => return Some(TextPiece::Binary(joined)),
        };
        self.held.extend_from_slice(&joined[cut..]);
        let text = String::from_utf8_lossy(&joined[..cut]).into_owned();
        (!text.is_empty()).then_some(TextPiece::Text(text))
    }

    /// What still waits when the stream ends.
    pub fn finish(&mut self) -> Option<TextPiece> {
        let held = std::mem::take(&mut self.held);
        (!held.is_empty()).then(|| TextPiece::Binary(Bytes::from(held)))
    }
}

/// Cuts a byte stream into lines. A line longer than `max` bytes comes in pieces of that size.
#[derive(Debug)]
pub struct LineSplitter {
    held: Vec<u8>,
    max: usize,
}

impl LineSplitter {
    /// Lines of at most `max` bytes; `max` is at least 1.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { held: Vec::new(), max: max.max(1) }
    }

    /// The lines that a chunk completes, without their ends. Bytes that are not UTF-8 are replaced.
    pub fn push(&mut self, chunk: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for &byte in chunk {
            if byte == b'\n' {
                lines.push(self.take());
            } else {
                self.held.push(byte);
                if self.held.len() >= self.max {
                    lines.push(self.take());
                }
            }
        }
        lines
    }

    /// The unfinished last line.
    pub fn finish(&mut self) -> Option<String> {
        (!self.held.is_empty()).then(|| self.take())
    }

    fn take(&mut self) -> String {
        let mut line = std::mem::take(&mut self.held);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        String::from_utf8_lossy(&line).into_owned()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_character_cut_in_two_is_put_together_again() {
        let text = "aä€😀z".as_bytes();
        for cut in 0..=text.len() {
            let mut carry = TextCarry::default();
            let mut out = String::new();
            for chunk in [&text[..cut], &text[cut..]] {
                match carry.push(&Bytes::copy_from_slice(chunk)) {
                    Some(TextPiece::Text(piece)) => out.push_str(&piece),
                    Some(TextPiece::Binary(_)) => panic!("cut at {cut} became binary"),
                    None => {}
                }
            }
            assert_eq!(out.as_bytes(), text);
            assert_eq!(carry.finish(), None);
        }
    }

    #[test]
    fn bytes_that_are_not_text_stay_bytes() {
        let mut carry = TextCarry::default();
        let bytes = Bytes::from_static(b"ab\xff\x00");
        assert_eq!(carry.push(&bytes), Some(TextPiece::Binary(bytes)));
        assert_eq!(carry.push(&Bytes::from_static(b"\xe2\x82")), None);
        assert_eq!(carry.finish(), Some(TextPiece::Binary(Bytes::from_static(b"\xe2\x82"))));
    }

    #[test]
    fn lines_are_cut_at_ends_and_at_the_limit() {
        let mut lines = LineSplitter::new(4);
        assert_eq!(lines.push(b"a\r\nb"), ["a"]);
        assert_eq!(lines.push(b"c\n\nlong line"), ["bc", "", "long", " lin"]);
        assert_eq!(lines.finish(), Some("e".to_owned()));
        assert_eq!(lines.finish(), None);
    }

    #[test]
    fn a_line_of_ndjson_ends_with_a_newline() {
        assert_eq!(ndjson_line(&serde_json::json!({"a": "x\ny"})), "{\"a\":\"x\\ny\"}\n");
    }
}
