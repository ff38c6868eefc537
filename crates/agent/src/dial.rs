//! Connects to a port on the sandbox's loopback and joins it with the connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use sandbank_agent_protocol::{AgentError, ErrorKind, Frame, Reply, write_data};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, tcp};
use tokio::time::timeout;

use crate::errors::{Failure, Outcome, invalid, refused_io};
use crate::host::{HangUp, Host, HostReader, HostWriter};

/// For both addresses together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Read from the port at once.
const CHUNK: usize = 64 * 1024;

/// Serves a `Dial` request.
pub(crate) async fn dial(host: &mut Host, port: u16) -> Result<(), Failure> {
    let mut stream = connect(port).await?;
    host.reply(&Reply::Done).await?;
    let hang_up = host.hang_up();
    let (mut from_port, mut to_port) = stream.split();
    let Host { reader, writer } = host;
    let inward = async {
        feed(reader, &mut to_port).await?;
        // The host has half-closed, in words or by shutting down. Its end is the end of all.
        Ok::<_, Failure>(())
    };
    let outward = drain(&mut from_port, writer);
    tokio::pin!(inward, outward);
    let mut fed = false;
    loop {
        tokio::select! {
            result = &mut inward, if !fed => {
                result?;
                fed = true;
            }
            () = hang_up.wait(), if fed => return Err(Failure::HostGone),
            result = &mut outward => {
                result?;
                break;
            }
        }
    }
    if fed { Ok(()) } else { finish_inward(inward, &hang_up).await }
}

/// The port has said all it will; the host may still be sending.
async fn finish_inward(inward: impl Future<Output = Result<(), Failure>>, hang_up: &HangUp) -> Result<(), Failure> {
    tokio::select! {
        result = inward => result,
        () = hang_up.wait() => Err(Failure::HostGone),
    }
}

async fn connect(port: u16) -> Outcome<TcpStream> {
    if port == 0 {
        return Err(invalid("port 0 cannot be connected to"));
    }
    let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let attempts = async {
        let mut first_error: Option<io::Error> = None;
        for address in addresses {
            match TcpStream::connect((address, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        let error = first_error.unwrap_or_else(|| io::ErrorKind::ConnectionRefused.into());
        Err(refused_io(format_args!("nothing answers on port {port} inside the sandbox"), &error))
    };
    let stream = timeout(CONNECT_TIMEOUT, attempts).await.map_err(|_| {
        let message = format!("port {port} inside the sandbox did not accept the connection within 5 seconds");
        AgentError::new(ErrorKind::Io, message)
    })??;
    // Latency matters more than full packets on a loopback.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Host to port, until the host half-closes.
async fn feed(reader: &mut HostReader, to_port: &mut tcp::WriteHalf<'_>) -> Result<(), Failure> {
    loop {
        match reader.next().await? {
            Some(Frame::Data(data)) => to_port.write_all(&data).await.map_err(|_| Failure::HostGone)?,
            Some(Frame::End) | None => break,
            Some(_) => return Err(Failure::HostGone),
        }
    }
    let _ = to_port.shutdown().await;
    Ok(())
}

/// Port to host, until the port half-closes.
async fn drain(from_port: &mut tcp::ReadHalf<'_>, writer: &mut HostWriter) -> Result<(), Failure> {
    let mut buffer = Vec::new();
    loop {
        buffer.clear();
        buffer.reserve_exact(CHUNK);
        match from_port.try_read_buf(&mut buffer) {
            Ok(0) => break,
            Ok(_) => write_data(writer, &buffer).await?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // A connection that is idle, as most are, holds no buffer.
                buffer = Vec::new();
                from_port.readable().await.map_err(|_| Failure::HostGone)?;
            }
            // A reset port is closed in both directions: the connection ends without an `End`.
            Err(_) => return Err(Failure::HostGone),
        }
    }
    writer.frame(&Frame::End).await
}
