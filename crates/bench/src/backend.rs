//! `sandbank-bench backend PORT`: the program that the rows of ports reach, on the host and inside a sandbox. As little as can
//! answer HTTP: what is measured is the way to it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

/// What `/small` answers with.
pub(crate) const SMALL: &[u8] = b"ok";
/// Bytes that `/big` answers with: 1 GiB.
pub(crate) const BIG_BYTES: u64 = 1 << 30;
/// Largest request head.
const HEAD_MAX: usize = 16 * 1024;
const PIECE: usize = 256 * 1024;

/// Serves until it is killed; a thread for each connection.
pub(crate) fn serve(port: u16) -> std::io::Result<()> {
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
