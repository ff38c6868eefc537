//! Sandboxes whose policy adds headers trust the server's own certificate authority: the proxy ends their TLS in its name.
//!
//! The certificate goes into the bundle of roots that the image has, so that programs which read the system's trust it. Libraries
//! that bring roots of their own are pointed at it by environment variables, under whatever the image, the lease and the request
//! say. Files are written as root by the sandbox's agent, so that links lead nowhere but inside. Sandboxes without headers are left
//! as they are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sandbank_agent_protocol as agent;
use sandbank_agent_protocol::{ClientError, Frame, Reply, Request};
use sandbank_driver::{Driver, Target};
use sandbank_model::{DriverHandle, NetworkPolicy, Sandbox, SandboxId, State};

use crate::control::Inner;
use crate::convert::{out_of_turn, unresponsive};
use crate::{Error, ErrorKind, Result};

/// The certificate by itself, for programs that want it beside their own roots.
const CERTIFICATE: &str = "/etc/sandbank/ca.pem";
/// Bundles of roots by distribution, each with the file from which its tools (`update-ca-certificates` and their like) would build
/// it again. Debian and Alpine, Fedora, SUSE, and what is left of them in small images. The first is made where there is none.
const BUNDLES: [(&str, Option<&str>); 4] = [
    ("/etc/ssl/certs/ca-certificates.crt", Some("/usr/local/share/ca-certificates/sandbank.crt")),
    ("/etc/pki/tls/certs/ca-bundle.crt", Some("/etc/pki/ca-trust/source/anchors/sandbank.pem")),
    ("/etc/ssl/ca-bundle.pem", Some("/etc/pki/trust/anchors/sandbank.pem")),
    ("/etc/ssl/cert.pem", None),
];
/// Largest bundle that is added to: distributions' have a quarter of a MiB.
const BUNDLE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Stands before the certificate in the bundle, for people.
const MARK: &str = "# Sandbank: the authority of this server, for hosts that requests get headers for.";
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
/// Longest time for all of it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Variables that add a certificate to a program's own roots (Node.js, Deno).
const ADDING: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];
/// Variables that name all of a program's roots (OpenSSL with Python's `ssl`, requests and pip, curl, git, boto).
const REPLACING: [&str; 5] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE"];

/// The authority is trusted inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trusted {
    /// The bundle that it is in.
    bundle: &'static str,
    /// The bundle has other roots too. Where it has none, a library's own must not be replaced by it: nothing else could be reached.
    has_roots: bool,
}

impl Trusted {
    fn env(self) -> BTreeMap<String, String> {
        let replacing = self.has_roots.then_some(REPLACING).into_iter().flatten().map(|name| (name, self.bundle));
        let adding = ADDING.into_iter().map(|name| (name, CERTIFICATE));
        adding.chain(replacing).map(|(name, path)| (name.to_owned(), path.to_owned())).collect()
    }
}

impl Inner {
    /// Has a sandbox that runs trust the authority if `policy` adds headers.
    pub(super) async fn trust_for(&self, sandbox: &Sandbox, policy: &NetworkPolicy) -> Result<()> {
        if policy.headers.is_empty() || !matches!(sandbox.state, State::Ready | State::Running) {
            return Ok(());
        }
        let (driver, handle) = self.target_of(sandbox)?;
        self.trust(sandbox.id, driver.as_ref(), &handle).await?;
        Ok(())
    }

    /// As [`Inner::trust_in_force`] for one that has come back: it may have got its policy while it was frozen, or from a server
    /// before this one. What fails is told and tried again before the next program: a sandbox that nothing can be started in could
    /// not be repaired either, and without the certificate programs refuse to speak.
    pub(crate) async fn trust_again(&self, sandbox: &Sandbox) -> BTreeMap<String, String> {
        let trusted = async {
            let (driver, handle) = self.target_of(sandbox)?;
            self.trust_in_force(sandbox.id, driver.as_ref(), &handle).await
        };
        trusted.await.unwrap_or_else(|error| {
            tracing::warn!(sandbox = %sandbox.id, error = %error, "requests that get headers will fail");
            BTreeMap::new()
        })
    }

    /// Has a sandbox trust the authority if what it may reach adds headers. Gives the variables that its programs start with; they
    /// come under all others.
    pub(crate) async fn trust_in_force(
        &self,
        id: SandboxId,
        driver: &dyn Driver,
        handle: &DriverHandle,
    ) -> Result<BTreeMap<String, String>> {
        let adds_headers = |entry: super::directory::Entry| !entry.active.policy().headers.is_empty();
        if !self.networks.get(id).is_some_and(adds_headers) {
            return Ok(BTreeMap::new());
        }
        Ok(self.trust(id, driver, handle).await?.map(Trusted::env).unwrap_or_default())
    }

    async fn trust(&self, id: SandboxId, driver: &dyn Driver, handle: &DriverHandle) -> Result<Option<Trusted>> {
        let (Some(entry), Some(pem)) = (self.networks.get(id), &self.settings.network.authority_pem) else { return Ok(None) };
        let adding = async {
            // Who comes meanwhile waits and need not look.
            let mut trusted = entry.trusted.lock().await;
            if trusted.is_none() {
                *trusted = Some(Inside { driver, target: Target { id, handle } }.trust(pem).await?);
            }
            Ok(*trusted)
        };
        let done = tokio::time::timeout(TIMEOUT, adding).await.unwrap_or_else(|_| Err(unresponsive()));
        done.map_err(|error: Error| {
            let message = format!(
                "headers need that the sandbox trusts this server's certificate authority, which could not be put among its \
                 certificates: {}",
                error.message
            );
            // It is about a file inside, and must not read as if the sandbox were missing or another's.
            let kind = match error.kind {
                ErrorKind::NotFound | ErrorKind::Forbidden | ErrorKind::Conflict => ErrorKind::Invalid,
                kind => kind,
            };
            Error { kind, message, ..error }
        })
    }
}

/// The files of one sandbox. What is done here is no use of the sandbox.
struct Inside<'a> {
    driver: &'a dyn Driver,
    target: Target<'a>,
}

impl Inside<'_> {
    /// Puts the certificate everywhere, once: what is there already stays.
    async fn trust(&self, pem: &Arc<str>) -> Result<Trusted> {
        let (bundle, source, roots) = self.bundle().await?;
        let known = String::from_utf8_lossy(&roots);
        let listed = known.contains(pem.trim());
        let has_roots = known.matches(BEGIN).count() > usize::from(listed);
        if self.read(CERTIFICATE, pem.len()).await?.is_none_or(|found| found != pem.as_bytes()) {
            self.write(CERTIFICATE, Bytes::copy_from_slice(pem.as_bytes())).await?;
        }
        if !listed {
            if let Some(source) = source {
                self.write(source, Bytes::copy_from_slice(pem.as_bytes())).await?;
            }
            let added = format!("\n{MARK}\n{}\n", pem.trim());
            self.write(bundle, [&roots, added.as_bytes()].concat().into()).await?;
        }
        Ok(Trusted { bundle, has_roots })
    }

    /// The image's bundle, where it is built from, and what is in it.
    async fn bundle(&self) -> Result<(&'static str, Option<&'static str>, Vec<u8>)> {
        for (path, source) in BUNDLES {
            if let Some(roots) = self.read(path, BUNDLE_BYTES_MAX).await? {
                return Ok((path, source, roots));
            }
        }
        let [(path, source), ..] = BUNDLES;
        Ok((path, source, Vec::new()))
    }

    /// `None` where there is no file.
    async fn read(&self, path: &str, most: usize) -> Result<Option<Vec<u8>>> {
        let length = u64::try_from(most).ok().map(|most| most.saturating_add(1));
        let read = Request::Read(agent::ReadFile { path: path.to_owned(), user: None, offset: 0, length });
        let missing = |error: &agent::AgentError| matches!(error.kind, agent::ErrorKind::NotFound | agent::ErrorKind::WrongKind);
        let mut connection = self.driver.open(self.target, &read).await?;
        match connection.reply("a file's metadata").await {
            Ok(Reply::Stat(_)) => {}
            Ok(_) => return Err(out_of_turn()),
            Err(ClientError::Refused(error)) if missing(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let mut content = Vec::new();
        loop {
            match connection.next().await? {
                Some(Frame::Data(data)) if content.len() + data.len() <= most => content.extend_from_slice(&data),
                Some(Frame::Data(_)) => {
                    return Err(Error::new(ErrorKind::Invalid, format!("{path} has more than {most} bytes")));
                }
                Some(Frame::End) => return Ok(Some(content)),
                Some(Frame::Message(body)) => {
                    return match Frame::parse::<Reply>(&body)? {
                        Reply::Error(error) => Err(error.into()),
                        _ => Err(out_of_turn()),
                    };
                }
                Some(Frame::Output(..)) | None => return Err(out_of_turn()),
            }
        }
    }

    /// Replaces a file in one step.
    async fn write(&self, path: &str, content: Bytes) -> Result<()> {
        let open = agent::OpenMode::Replace;
        let write = Request::Write(agent::WriteFile { path: path.to_owned(), user: None, mode: None, open });
        let mut connection = self.driver.open(self.target, &write).await?;
        let sent = async {
            connection.send_data(content).await?;
            connection.send_end().await
        };
        // An agent that refuses says why and closes: that is worth more than the broken pipe.
        let sent = sent.await;
        match (connection.reply("a file's metadata").await, sent) {
            (Ok(Reply::Stat(_)), Ok(())) => Ok(()),
            (Err(error @ ClientError::Refused(_)), _) | (Err(error), Ok(())) | (_, Err(error)) => Err(error.into()),
            (Ok(_), Ok(())) => Err(out_of_turn()),
        }
    }
}
