//! What the writer does with sandboxes.

use rusqlite::{OptionalExtension, params};
use sandbank_model::{Command, Event, Sandbox, SandboxId, Timestamp, transition};

use super::error::{Doing, decode, encode, int};
use super::memory::SandboxRow;
use super::unit::Unit;
use crate::{ClaimRequest, StoreError, Write};

impl Unit<'_> {
    pub(super) fn sandbox_insert(&mut self, sandbox: Sandbox, revision: u64, event: Event) -> Result<(), StoreError> {
        const DOING: &str = "adding a sandbox";
        let record = encode(&sandbox, DOING)?;
        self.conn
            .prepare_cached(
                "INSERT INTO sandbox (id, tenant, pool, pool_name, state, live, revision, generation, claimed_at, sorted_at, \
                 ended_at, last_activity_at, record) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            )
            .and_then(|mut insert| {
                insert.execute(params![
                    sandbox.id.uuid().as_bytes(),
                    sandbox.tenant.uuid().as_bytes(),
                    sandbox.pool.map(|id| *id.uuid().as_bytes()),
                    sandbox.pool_name.as_ref().map(|name| name.as_str()),
                    sandbox.state.as_str(),
                    sandbox.state.is_live(),
                    int(revision),
                    int(sandbox.generation),
                    claimed_at(&sandbox).map(|at| int(at.as_millis())),
                    int(sorted_at(&sandbox).as_millis()),
                    sandbox.ended_at.map(|at| int(at.as_millis())),
                    int(sandbox.last_activity_at.as_millis()),
                    record
                ])
            })
            .doing(DOING)?;
        self.append(event)?;
        self.put_sandbox(SandboxRow { sandbox, revision });
        Ok(())
    }

    pub(super) fn sandbox_update(&mut self, sandbox: Sandbox, expected: u64, event: Event) -> Result<Write<Sandbox>, StoreError> {
        let live =
            self.memory().sandbox(sandbox.id).map(|row| (row.sandbox.generation, row.revision, row.sandbox.last_activity_at));
        let Some((generation, revision, last_activity_at)) = live else {
            // What has ended changes no more.
            return Ok(self.ended(sandbox.id)?.map_or(Write::Missing, Write::Refused));
        };
        if generation != expected {
            return Ok(self.memory().sandbox(sandbox.id).map_or(Write::Missing, |row| Write::Refused(row.sandbox.clone())));
        }
        let last_activity_at = sandbox.last_activity_at.max(last_activity_at);
        let sandbox = Sandbox { generation: expected.saturating_add(1), last_activity_at, ..sandbox };
        self.write_row(&sandbox)?;
        self.append(event)?;
        self.put_sandbox(SandboxRow { sandbox: sandbox.clone(), revision });
        Ok(Write::Updated(sandbox))
    }

    /// One transition of one row, chosen in memory: nothing else.
    pub(super) fn sandbox_claim(&mut self, request: ClaimRequest) -> Result<Option<Sandbox>, StoreError> {
        let ClaimRequest { pool, lease, actor, now } = request;
        let Some(row) = self.memory().next_warm(pool).cloned() else { return Ok(None) };
        let (sandbox, event) = transition(&row.sandbox, Command::Claim(Box::new(lease)), &actor, now)
            .map_err(|refusal| StoreError::Backend { doing: "claiming a sandbox", detail: refusal.to_string() })?;
        self.write_row(&sandbox)?;
        self.append(event)?;
        self.put_sandbox(SandboxRow { sandbox: sandbox.clone(), revision: row.revision });
        Ok(Some(sandbox))
    }

    fn write_row(&self, sandbox: &Sandbox) -> Result<(), StoreError> {
        const DOING: &str = "changing a sandbox";
        let record = encode(sandbox, DOING)?;
        let (id, state) = (sandbox.id.uuid(), sandbox.state.as_str());
        let (generation, activity) = (int(sandbox.generation), int(sandbox.last_activity_at.as_millis()));
        let changed = if sandbox.state.is_live() {
            // Naming no column that an index knows keeps the indexes' pages out of the transaction.
            self.conn
                .prepare_cached(
                    "UPDATE sandbox SET state = ?2, generation = ?3, last_activity_at = ?4, record = ?5 WHERE id = ?1",
                )
                .and_then(|mut update| update.execute(params![id.as_bytes(), state, generation, activity, record]))
        } else {
            self.conn
                .prepare_cached(
                    "UPDATE sandbox SET state = ?2, generation = ?3, last_activity_at = ?4, record = ?5, live = 0, \
                     claimed_at = ?6, sorted_at = ?7, ended_at = ?8 WHERE id = ?1",
                )
                .and_then(|mut update| {
                    update.execute(params![
                        id.as_bytes(),
                        state,
                        generation,
                        activity,
                        record,
                        claimed_at(sandbox).map(|at| int(at.as_millis())),
                        int(sorted_at(sandbox).as_millis()),
                        sandbox.ended_at.map(|at| int(at.as_millis())),
                    ])
                })
        }
        .doing(DOING)?;
        if changed == 1 { Ok(()) } else { Err(lost_row(sandbox.id)) }
    }

    fn ended(&self, id: SandboxId) -> Result<Option<Sandbox>, StoreError> {
        let text: Option<String> = self
            .conn
            .prepare_cached("SELECT record FROM sandbox WHERE id = ?1")
            .and_then(|mut select| select.query_row([id.uuid().as_bytes()], |row| row.get(0)).optional())
            .doing("reading a sandbox")?;
        text.map(|text| decode("sandbox", || id.to_string(), &text)).transpose()
    }

    pub(super) fn sandbox_touch(&mut self, activity: Vec<(SandboxId, Timestamp)>) -> Result<(), StoreError> {
        const DOING: &str = "noting activity";
        for (id, at) in activity {
            let Some(row) = self.memory().sandbox(id).filter(|row| row.sandbox.last_activity_at < at).cloned() else { continue };
            self.conn
                .prepare_cached("UPDATE sandbox SET last_activity_at = ?2 WHERE id = ?1")
                .and_then(|mut update| update.execute(params![id.uuid().as_bytes(), int(at.as_millis())]))
                .doing(DOING)?;
            let mut row = SandboxRow::clone(&row);
            row.sandbox.last_activity_at = at;
            self.put_sandbox(row);
        }
        Ok(())
    }

    pub(super) fn prune(&mut self, before: Timestamp, limit: u32) -> Result<u64, StoreError> {
        const DOING: &str = "pruning";
        self.prune_builds(before, limit)?;
        let before = int(before.as_millis());
        let ended: Vec<(i64, String)> = self
            .conn
            .prepare_cached("SELECT rowid, record FROM sandbox WHERE live = 0 AND sorted_at < ?1 AND ended_at < ?1 ORDER BY sorted_at LIMIT ?2")
            .and_then(|mut select| select.query_map(params![before, limit], |row| Ok((row.get(0)?, row.get(1)?)))?.collect())
            .doing(DOING)?;
        for (rowid, record) in &ended {
            self.conn
                .prepare_cached("DELETE FROM sandbox WHERE rowid = ?1")
                .and_then(|mut delete| delete.execute([rowid]))
                .doing(DOING)?;
            // A record that cannot be read goes too: there is nothing of it in memory.
            if let Ok(sandbox) = serde_json::from_str::<Sandbox>(record)
                && let (Some(pool), Some(_)) = (sandbox.pool, &sandbox.failure)
            {
                self.forget_failed(pool, sandbox.ended_at.unwrap_or_default(), sandbox.id);
            }
        }
        // The log is in order of time but for leaps of the clock, so what is old stands among its first entries. The last
        // entry stays: positions go on from it when the database is opened again.
        let events = self
            .conn
            .prepare_cached(
                "DELETE FROM event WHERE seq IN (SELECT seq FROM (SELECT seq, at FROM event ORDER BY seq LIMIT ?2 * 2) \
                 WHERE at < ?1 AND seq < (SELECT MAX(seq) FROM event) LIMIT ?2)",
            )
            .and_then(|mut delete| delete.execute(params![before, limit]))
            .doing(DOING)?;
        Ok((ended.len() + events) as u64)
    }
}

fn claimed_at(sandbox: &Sandbox) -> Option<Timestamp> {
    sandbox.lease.as_ref().map(|lease| lease.claimed_at)
}

/// Where a sandbox stands in lists: when it was claimed, or made.
pub(super) fn sorted_at(sandbox: &Sandbox) -> Timestamp {
    claimed_at(sandbox).unwrap_or(sandbox.created_at)
}

fn lost_row(id: SandboxId) -> StoreError {
    StoreError::Corrupt { what: "sandbox", key: id.to_string(), detail: "its row has vanished".to_owned() }
}
