//! Sandboxes without a pool.

use std::sync::Arc;

use sandbank_model::{PoolPolicies, SandboxSpec};

use crate::control::{Control, Inner};
use crate::limits::{check_lease, check_spec};
use crate::make::{LeaseTerms, Order};
use crate::snapshots::no_snapshot;
use crate::types::{Caller, CreateSandbox, CreateSource, OwnerView, SandboxView, SpecChange};
use crate::{Error, Result};

impl Control {
    /// Makes a sandbox for the caller and returns when it runs.
    ///
    /// A future that is dropped before it is ready leaves no claimed sandbox behind.
    pub async fn create(&self, caller: &Caller, request: CreateSandbox) -> Result<SandboxView> {
        let inner = &self.inner;
        check_lease(&request.lease)?;
        let driver = request.driver.unwrap_or_else(|| inner.settings.default_driver.clone());
        inner.driver(&driver)?;
        let (spec, policies, template) = inner.spec_of(caller, request.source).await?;
        let spec = changed(spec, request.changes);
        check_spec(&spec)?;
        let tenant = caller.principal.tenant;
        let network = inner.lease_network(tenant, request.lease.network.as_ref())?;
        inner.check_network(&driver, tenant, network.as_ref().or(spec.network.as_ref())).await?;
        let terms = LeaseTerms::new(caller, request.lease, &policies).with_network(network);
        inner.check_expiry_action(&driver, terms.on_expiry())?;
        let layers = Arc::clone(&inner.layers_in_use).read_owned().await;
        let image = inner.obtain_image(&spec.image, tenant, request.image_credentials).await?;
        let order = Order { tenant, spec, image, driver, pool: None, template, actor: caller.actor() };
        let held = inner.make_for_holder(order, terms, None, layers).await?;
        Ok(SandboxView { sandbox: Arc::new(held.accept()), owner: OwnerView::from(&caller.principal) })
    }
}

type Source = (SandboxSpec, PoolPolicies, Option<sandbank_model::TemplateRef>);

impl Inner {
    async fn spec_of(&self, caller: &Caller, source: CreateSource) -> Result<Source> {
        Ok(match source {
            CreateSource::Image(image) => (SandboxSpec::of_image(image), PoolPolicies::default(), None),
            CreateSource::Snapshot(id_or_name) => {
                let found = self.find_snapshot(caller.principal.tenant, &id_or_name).await?;
                let snapshot = found.ok_or_else(|| no_snapshot(&id_or_name))?;
                (snapshot.spec, PoolPolicies::default(), None)
            }
            CreateSource::Spec(spec) => (*spec, PoolPolicies::default(), None),
            CreateSource::Template(name) => {
                let found = self.visible_template(caller, &name).await?;
                let template = found.ok_or_else(|| Error::not_found(format!("template {:?} not found", name.as_str())))?;
                let policies = PoolPolicies { idle_timeout: template.spec.idle_timeout, ..PoolPolicies::default() };
                let reference = template.reference();
                (template.spec.sandbox, policies, Some(reference))
            }
        })
    }
}

fn changed(mut spec: SandboxSpec, change: SpecChange) -> SandboxSpec {
    let SpecChange { cpu_millis, memory_bytes, disk_bytes, pids, user, workdir, command } = change;
    let resources = &mut spec.resources;
    resources.cpu_millis = cpu_millis.unwrap_or(resources.cpu_millis);
    resources.memory_bytes = memory_bytes.unwrap_or(resources.memory_bytes);
    resources.disk_bytes = disk_bytes.unwrap_or(resources.disk_bytes);
    resources.pids = pids.unwrap_or(resources.pids);
    spec.user = user.or(spec.user);
    spec.workdir = workdir.or(spec.workdir);
    spec.command = command.unwrap_or(spec.command);
    spec
}
