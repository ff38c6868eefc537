//! [`Control`]: the use cases.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sandbank_agent_protocol as agent;
use sandbank_driver::Driver;
use sandbank_model::*;
use sandbank_store::Store;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::types::*;
use crate::{Result};

/// The use cases. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    #[allow(dead_code)]
    inner: Arc<()>,
}

/// A stream of a process: events out, input in. Dropping it detaches (or kills, if the exec said so).
#[derive(Debug)]
pub struct ProcessStream {
    /// What the process does.
    pub events: ProcessEvents,
    /// What is sent to it.
    pub input: ProcessInput,
}
/// The receiving side.
#[derive(Debug)]
pub struct ProcessEvents(());
/// The sending side.
#[derive(Debug)]
pub struct ProcessInput(());
impl ProcessEvents {
    /// The next event; `None` after the last one.
    pub async fn next(&mut self) -> Result<Option<ProcessEvent>> { unimplemented!() }
}
impl ProcessInput {
    /// Writes to stdin or the terminal; waits while the process does not read.
    pub async fn write(&mut self, _data: Bytes) -> Result<()> { unimplemented!() }
    /// Closes stdin.
    pub async fn close(&mut self) -> Result<()> { unimplemented!() }
    /// Signals the process or its group.
    pub async fn signal(&mut self, _signal: i32, _group: bool) -> Result<()> { unimplemented!() }
    /// Resizes the terminal.
    pub async fn resize(&mut self, _size: agent::PtySize) -> Result<()> { unimplemented!() }
}
/// A file being read.
#[derive(Debug)]
pub struct FileReader {
    /// Its metadata.
    pub stat: agent::FileStat,
}
impl FileReader {
    /// The next piece; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>> { unimplemented!() }
}
/// A file being written. Dropping it before `finish` leaves the old file.
#[derive(Debug)]
pub struct FileWriter(());
impl FileWriter {
    /// Adds a piece.
    pub async fn write(&mut self, _data: Bytes) -> Result<()> { unimplemented!() }
    /// Completes the file.
    pub async fn finish(self) -> Result<agent::FileStat> { unimplemented!() }
}
/// A watch on a directory.
#[derive(Debug)]
pub struct Watch(());
impl Watch {
    /// The next change; `None` when the watch ended.
    pub async fn next(&mut self) -> Result<Option<agent::WatchEvent>> { unimplemented!() }
}
/// A byte stream to a port inside.
pub struct PortStream(());
impl PortStream {
    /// The two halves.
    #[must_use]
    pub fn into_split(self) -> (Box<dyn AsyncRead + Send + Sync + Unpin>, Box<dyn AsyncWrite + Send + Sync + Unpin>) { unimplemented!() }
}
/// The background work of a [`Control`].
#[derive(Debug)]
pub struct Background(());
impl Background {
    /// Ends it and waits, at most `grace`.
    pub async fn shutdown(self, _grace: Duration) { unimplemented!() }
}

#[allow(clippy::unused_async, unused_variables, missing_docs)]
impl Control {
    pub fn new(store: Arc<dyn Store>, drivers: Vec<Arc<dyn Driver>>, clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>, settings: Settings) -> Self { unimplemented!() }
    /// Takes over what an earlier server left. Must end before anything is served.
    pub async fn recover(&self) -> Result<Recovery> { unimplemented!() }
    /// Starts reconcilers, timers and driver-event handling. Needs a tokio runtime.
    pub fn start(&self) -> Background { unimplemented!() }
    pub fn now(&self) -> Timestamp { unimplemented!() }
    /// A fresh id for things that dialects name (requests, tokens): UUIDv7.
    pub fn fresh_uuid(&self) -> uuid::Uuid { unimplemented!() }
    /// 32 random bytes as 64 hexadecimal characters.
    pub fn fresh_secret(&self) -> String { unimplemented!() }

    // -- who is asking
    /// Any `<prefix>_<64 hex>` or bare 64 hex. The static admin key is a key record made at start by `ensure_admin_key`.
    pub async fn authenticate(&self, secret: &str) -> Result<Principal> { unimplemented!() }
    /// `principal` acting for another team and user; admins only, others get themselves (native.md §3).
    pub async fn impersonate(&self, principal: Principal, team: &str, user: &str) -> Result<Principal> { unimplemented!() }
    /// Makes the installation's admin key known (tenant `default`, user and team `admin`); older static admin keys stop working.
    pub async fn ensure_admin_key(&self, secret: &str) -> Result<()> { unimplemented!() }
    pub async fn key_create(&self, caller: &Caller, request: KeyRequest) -> Result<NewKey> { unimplemented!() }
    pub async fn key_list(&self, caller: &Caller) -> Result<Vec<ApiKey>> { unimplemented!() }
    /// By id. Another tenant's key: Forbidden (native.md §6). Admins may revoke any.
    pub async fn key_revoke(&self, caller: &Caller, id: ApiKeyId) -> Result<ApiKey> { unimplemented!() }
    pub async fn admin_key_create(&self, caller: &Caller, request: AdminKeyRequest) -> Result<NewKey> { unimplemented!() }
    /// `created` false: this hash was known already.
    pub async fn admin_key_import(&self, caller: &Caller, request: AdminKeyRequest) -> Result<(ApiKey, bool)> { unimplemented!() }
    pub async fn admin_key_list(&self, caller: &Caller) -> Result<Vec<(ApiKey, OwnerView)>> { unimplemented!() }
    pub async fn admin_tenant_list(&self, caller: &Caller) -> Result<Vec<Tenant>> { unimplemented!() }
    pub async fn admin_set_quota(&self, caller: &Caller, tenant: &str, limits: QuotaLimits) -> Result<Tenant> { unimplemented!() }
    pub async fn quota(&self, caller: &Caller) -> Result<QuotaView> { unimplemented!() }
    pub async fn owner(&self, tenant: TenantId) -> Result<OwnerView> { unimplemented!() }

    // -- templates
    pub async fn template_create(&self, caller: &Caller, request: TemplateRequest) -> Result<TemplateView> { unimplemented!() }
    /// Writes a newer version. Of a global template, all pools made from it follow (native.md §6, §9).
    pub async fn template_update(&self, caller: &Caller, request: TemplateRequest) -> Result<TemplateView> { unimplemented!() }
    pub async fn template_get(&self, caller: &Caller, name: &PoolName) -> Result<TemplateView> { unimplemented!() }
    pub async fn template_list(&self, caller: &Caller) -> Result<Vec<TemplateView>> { unimplemented!() }
    pub async fn template_delete(&self, caller: &Caller, name: &PoolName, global: bool) -> Result<()> { unimplemented!() }

    // -- pools
    pub async fn pool_create(&self, caller: &Caller, request: PoolRequest) -> Result<PoolView> { unimplemented!() }
    pub async fn pool_get(&self, caller: &Caller, name: &PoolName) -> Result<PoolView> { unimplemented!() }
    pub async fn pool_list(&self, caller: &Caller, offset: u64, limit: u32) -> Result<Listing<PoolView>> { unimplemented!() }
    pub async fn pool_update(&self, caller: &Caller, name: &PoolName, change: PoolChange) -> Result<PoolView> { unimplemented!() }
    pub async fn pool_delete(&self, caller: &Caller, name: &PoolName) -> Result<PoolView> { unimplemented!() }
    pub async fn pool_sync_template(&self, caller: &Caller, name: &PoolName) -> Result<PoolView> { unimplemented!() }
    pub async fn pool_sync_preview(&self, caller: &Caller, name: &PoolName) -> Result<SyncPreview> { unimplemented!() }
    pub async fn admin_pool_statistics(&self, caller: &Caller) -> Result<PoolStatistics> { unimplemented!() }

    // -- sandboxes
    pub async fn claim(&self, caller: &Caller, claim: Claim) -> Result<SandboxView> { unimplemented!() }
    pub async fn create(&self, caller: &Caller, request: CreateSandbox) -> Result<SandboxView> { unimplemented!() }
    /// Also ended ones.
    pub async fn get(&self, caller: &Caller, id: Id) -> Result<SandboxView> { unimplemented!() }
    pub async fn list(&self, caller: &Caller, query: SandboxQuery, offset: u64, limit: u32) -> Result<Listing<SandboxView>> { unimplemented!() }
    pub async fn statistics(&self, caller: &Caller) -> Result<SandboxStatistics> { unimplemented!() }
    pub async fn admin_statistics(&self, caller: &Caller) -> Result<SandboxStatistics> { unimplemented!() }
    /// Gives it back: answered when the record says `Stopping`; the destruction follows. Ended ones: NotFound.
    pub async fn release(&self, caller: &Caller, id: Id) -> Result<SandboxView> { unimplemented!() }
    pub async fn pause(&self, caller: &Caller, id: Id) -> Result<SandboxView> { unimplemented!() }
    pub async fn resume(&self, caller: &Caller, id: Id) -> Result<SandboxView> { unimplemented!() }
    pub async fn renew(&self, caller: &Caller, id: Id, change: LeaseChange) -> Result<SandboxView> { unimplemented!() }
    /// Counts as activity (the data plane calls it).
    pub async fn touch(&self, caller: &Caller, id: Id) -> Result<()> { unimplemented!() }
    pub async fn commit(&self, caller: &Caller, id: Id, name: ImageName) -> Result<Image> { unimplemented!() }
    pub async fn metrics(&self, caller: &Caller, id: Id) -> Result<agent::Metrics> { unimplemented!() }
    pub async fn readiness(&self, caller: &Caller, id: Id) -> Result<Vec<Readiness>> { unimplemented!() }
    pub async fn logs(&self, caller: &Caller, id: Id, query: LogQuery) -> Result<Logs> { unimplemented!() }
    /// The command's output from the start of what is kept, then as it comes. Ends when the sandbox does.
    pub async fn logs_follow(&self, caller: &Caller, id: Id) -> Result<ProcessStream> { unimplemented!() }
    pub async fn events(&self, caller: &Caller, sandbox: Option<Id>, pool: Option<PoolName>, after: Option<EventSeq>, newest_first: bool, limit: u32) -> Result<Vec<Event>> { unimplemented!() }

    // -- inside (all count as activity; all refuse with `State` unless the sandbox runs and its lease lives)
    pub async fn exec(&self, caller: &Caller, id: Id, exec: Exec) -> Result<ProcessStream> { unimplemented!() }
    pub async fn exec_collect(&self, caller: &Caller, id: Id, exec: Exec) -> Result<ExecOutput> { unimplemented!() }
    pub async fn process_attach(&self, caller: &Caller, id: Id, attach: agent::AttachProcess) -> Result<ProcessStream> { unimplemented!() }
    pub async fn process_list(&self, caller: &Caller, id: Id) -> Result<Vec<agent::ProcessInfo>> { unimplemented!() }
    pub async fn process_signal(&self, caller: &Caller, id: Id, signal: agent::SendSignal) -> Result<()> { unimplemented!() }
    pub async fn process_resize(&self, caller: &Caller, id: Id, resize: agent::ResizePty) -> Result<()> { unimplemented!() }
    pub async fn process_write(&self, caller: &Caller, id: Id, process: agent::ProcessSelector, data: Bytes) -> Result<()> { unimplemented!() }
    pub async fn process_close_stdin(&self, caller: &Caller, id: Id, process: agent::ProcessSelector) -> Result<()> { unimplemented!() }
    pub async fn file_stat(&self, caller: &Caller, id: Id, stat: agent::StatFile) -> Result<agent::FileStat> { unimplemented!() }
    pub async fn file_list(&self, caller: &Caller, id: Id, list: agent::ListFiles) -> Result<Vec<agent::FileStat>> { unimplemented!() }
    pub async fn file_read(&self, caller: &Caller, id: Id, read: agent::ReadFile) -> Result<FileReader> { unimplemented!() }
    pub async fn file_write(&self, caller: &Caller, id: Id, write: agent::WriteFile) -> Result<FileWriter> { unimplemented!() }
    pub async fn file_move(&self, caller: &Caller, id: Id, mv: agent::MoveFile) -> Result<agent::FileStat> { unimplemented!() }
    pub async fn file_remove(&self, caller: &Caller, id: Id, remove: agent::RemoveFile) -> Result<()> { unimplemented!() }
    pub async fn file_mkdir(&self, caller: &Caller, id: Id, mkdir: agent::MakeDir) -> Result<agent::FileStat> { unimplemented!() }
    pub async fn file_watch(&self, caller: &Caller, id: Id, watch: agent::WatchFiles) -> Result<Watch> { unimplemented!() }
    pub async fn port_dial(&self, caller: &Caller, id: Id, port: u16) -> Result<PortStream> { unimplemented!() }

    // -- images
    /// From the server's own file system: admins only.
    pub async fn image_import(&self, caller: &Caller, name: ImageName, path: PathBuf, global: bool) -> Result<Image> { unimplemented!() }
    pub async fn image_list(&self, caller: &Caller) -> Result<Vec<Image>> { unimplemented!() }
    pub async fn image_get(&self, caller: &Caller, name: &ImageName) -> Result<Image> { unimplemented!() }
    /// Refused while a template, pool or live sandbox uses it.
    pub async fn image_delete(&self, caller: &Caller, name: &ImageName) -> Result<()> { unimplemented!() }

    /// What `/health` tells: the store answers, the drivers by name with what they can do.
    pub async fn health(&self) -> Result<Vec<(String, Vec<&'static str>)>> { unimplemented!() }
    /// Gauges for `/metrics`: sets pool depth and sandbox counts in the `metrics` recorder.
    pub async fn publish_gauges(&self) { unimplemented!() }
}
