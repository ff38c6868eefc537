//! Restart of the server under many sandboxes.

use super::{Settings, claim_one, drain, exec_true, make_pool, release, wait_gone};
use crate::Result;
use crate::report::Row;

/// Time from the start of the new server until it serves, which it does only when every sandbox is taken over; and how many of
/// the sandboxes still run a program then.
pub(crate) async fn restart(settings: &Settings) -> Result<Vec<Row>> {
    let mut server = settings.server().await?;
    let mut client = server.client().await?;
    let empty = server.kill_and_restart().await?;
    client = reconnect(&server, client).await?;
    make_pool(&mut client, settings.restart).await?;
    let mut held = Vec::new();
    for _ in 0..settings.restart / 2 {
        held.push(claim_one(&mut client).await?);
    }
    super::wait_warm(&mut client, settings.restart).await?;
    let total = u64::from(settings.restart) + held.len() as u64;
    let took = server.kill_and_restart().await?;
    client = reconnect(&server, client).await?;
    let mut alive = 0u64;
    for id in &held {
        alive += u64::from(exec_true(&mut client, id).await.is_ok());
    }
    let lost = held.len() as u64 - alive;
    let warm = super::warm_now(&mut client).await?;
    for id in &held {
        release(&mut client, id).await?;
    }
    drain(&server, &mut client).await?;
    wait_gone(&server).await?;
    let seconds = took.as_secs_f64();
    Ok(vec![
        Row::number("start without sandboxes", empty.as_secs_f64(), "s", 1),
        Row::number(format!("restart with {total} sandboxes"), seconds, "s", total)
            .note(format!("{warm} warm, {alive} claimed answer"))
            .target("<= 1 s", seconds <= 1.0),
        Row::number("claimed sandboxes lost", lost as f64, "sandboxes", held.len() as u64).target("none", lost == 0),
    ])
}

async fn reconnect(server: &crate::server::Server, old: crate::client::Client) -> Result<crate::client::Client> {
    drop(old);
    server.client().await
}
