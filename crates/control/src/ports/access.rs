//! Who may reach a port: the sandbox's owner, whoever has a token for it, or anybody where it is public.

use std::sync::Arc;

use sandbank_model::{Command, PUBLIC_PORTS_MAX, PortAccess, PortAccessChange, PublicPorts, Sandbox, SandboxId, State};

use super::check_port;
use crate::control::{Control, Inner};
use crate::sandboxes::not_found;
use crate::streams::StreamGuard;
use crate::types::{Caller, Id, SandboxView};
use crate::{Error, ErrorKind, Result};

/// Who asks for a port.
#[derive(Clone, Copy)]
pub enum PortVisitor<'a> {
    /// Somebody with an API key.
    Caller(&'a Caller),
    /// Somebody with a port token.
    Token(&'a str),
    /// Anybody: only public ports answer.
    Anyone,
}

impl std::fmt::Debug for PortVisitor<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Caller(_) => "Caller",
            Self::Token(_) => "Token",
            Self::Anyone => "Anyone",
        })
    }
}

/// Leave to use one port of a running sandbox, now. While it exists the sandbox counts as used.
pub struct PortPass {
    sandbox: Box<Sandbox>,
    port: u16,
    inner: Arc<Inner>,
    guard: StreamGuard,
}

impl std::fmt::Debug for PortPass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortPass").field("id", &self.sandbox.id).field("port", &self.port).finish_non_exhaustive()
    }
}

impl PortPass {
    /// Which sandbox.
    #[must_use]
    pub fn id(&self) -> SandboxId {
        self.sandbox.id
    }

    /// Which port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }
}

impl Drop for PortPass {
    fn drop(&mut self) {
        if !self.guard.is_ended() {
            self.inner.activity.touch(self.sandbox.id, self.inner.now());
        }
    }
}

impl Control {
    /// Lets a visitor to a port, or says why not. Counts as activity. Reads memory only, but for sandboxes that have ended.
    ///
    /// `Unauthenticated`: the token is wrong, or none was shown and the port is not public. `NotFound`: no such sandbox, or an ended
    /// one. `State`: it does not run.
    pub async fn port_admit(&self, visitor: PortVisitor<'_>, id: Id, port: u16) -> Result<PortPass> {
        check_port(port)?;
        let inner = &self.inner;
        // A token that is none costs no look at the store.
        let token = match visitor {
            PortVisitor::Token(text) => Some(inner.port_token_open(text, id, port)?),
            PortVisitor::Caller(_) | PortVisitor::Anyone => None,
        };
        let found = inner.record(id).await?.filter(|sandbox| !matches!(sandbox.state, State::Terminated | State::Failed));
        let access = found.as_ref().and_then(|sandbox| sandbox.lease.as_ref()).map(|lease| &lease.ports);
        let sandbox = match (visitor, found.as_ref()) {
            (PortVisitor::Caller(caller), Some(sandbox)) if caller.sees(sandbox.tenant) => found,
            (PortVisitor::Caller(caller), _) => return Err(not_found(caller, id)),
            (_, None) => None,
            (PortVisitor::Token(_), Some(_)) => {
                if access.map(|access| access.token_generation) != token {
                    return Err(refused("the port token has been revoked: ask the sandbox's owner for another"));
                }
                found
            }
            (PortVisitor::Anyone, Some(_)) => {
                if !access.is_some_and(|access| access.public.contains(port)) {
                    return Err(refused("this port is private: show an API key or a port token"));
                }
                found
            }
        };
        let sandbox = sandbox.ok_or_else(|| Error::not_found(format!("sandbox {id} not found or already terminated")))?;
        inner.check_running(&sandbox)?;
        inner.activity.touch(id, inner.now());
        let guard = inner.streams.open(id);
        Ok(PortPass { sandbox: Box::new(sandbox), port, inner: Arc::clone(inner), guard })
    }

    /// Says which ports anybody may reach. Streams that are open stay open.
    pub async fn port_access_set(&self, caller: &Caller, id: Id, public: PublicPorts) -> Result<SandboxView> {
        check_public_ports(&public)?;
        self.change_port_access(caller, id, PortAccessChange::Public(public)).await
    }

    /// Ends all port tokens that were given out so far. Streams that are open stay open.
    pub async fn port_tokens_revoke(&self, caller: &Caller, id: Id) -> Result<SandboxView> {
        self.change_port_access(caller, id, PortAccessChange::RevokeTokens).await
    }

    async fn change_port_access(&self, caller: &Caller, id: Id, change: PortAccessChange) -> Result<SandboxView> {
        let inner = &self.inner;
        inner.sandbox_of(caller, id).await?;
        let changed = inner
            .advance(id, &caller.actor(), |sandbox, _| match (sandbox.state, &change) {
                (State::Terminated | State::Failed, _) => Err(not_found(caller, id)),
                (_, PortAccessChange::Public(public)) if access_of(sandbox).public == *public => Ok(None),
                _ => Ok(Some(Command::ChangePortAccess(change.clone()))),
            })
            .await?;
        inner.activity.touch(id, inner.now());
        inner.view(changed).await
    }
}

/// Who may reach its ports; nobody but its owner before it is claimed.
pub(super) fn access_of(sandbox: &Sandbox) -> PortAccess {
    sandbox.lease.as_ref().map(|lease| lease.ports.clone()).unwrap_or_default()
}

/// Refuses what are no ports, and too many of them.
pub(crate) fn check_public_ports(public: &PublicPorts) -> Result<()> {
    match public {
        PublicPorts::Only(ports) if ports.len() > PUBLIC_PORTS_MAX => {
            let count = ports.len();
            Err(Error::invalid(format!("{count} public ports are too many: name at most {PUBLIC_PORTS_MAX}, or open all")))
        }
        PublicPorts::Only(ports) => ports.iter().try_for_each(|port| check_port(*port)),
        PublicPorts::None | PublicPorts::All => Ok(()),
    }
}

pub(super) fn refused(message: &str) -> Error {
    Error::new(ErrorKind::Unauthenticated, message)
}
