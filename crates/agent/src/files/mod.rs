//! File operations, with the credentials of the user they are for.
//!
//! All are done inline in slices: a thread of their own would count against the sandbox's processes, and a fork bomb inside
//! must not stop the agent. Only regular files are read and written, so nothing here can block on a pipe or a device.
use std::rc::Rc;
use sandbank_agent_protocol::Request;
use crate::errors::{Failure, invalid};
use crate::host::Host;
use crate::server::Agent;
pub(crate) async fn operate(_agent: &Rc<Agent>, _host: &mut Host, _request: Request) -> Result<(), Failure> {
    Err(invalid("x").into())
}
