//! The programs that rows start of this binary, on the host, inside a sandbox or beyond the host. As little as can do it: what is
//! measured is the way between them.
//!
//! | | |
//! |---|---|
//! | `backend PORT` | answers HTTP on loopback; the rows of ports reach it |
//! | `sink PORT` | reads whatever is sent to it, and says how much; the rows of the network send to it. Ends when its standard input ends |
//! | `send ADDRESS BYTES` | sends so much to a sink; prints the nanoseconds that it took |

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// What `/small` answers with.
pub(crate) const SMALL: &[u8] = b"ok";
/// Bytes that `/big` answers with: 1 GiB.
pub(crate) const BIG_BYTES: u64 = 1 << 30;
/// Largest request head.
const HEAD_MAX: usize = 16 * 1024;
const PIECE: usize = 256 * 1024;

/// Longest wait of a sender for its connection.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// Runs what these arguments ask for; `None` where they ask for none of these programs. The error is for standard error.
pub(crate) fn run(arguments: &[String]) -> Option<Result<(), String>> {
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    Some(match words.as_slice() {
        ["backend", port] => number(port, "port").and_then(|port| serve(port).map_err(|error| error.to_string())),
        ["sink", port] => number(port, "port").and_then(|port| sink(port).map_err(|error| error.to_string())),
        ["send", address, bytes] => number(address, "address and port").and_then(|address| {
            let took = send(address, number(bytes, "number of bytes")?).map_err(|error| format!("{address}: {error}"))?;
            println!("{}", took.as_nanos());
            Ok(())
        }),
        _ => return None,
    })
}

fn number<T: std::str::FromStr>(text: &str, what: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is not a {what}"))
}

/// Reads all that each connection sends, then says how many bytes that were. Ends with its standard input, which whoever started it
/// holds: it does not outlive them, however they end.
fn sink(port: u16) -> std::io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A sender that went away is no news.
            std::thread::spawn(move || swallow(stream));
        }
    });
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map(drop)
}

fn swallow(mut stream: TcpStream) -> std::io::Result<()> {
    let mut room = vec![0; PIECE];
    let mut total = 0u64;
    loop {
        match stream.read(&mut room)? {
            0 => return stream.write_all(&total.to_be_bytes()),
            count => total += count as u64,
        }
    }
}

/// From the first byte until the sink has said that all have come.
fn send(address: SocketAddr, bytes: u64) -> std::io::Result<Duration> {
    let mut stream = TcpStream::connect_timeout(&address, CONNECT_WAIT)?;
    let piece = vec![b'x'; PIECE];
    let begun = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let now = left.min(PIECE as u64);
        stream.write_all(&piece[..now as usize])?;
        left -= now;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut arrived = [0; 8];
    stream.read_exact(&mut arrived)?;
    let arrived = u64::from_be_bytes(arrived);
    if arrived == bytes { Ok(begun.elapsed()) } else { Err(std::io::Error::other(format!("{arrived} of {bytes} bytes arrived"))) }
}

/// Serves until it is killed; a thread for each connection.
fn serve(port: u16) -> std::io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            // A client that went away is no news.
            let _ = answer(stream);
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let small = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", SMALL.len());
    let small = [small.as_bytes(), SMALL].concat();
    let piece = vec![b'x'; PIECE];
    let mut head = vec![0; HEAD_MAX];
    let mut filled = 0;
    loop {
        match stream.read(&mut head[filled..])? {
            0 => return Ok(()),
            count => filled += count,
        }
        if !head[..filled].ends_with(b"\r\n\r\n") {
            continue;
        }
        if head.starts_with(b"GET /big ") {
            stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {BIG_BYTES}\r\n\r\n").as_bytes())?;
            for _ in 0..BIG_BYTES / PIECE as u64 {
                stream.write_all(&piece)?;
            }
        } else {
            stream.write_all(&small)?;
        }
        filled = 0;
    }
}
