//! `port …`: ways to the ports of a sandbox.

use clap::{Args, Subcommand};

/// `port …`.
#[derive(Debug, Subcommand)]
pub(crate) enum Port {
    /// Print an address that opens a port in a browser
    #[command(
        after_help = "Examples:\n  sandbank port url $ID 8000                  a link for your browser, good for an hour\n  \
        sandbank port url $ID 8000 --expires 24h\n  \
        sandbank port url $ID 8000 --public         anybody may open it from now on"
    )]
    Url(PortUrl),
    /// Make a port of a sandbox a port of this machine, for any protocol over TCP
    #[command(
        after_help = "Examples:\n  sandbank port forward $ID 5432              127.0.0.1:5432 leads to port 5432 inside\n  \
        sandbank port forward $ID 15432:5432        another port here\n  \
        sandbank port forward $ID 0:5432            a free port here, told on standard error"
    )]
    Forward(PortForward),
    /// Make ports private again, and end all links and tokens that were given out
    Close(PortClose),
}

/// Options of `port url`.
#[derive(Debug, Args)]
pub(crate) struct PortUrl {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Port inside
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: u16,
    /// Let anybody in who knows the address, without a token
    #[arg(long, conflicts_with = "expires")]
    pub(crate) public: bool,
    /// End the link after this long, at most 24h [default: 1h]
    #[arg(long, value_name = "DURATION")]
    pub(crate) expires: Option<String>,
}

/// Options of `port forward`.
#[derive(Debug, Args)]
pub(crate) struct PortForward {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
    /// Port inside, or LOCAL:PORT
    #[arg(value_name = "[LOCAL:]PORT", value_parser = forwarded)]
    pub(crate) ports: Forwarded,
}

/// Options of `port close`.
#[derive(Debug, Args)]
pub(crate) struct PortClose {
    /// Sandbox id
    #[arg(value_name = "ID")]
    pub(crate) id: String,
}

/// A port here and one inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forwarded {
    /// Here; 0 takes a free one.
    pub(crate) local: u16,
    /// Inside.
    pub(crate) inside: u16,
}

fn forwarded(text: &str) -> Result<Forwarded, String> {
    let port = |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is not a port: ports are 1 to 65535"));
    let (local, inside) = match text.split_once(':') {
        Some((local, inside)) => (port(local)?, port(inside)?),
        None => (port(text)?, port(text)?),
    };
    if inside == 0 { Err("0 is not a port inside: ports are 1 to 65535".to_owned()) } else { Ok(Forwarded { local, inside }) }
}

#[cfg(test)]
mod tests {
    use super::{Forwarded, forwarded};

    #[test]
    fn a_port_here_may_differ_from_the_one_inside() {
        assert_eq!(forwarded("80"), Ok(Forwarded { local: 80, inside: 80 }));
        assert_eq!(forwarded("0:80"), Ok(Forwarded { local: 0, inside: 80 }));
        for wrong in ["", ":", "80:", ":80", "0", "80:0", "65536", "a:b", "1:2:3"] {
            assert!(forwarded(wrong).is_err(), "{wrong}");
        }
    }
}
