use std::rc::Rc;
use sandbank_agent_protocol::WatchFiles;
use crate::errors::{Failure, invalid};
use crate::host::Host;
use crate::server::Agent;
pub(crate) async fn watch(_agent: &Rc<Agent>, _host: &mut Host, _request: WatchFiles) -> Result<(), Failure> {
    Err(invalid("x").into())
}
