//! Connecting to a port inside without the agent: a socket that is made in the sandbox's network namespace and used out here.
//!
//! A socket belongs for good to the namespace it was made in, so only socket(2) has to happen there: connecting, reading and
//! writing are those of any other socket. The kernel copies each byte once each way, and the agent never sees it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};
use sandbank_driver::PortIo;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::live::Live;
use crate::sys;

/// The server's own network namespace, to come back to; `None` where sandboxes' namespaces cannot be entered.
pub(super) fn own_namespace(id_ranges: bool) -> Option<OwnedFd> {
    // Without ranges of ids sandboxes have a user namespace that only their launcher has rights in.
    if !id_ranges {
        return None;
    }
    rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// Connects to 127.0.0.1, and where nobody listens there to ::1. `None`: the namespace cannot be entered.
pub(super) async fn dial(home: BorrowedFd<'_>, live: &Live, port: u16) -> Option<io::Result<Box<dyn PortIo>>> {
    if live.is_frozen() {
        // The kernel would answer for the frozen listener, and nobody would ever read.
        return Some(Err(io::Error::new(io::ErrorKind::NotConnected, "the sandbox is paused")));
    }
    let dialled = match connect(home, live, (Ipv4Addr::LOCALHOST, port).into()).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            match connect(home, live, (Ipv6Addr::LOCALHOST, port).into()).await {
                Ok(stream) => Ok(stream),
                // Where there is no IPv6 its error says nothing; the refusal does.
                Err(_) => Err(error),
            }
        }
        outcome => outcome,
    };
    match dialled {
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::PERM | Errno::ACCESS)) => None,
        outcome => Some(outcome.map(|stream| Box::new(stream) as Box<dyn PortIo>)),
    }
}

async fn connect(home: BorrowedFd<'_>, live: &Live, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket_inside(home, live.pidfd.get_ref().as_fd(), address.ip())?;
    rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    let stream = TcpStream::from_std(std::net::TcpStream::from(socket))?;
    // Writable means connected or failed (connect(2), EINPROGRESS).
    stream.ready(Interest::WRITABLE).await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

/// Makes a TCP socket in the network namespace of a sandbox's first process, named by its pidfd: one that has ended cannot be
/// mistaken for whoever has its number now.
fn socket_inside(home: BorrowedFd<'_>, first_process: BorrowedFd<'_>, address: IpAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let make = || rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP));
    sys::in_network_namespace(first_process, home, make)?
}
