//! Images: named stacks of read-only layers.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{EnvMap, InvalidName, StringMap, TenantId, Timestamp};

/// An image's name as users write it, `repository[:tag]`, 1 to 255 characters of `A-Z a-z 0-9 . _ - / : @`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

impl ImageName {
    /// Most characters in a name.
    pub const LEN_MAX: usize = 255;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ImageName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let len = text.chars().count();
        if len == 0 || len > Self::LEN_MAX {
            return Err(InvalidName::Length { what: "image", max: Self::LEN_MAX, len });
        }
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/:@".contains(&b));
        let parts_ok = text.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        let first_ok = text.as_bytes()[0].is_ascii_alphanumeric();
        if plain && parts_ok && first_ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::Grammar {
                what: "image",
                name: text.chars().take(80).collect(),
                rule: "write repository[:tag] with letters, digits and . _ - / : @",
            })
        }
    }
}

impl TryFrom<String> for ImageName {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> Self {
        name.0
    }
}

/// One read-only layer in the image store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// What the driver finds it by.
    pub id: String,
    /// Bytes on disk.
    pub size_bytes: u64,
}

/// What processes get from the image where neither the template nor the request says.
///
/// The words are those of the OCI image specification (`config.md`). Everything is optional, and a record written before a field
/// existed reads as one without it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Environment.
    pub env: EnvMap,
    /// Program and first arguments, which a request's command does not replace (`Entrypoint`).
    pub entrypoint: Vec<String>,
    /// Program and arguments to start, or the entrypoint's further arguments where there is one (`Cmd`).
    pub command: Vec<String>,
    /// User, by name or number, with a group after a colon if any.
    pub user: Option<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// Ports that the image announces.
    pub exposed_ports: BTreeSet<ExposedPort>,
    /// Labels.
    pub labels: StringMap,
    /// Signal that asks the main process to end, as the image spells it: `SIGTERM`, `15`.
    pub stop_signal: Option<String>,
}

impl ImageConfig {
    /// What starts when nobody says otherwise: the entrypoint, then the command.
    #[must_use]
    pub fn start_command(&self) -> Vec<String> {
        self.entrypoint.iter().chain(&self.command).cloned().collect()
    }
}

/// A port that an image announces: `80/tcp`, `53/udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExposedPort {
    /// Number, 1 to 65535.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// What runs over IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for ExposedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        write!(f, "{}/{protocol}", self.port)
    }
}

impl FromStr for ExposedPort {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => Some(Protocol::Tcp),
            "udp" => Some(Protocol::Udp),
            "sctp" => Some(Protocol::Sctp),
            _ => None,
        };
        let port =
            number.bytes().all(|b| b.is_ascii_digit()).then(|| number.parse::<u16>().ok()).flatten().filter(|port| *port > 0);
        match (port, protocol) {
            (Some(port), Some(protocol)) => Ok(Self { port, protocol }),
            _ => Err(InvalidName::Grammar {
                what: "port",
                name: text.chars().take(80).collect(),
                rule: "write a number from 1 to 65535, then /tcp, /udp or /sctp",
            }),
        }
    }
}

impl TryFrom<String> for ExposedPort {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<ExposedPort> for String {
    fn from(port: ExposedPort) -> Self {
        port.to_string()
    }
}

/// Where an image came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageSource {
    /// Made from the host's own system directories.
    Host,
    /// Imported from an archive or a directory.
    Imported,
    /// Pulled from a registry, under the name that it has.
    Pulled {
        /// `sha256:…` of the manifest, or of the index of several, that the name stood for.
        digest: String,
    },
    /// Taken from an archive or a layout of images.
    Loaded {
        /// Digest of its configuration: the image's id in Docker's words.
        config_digest: String,
    },
    /// Committed from a sandbox.
    Committed {
        /// The sandbox, as text: it may be long gone.
        sandbox: String,
    },
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Name, unique beside its owner.
    pub name: ImageName,
    /// Who may use it; `None`: everybody.
    pub tenant: Option<TenantId>,
    /// Layers, lowest first.
    pub layers: Vec<Layer>,
    /// Whether the host's system directories lie beneath the layers (the `host` image and what was committed from it).
    pub on_host: bool,
    /// Defaults for processes.
    pub config: ImageConfig,
    /// Origin.
    pub source: ImageSource,
    /// When it was made.
    pub created_at: Timestamp,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_record_from_before_the_new_fields_still_reads() {
        let old = r#"{"env":{"A":"1"},"command":["sh"],"user":null,"workdir":"/w"}"#;
        let config: ImageConfig = serde_json::from_str(old).unwrap();
        assert_eq!(config.command, ["sh"]);
        assert_eq!(config.workdir.as_deref(), Some("/w"));
        assert_eq!(config.entrypoint, [""; 0]);
        assert_eq!(config.start_command(), ["sh"]);
        let again: ImageConfig = serde_json::from_str(&serde_json::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn an_exposed_port_reads_and_writes() {
        for (text, shown) in [("80", "80/tcp"), ("53/udp", "53/udp"), ("9/SCTP", "9/sctp"), ("65535/tcp", "65535/tcp")] {
            assert_eq!(text.parse::<ExposedPort>().unwrap().to_string(), shown);
        }
        for text in ["", "0", "65536", "80/", "80/icmp", "+80", "80-90/tcp", "/tcp"] {
            assert!(text.parse::<ExposedPort>().is_err(), "{text}");
        }
    }
}
