//! What a network adds to a create.

use std::time::Instant;

use super::{Settings, release, rest};
use crate::client::Client;
use crate::report::{Row, Samples};
use crate::rows::create_one;
use crate::server::Server;
use crate::{BenchError, Result};

/// Most that a network may add, ms.
const ADDED_MAX_MS: f64 = 0.8;

/// Creates at two servers turn by turn, of which one gives sandboxes a network. Each begins with both at rest, so that the namespaces
/// that are made ahead are there, as they are for whoever does not create without pause.
pub(crate) async fn network_create(settings: &Settings) -> Result<Vec<Row>> {
    let mut without = Creates::begin(settings, "without", "[network]\nenabled = false\n").await?;
    let mut with = Creates::begin(settings, "with", "").await?;
    without.check(false).await?;
    with.check(true).await?;
    for _ in 0..settings.repeat {
        without.one().await?;
        with.one().await?;
    }
    let without = Row::durations("create without a network, beside", &without.samples);
    let with = Row::durations("create with a network", &with.samples);
    let added = with.p50.unwrap_or(f64::INFINITY) - without.p50.unwrap_or(0.0);
    let added = Row::number("create, added by a network at p50", added, "ms", u64::from(settings.repeat))
        .target("<= 0.8 ms", added <= ADDED_MAX_MS);
    Ok(vec![without, with, added])
}

/// One server and the creates at it.
struct Creates {
    client: Client,
    server: Server,
    samples: Samples,
}

impl Creates {
    async fn begin(settings: &Settings, part: &str, config: &str) -> Result<Self> {
        let server = settings.server_beside(part, config).await?;
        Ok(Self { client: server.client().await?, server, samples: Samples::new() })
    }

    /// Whether its sandboxes have what they should: a machine that cannot give them a network makes both rows the same.
    async fn check(&mut self, networked: bool) -> Result<()> {
        let id = create_one(&mut self.client).await?;
        let view = self.client.get(&format!("/v1/sandboxes/{id}/network")).await?;
        release(&mut self.client, &id).await?;
        rest(&self.server, 0).await?;
        if (view["source"] != "driver") == networked {
            return Ok(());
        }
        Err(BenchError::new(format!("a sandbox with a network: {networked} wanted, but {view}; see `sandbank doctor`")))
    }

    async fn one(&mut self) -> Result<()> {
        let begun = Instant::now();
        let id = create_one(&mut self.client).await?;
        self.samples.add(begun.elapsed());
        release(&mut self.client, &id).await?;
        rest(&self.server, 0).await
    }
}
