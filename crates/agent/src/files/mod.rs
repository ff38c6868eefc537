//! File operations, with the credentials of the user they are for.
//!
//! All are done inline in slices: a thread of their own would count against the sandbox's processes, and a fork bomb inside
//! must not stop the agent. Only regular files are read and written, so nothing here can block on a pipe or a device.

mod list;
mod make;
mod place;
mod read;
mod remove;
mod temporary;
mod transfer;
mod write;

use std::rc::Rc;

use sandbank_agent_protocol::{Reply, Request};

use crate::errors::{Failure, invalid};
use crate::host::Host;
use crate::server::Agent;
pub(crate) use place::Place;

/// Serves the requests about files.
pub(crate) async fn operate(agent: &Rc<Agent>, host: &mut Host, request: Request) -> Result<(), Failure> {
    let stat = match request {
        Request::Stat(request) => Place::resolve(agent, &request.path, request.user.as_deref())?.stat(request.follow)?,
        Request::List(request) => return list::list(agent, host, &request).await,
        Request::Read(request) => return read::read(agent, host, &request).await,
        Request::Write(request) => write::write(agent, host, &request).await?,
        Request::Move(request) => transfer::rename(agent, host, &request).await?,
        Request::MakeDir(request) => make::directory(agent, &request)?,
        Request::Remove(request) => {
            remove::remove(agent, host, &request).await?;
            return host.reply(&Reply::Done).await;
        }
        _ => return Err(invalid("not a request about files").into()),
    };
    host.reply(&Reply::Stat(stat)).await
}
