//! Reading a TLS greeting without answering it.

use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

/// A greeting longer than this is refused; honest ones have some hundred bytes, with post-quantum key shares two thousand.
const HELLO_BYTES_MAX: usize = 16 * 1024;

/// What a client said first.
#[derive(Debug)]
pub(super) struct Hello {
    /// All that was read, to be sent on unchanged.
    pub(super) bytes: Vec<u8>,
    /// The server name in it.
    pub(super) server_name: Option<String>,
}

/// There was no greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum HelloError {
    #[error("the client did not greet in time")]
    Slow,
    #[error("the client's TLS greeting is too long")]
    Long,
    #[error("the client does not speak TLS")]
    NotTls,
    #[error("the client went away")]
    Gone,
}

/// Reads the greeting, within `limit` in all.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin), limit: Duration) -> Result<Hello, HelloError> {
    timeout(limit, read_all(stream)).await.map_err(|_elapsed| HelloError::Slow)?
}

async fn read_all(stream: &mut (impl AsyncRead + Unpin)) -> Result<Hello, HelloError> {
    let mut acceptor = Acceptor::default();
    let mut bytes = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        let length = stream.read(&mut buffer).await.map_err(|_| HelloError::Gone)?;
        if length == 0 {
            return Err(HelloError::Gone);
        }
        if bytes.len() + length > HELLO_BYTES_MAX {
            return Err(HelloError::Long);
        }
        bytes.extend_from_slice(&buffer[..length]);
        let mut fresh = &buffer[..length];
        while !fresh.is_empty() {
            let taken = acceptor.read_tls(&mut fresh).map_err(|_| HelloError::NotTls)?;
            // What comes after a whole greeting is none of it.
            let accepted = acceptor.accept().map_err(|_| HelloError::NotTls)?;
            if let Some(accepted) = accepted {
                let server_name = accepted.client_hello().server_name().map(str::to_owned);
                return Ok(Hello { bytes, server_name });
            }
            if taken == 0 {
                return Err(HelloError::NotTls);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::sync::Arc;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::AsyncWriteExt;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn greeting(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let config = Arc::new(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth());
        let mut client = ClientConnection::new(config, ServerName::try_from(name.to_owned()).unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[tokio::test]
    async fn a_greeting_is_read_byte_by_byte_and_cut_into_records() {
        let whole = greeting("api.example.com");
        let hello = read(&mut whole.as_slice(), LIMIT).await.unwrap();
        assert_eq!(hello.server_name.as_deref(), Some("api.example.com"));
        assert_eq!(hello.bytes, whole);

        // The same handshake message in records of 20 bytes, as some clients send it to get past checks.
        let cut: Vec<u8> = whole[5..]
            .chunks(20)
            .flat_map(|piece| [&[22, 3, 1, 0, u8::try_from(piece.len()).unwrap()], piece].concat())
            .collect();
        let (mut client, mut server) = tokio::io::duplex(16);
        let sending = cut.clone();
        tokio::spawn(async move {
            for byte in sending {
                client.write_all(&[byte]).await.unwrap();
            }
        });
        let hello = read(&mut server, LIMIT).await.unwrap();
        assert_eq!(hello.server_name.as_deref(), Some("api.example.com"));
        assert_eq!(hello.bytes, cut);
    }

    #[tokio::test]
    async fn what_is_no_greeting_is_refused() {
        let http = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n";
        assert_eq!(read(&mut http.as_slice(), LIMIT).await.unwrap_err(), HelloError::NotTls);
        assert_eq!(read(&mut &greeting("a.example")[..50], LIMIT).await.unwrap_err(), HelloError::Gone);
        // A message that says that it has 60,000 bytes, in good records.
        let mut long = vec![22, 3, 1, 0x10, 0, 1, 0, 0xea, 0x60];
        long.extend(std::iter::repeat_n(0, 4092));
        for _ in 0..4 {
            long.extend([22, 3, 1, 0x10, 0]);
            long.extend(std::iter::repeat_n(0, 4096));
        }
        assert_eq!(read(&mut long.as_slice(), LIMIT).await.unwrap_err(), HelloError::Long);
    }

    #[tokio::test]
    async fn an_address_is_not_a_server_name() {
        assert_eq!(read(&mut greeting("192.0.2.1").as_slice(), LIMIT).await.unwrap().server_name, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_greeting_is_given_up() {
        let (mut client, mut server) = tokio::io::duplex(64);
        client.write_all(&greeting("a.example")[..20]).await.unwrap();
        assert_eq!(read(&mut server, LIMIT).await.unwrap_err(), HelloError::Slow);
    }
}
