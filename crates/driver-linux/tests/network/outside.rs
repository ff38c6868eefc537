//! A network of the test's own: a host without any other, and further hosts beyond it, each in a network namespace that goes away
//! with the test's process.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::mpsc;

/// Runs a test whose host has loopback and nothing else. Says so when this machine cannot.
pub(crate) fn in_own_network<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    if !super::support::can_run() {
        return;
    }
    leave_network();
    ip(&["link", "set", "lo", "up"]);
    // Its threads are made from here on, and are in the new namespace too.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test());
}

fn leave_network() {
    // SAFETY: only the calling thread's network namespace changes; no descriptor table or memory.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
}

pub(crate) fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

type Job = Box<dyn FnOnce() + Send>;

/// A host beyond ours.
pub(crate) struct Outside {
    jobs: mpsc::Sender<Job>,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
}

impl Outside {
    /// On the link `name`, with the addresses `v4` of a /24 and `v6` of a /64; ours on that link end with 1.
    pub(crate) fn new(name: &str, v4: &str, v6: &str) -> Self {
        let (jobs, work) = mpsc::channel::<Job>();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            leave_network();
            tell.send(rustix::thread::gettid()).unwrap();
            work.into_iter().for_each(|job| job());
        });
        let thread = told.recv().unwrap().as_raw_nonzero().to_string();
        let peer = format!("{name}-in");
        ip(&["link", "add", name, "type", "veth", "peer", "name", &peer]);
        ip(&["link", "set", &peer, "netns", &thread]);
        let (v4, v6): (IpAddr, IpAddr) = (v4.parse().unwrap(), v6.parse().unwrap());
        let (our4, our6) = (first_of(v4), first_of(v6));
        ip(&["addr", "add", &format!("{our4}/24"), "dev", name]);
        ip(&["addr", "add", &format!("{our6}/64"), "dev", name, "nodad"]);
        ip(&["link", "set", name, "up"]);
        let outside = Self { jobs, v4, v6 };
        outside.work(move || {
            ip(&["link", "set", "lo", "up"]);
            ip(&["addr", "add", &format!("{v4}/24"), "dev", &peer]);
            ip(&["addr", "add", &format!("{v6}/64"), "dev", &peer, "nodad"]);
            ip(&["link", "set", &peer, "up"]);
            ip(&["route", "add", "default", "via", &our4.to_string()]);
            ip(&["-6", "route", "add", "default", "via", &our6.to_string()]);
        });
        outside
    }

    /// Does something there and waits for it.
    pub(crate) fn work<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(tell.send(job())))).unwrap();
        told.recv().expect("the job did not panic")
    }

    /// Accepts connections to these TCP ports of every address that leads there.
    pub(crate) fn serve_anywhere(&self, ports: &[u16]) {
        for port in ports.iter().copied() {
            self.work(move || {
                let listener = TcpListener::bind(SocketAddr::new(IpAddr::from([0_u16; 8]), port)).unwrap();
                std::thread::spawn(move || listener.incoming().for_each(drop));
            });
        }
    }

    /// Whoever connects to this TCP port is told by what address it is seen, and gets back what it sends.
    pub(crate) fn serve(&self, port: u16) {
        for address in [self.v4, self.v6] {
            self.work(move || {
                let listener = TcpListener::bind(SocketAddr::new(address, port)).unwrap();
                std::thread::spawn(move || {
                    for stream in listener.incoming() {
                        std::thread::spawn(move || {
                            let mut stream = stream.unwrap();
                            let peer = stream.peer_addr().unwrap().ip();
                            let _ = stream.write_all(format!("{peer}\n").as_bytes());
                            let mut room = [0; 4096];
                            while let Ok(length @ 1..) = stream.read(&mut room) {
                                if stream.write_all(&room[..length]).is_err() {
                                    break;
                                }
                            }
                        });
                    }
                });
            });
        }
    }
}

fn first_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            IpAddr::from([a, b, c, 1])
        }
        IpAddr::V6(address) => {
            let mut segments = address.segments();
            segments[4..].copy_from_slice(&[0, 0, 0, 1]);
            IpAddr::from(segments)
        }
    }
}
