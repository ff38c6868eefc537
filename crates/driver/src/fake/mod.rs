//! A driver that keeps its sandboxes in memory: for the tests of everything above the port.
//!
//! It keeps the contract of [`Driver`](crate::Driver) in full, speaks the real agent protocol over socket pairs, and does on
//! request what goes wrong in life (see [`FakeFaults`]).

mod agent;
mod faults;
mod files;
mod processes;
mod programs;
mod world;

pub use faults::{AgentFault, Calls, FakeFaults, Method, Responder};

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use sandbank_agent_protocol::{Connection, Metrics, Request};
use sandbank_model::{DriverHandle, Image, ImageConfig, Layer, NamedAddress, NetworkPlan, SandboxId};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::{
    Adopted, Capabilities, Capability, CreateRequest, Driver, DriverError, DriverEvent, ImportSource, NewLayer, NewLayers,
    Target, Traffic,
};
use files::FileTree;
use world::{FakeSandbox, World};

const EVENTS_KEPT: usize = 1024;

/// Locks; a test that panicked while holding the lock has failed already.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A driver in memory.
#[derive(Debug)]
pub struct FakeDriver {
    world: Arc<World>,
    capabilities: Capabilities,
    events: Mutex<Option<mpsc::Receiver<DriverEvent>>>,
}

impl Default for FakeDriver {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeDriver {
    /// One that can do everything, with no sandbox yet.
    #[must_use]
    pub fn new() -> Self {
        Self::over(Arc::default(), Capability::ALL)
    }

    /// The same driver, but it refuses these.
    #[must_use]
    pub fn without(mut self, missing: &[Capability]) -> Self {
        let left = Capability::ALL.into_iter().filter(|capability| self.capabilities.has(*capability));
        self.capabilities = Capabilities::of(left.filter(|capability| !missing.contains(capability)));
        self
    }

    fn over(world: Arc<World>, capabilities: impl IntoIterator<Item = Capability>) -> Self {
        let (sender, receiver) = mpsc::channel(EVENTS_KEPT);
        lock(&world.state).events = Some(sender);
        Self { world, capabilities: Capabilities::of(capabilities), events: Mutex::new(Some(receiver)) }
    }

    /// The test's hand on it.
    #[must_use]
    pub fn faults(&self) -> FakeFaults {
        FakeFaults { world: Arc::clone(&self.world) }
    }

    /// Counts the call, then misbehaves as told: waits, hangs, fails.
    async fn call(&self, method: Method) -> Result<(), DriverError> {
        lock(&self.world.state).calls.count(method);
        let delay = self.fault(method).delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        loop {
            let changed = self.world.faults_changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.fault(method).hang {
                break;
            }
            changed.await;
        }
        let mut state = lock(&self.world.state);
        let fault = state.faults.entry(method).or_default();
        if fault.failures > 0 {
            fault.failures -= 1;
            return Err(DriverError::Failed { step: format!("{method:?}").to_lowercase(), detail: "told to fail".to_owned() });
        }
        Ok(())
    }

    fn fault(&self, method: Method) -> faults::MethodFault {
        lock(&self.world.state).faults.get(&method).copied().unwrap_or_default()
    }

    fn sandbox(&self, target: Target<'_>) -> Result<Arc<FakeSandbox>, DriverError> {
        let found = lock(&self.world.state).sandboxes.get(&target.id).cloned();
        found.filter(|sandbox| sandbox.handle == *target.handle).ok_or(DriverError::Gone { id: target.id })
    }

    fn files_of(&self, image: &Image) -> Result<FileTree, DriverError> {
        let state = lock(&self.world.state);
        let mut files = FileTree::fresh();
        for layer in &image.layers {
            // A fake layer holds the whole tree of its sandbox, so that the uppermost is all there is to see.
            files = state.layers.get(&layer.id).cloned().ok_or_else(|| DriverError::ImageMissing {
                image: image.name.to_string(),
                detail: format!("layer {} is missing", layer.id),
            })?;
        }
        Ok(files)
    }

    fn keep_layer(&self, files: FileTree) -> Layer {
        let mut state = lock(&self.world.state);
        state.layers_made += 1;
        let layer = Layer { id: format!("fake-layer-{}", state.layers_made), size_bytes: files.size_bytes() };
        state.layers.insert(layer.id.clone(), files);
        layer
    }
}

/// Counts a create that is under way, also when it is cancelled.
struct Creating<'a>(&'a World);

impl<'a> Creating<'a> {
    fn begin(world: &'a World) -> Self {
        let mut state = lock(&world.state);
        state.creating += 1;
        state.creating_max = state.creating_max.max(state.creating);
        Self(world)
    }
}

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).creating -= 1;
    }
}

#[async_trait]
impl Driver for FakeDriver {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn create(&self, request: CreateRequest) -> Result<DriverHandle, DriverError> {
        let creating = Creating::begin(&self.world);
        self.call(Method::Create).await?;
        drop(creating);
        self.world.remove(request.id);
        let files = self.files_of(&request.image)?;
        let handle = DriverHandle(format!("fake:{}", request.id));
        let sandbox = FakeSandbox::new(handle.clone(), request.spec, files, request.network);
        lock(&self.world.state).sandboxes.insert(request.id, sandbox);
        Ok(handle)
    }

    async fn destroy(&self, id: SandboxId) -> Result<(), DriverError> {
        self.call(Method::Destroy).await?;
        self.world.remove(id);
        Ok(())
    }

    async fn pause(&self, target: Target<'_>) -> Result<(), DriverError> {
        self.capabilities.require(Capability::Pause)?;
        self.call(Method::Pause).await?;
        self.sandbox(target)?.freeze(true);
        Ok(())
    }

    async fn resume(&self, target: Target<'_>) -> Result<(), DriverError> {
        self.capabilities.require(Capability::Pause)?;
        self.call(Method::Resume).await?;
        self.sandbox(target)?.freeze(false);
        Ok(())
    }

    async fn open(&self, target: Target<'_>, request: &Request) -> Result<Connection, DriverError> {
        if let Some(capability) = capability_of(request) {
            self.capabilities.require(capability)?;
        }
        self.call(Method::Open).await?;
        let sandbox = self.sandbox(target)?;
        let (host, inside) = UnixStream::pair()
            .map_err(|error| DriverError::Failed { step: "make a socket pair".into(), detail: error.to_string() })?;
        tokio::spawn(agent::serve(Arc::clone(&self.world), target.id, sandbox, inside));
        Ok(Connection::begin(host, request).await?)
    }

    async fn metrics(&self, target: Target<'_>) -> Result<Metrics, DriverError> {
        self.capabilities.require(Capability::Metrics)?;
        self.call(Method::Metrics).await?;
        Ok(agent::metrics(&*self.sandbox(target)?))
    }

    async fn adopt(&self, known: Vec<(SandboxId, Option<DriverHandle>)>) -> Result<Adopted, DriverError> {
        self.call(Method::Adopt).await?;
        let existing = lock(&self.world.state).sandboxes.clone();
        let mut adopted = Adopted::default();
        for (id, handle) in &known {
            match existing.get(id) {
                Some(sandbox) if handle.as_ref().is_none_or(|handle| *handle == sandbox.handle) => {
                    adopted.alive.insert(*id, sandbox.is_frozen());
                }
                _ => {
                    adopted.gone.insert(*id, "its processes are gone".to_owned());
                }
            }
        }
        for id in existing.into_keys().filter(|id| !adopted.alive.contains_key(id)) {
            self.world.remove(id);
            if !adopted.gone.contains_key(&id) {
                adopted.orphans.push(id);
            }
        }
        Ok(adopted)
    }

    async fn set_network(&self, target: Target<'_>, plan: NetworkPlan, named: Vec<NamedAddress>) -> Result<(), DriverError> {
        self.capabilities.require(Capability::Network)?;
        self.call(Method::SetNetwork).await?;
        let sandbox = self.sandbox(target)?;
        *lock(&sandbox.network) = plan;
        *lock(&sandbox.opened) = named;
        Ok(())
    }

    async fn open_names(&self, id: SandboxId, addresses: Vec<NamedAddress>) -> Result<(), DriverError> {
        self.capabilities.require(Capability::Network)?;
        let sandbox = lock(&self.world.state).sandboxes.get(&id).cloned().ok_or(DriverError::Gone { id })?;
        lock(&sandbox.opened).extend(addresses);
        Ok(())
    }

    async fn traffic(&self, target: Target<'_>) -> Result<Traffic, DriverError> {
        self.capabilities.require(Capability::Network)?;
        Ok(*lock(&self.sandbox(target)?.traffic))
    }

    fn events(&self) -> Option<mpsc::Receiver<DriverEvent>> {
        lock(&self.events).take()
    }

    fn builtin_image(&self) -> Option<NewLayers> {
        Some(NewLayers { layers: Vec::new(), on_host: true, config: ImageConfig::default() })
    }

    async fn find_layer(&self, diff_id: &str) -> Result<Option<Layer>, DriverError> {
        let state = lock(&self.world.state);
        let found = state.layers.get(diff_id);
        Ok(found.map(|files| Layer { id: diff_id.to_owned(), size_bytes: files.size_bytes() }))
    }

    /// Keeps the archive as it is, and an empty tree for it: what an archive holds, only a real driver can show.
    async fn add_layer(&self, layer: NewLayer) -> Result<Layer, DriverError> {
        self.capabilities.require(Capability::ImportImage)?;
        self.call(Method::AddLayer).await?;
        let NewLayer { diff_id, mut archive } = layer;
        let read = tokio::task::spawn_blocking(move || {
            let mut content = Vec::new();
            archive.read_to_end(&mut content).map(|_| content)
        });
        let broken = |error: String| DriverError::Invalid { what: format!("the layer cannot be read: {error}") };
        let content = read.await.map_err(|error| broken(error.to_string()))?.map_err(|error| broken(error.to_string()))?;
        let files = FileTree::fresh();
        let kept = Layer { id: diff_id.clone(), size_bytes: files.size_bytes() };
        let mut state = lock(&self.world.state);
        state.archives.insert(diff_id.clone(), content);
        state.layers.insert(diff_id, files);
        Ok(kept)
    }

    /// The archive that a layer came from; of one that came from elsewhere, an empty one.
    fn read_layer(&self, layer: &Layer) -> Result<Box<dyn std::io::Read + Send>, DriverError> {
        const EMPTY_TAR: [u8; 1024] = [0; 1024];
        let state = lock(&self.world.state);
        if !state.layers.contains_key(&layer.id) {
            let (image, detail) = (format!("layer {}", layer.id), "it was removed".to_owned());
            return Err(DriverError::ImageMissing { image, detail });
        }
        let content = state.archives.get(&layer.id).cloned().unwrap_or_else(|| EMPTY_TAR.to_vec());
        Ok(Box::new(std::io::Cursor::new(content)))
    }

    async fn import_image(&self, source: ImportSource) -> Result<NewLayers, DriverError> {
        self.capabilities.require(Capability::ImportImage)?;
        self.call(Method::Import).await?;
        let (ImportSource::Archive(path) | ImportSource::Directory(path)) = &source;
        if !path.exists() {
            return Err(DriverError::Invalid { what: format!("{} does not exist", path.display()) });
        }
        Ok(NewLayers { layers: vec![self.keep_layer(FileTree::fresh())], on_host: false, config: ImageConfig::default() })
    }

    async fn commit(&self, target: Target<'_>, image: &Image) -> Result<NewLayers, DriverError> {
        self.capabilities.require(Capability::Commit)?;
        self.call(Method::Commit).await?;
        let files = lock(&self.sandbox(target)?.files).clone();
        let mut layers = image.layers.clone();
        layers.push(self.keep_layer(files));
        Ok(NewLayers { layers, on_host: image.on_host, config: image.config.clone() })
    }

    async fn list_layers(&self) -> Result<Vec<Layer>, DriverError> {
        let state = lock(&self.world.state);
        let layer = |(id, files): (&String, &FileTree)| Layer { id: id.clone(), size_bytes: files.size_bytes() };
        Ok(state.layers.iter().map(layer).collect())
    }

    async fn retain_layers(&self, used: Vec<String>) -> Result<(), DriverError> {
        self.call(Method::Retain).await?;
        let mut state = lock(&self.world.state);
        state.layers.retain(|id, _| used.contains(id));
        state.archives.retain(|id, _| used.contains(id));
        Ok(())
    }
}

/// What a driver must be able to do for this operation.
fn capability_of(request: &Request) -> Option<Capability> {
    match request {
        Request::Ping | Request::Shutdown => None,
        Request::Start(_)
        | Request::Attach(_)
        | Request::Signal(_)
        | Request::Resize(_)
        | Request::WriteStdin(_)
        | Request::CloseStdin(_)
        | Request::ListProcesses => Some(Capability::Exec),
        Request::Stat(_)
        | Request::List(_)
        | Request::Read(_)
        | Request::Write(_)
        | Request::Move(_)
        | Request::Remove(_)
        | Request::MakeDir(_)
        | Request::Watch(_) => Some(Capability::Files),
        Request::Dial { .. } => Some(Capability::Ports),
        Request::Metrics => Some(Capability::Metrics),
    }
}
