//! Which adapter stands behind which port.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use metrics_exporter_prometheus::PrometheusHandle;
use sandbank_api_native::NativeSettings;
use sandbank_control::{Background, Control, SecretKey, Settings};
use sandbank_driver::Driver;
use sandbank_driver_linux::{LinuxConfig, LinuxDriver};
use sandbank_http::{Gateway, GatewaySettings, by_host};
use sandbank_store::{SqliteStore, Store};

use super::egress;
use super::system::{SystemClock, SystemEntropy};
use super::telemetry;
use crate::config::Config;
use crate::data_dir::DataDir;
use crate::failure::{Failure, Result};

/// How often histograms are folded: between two, they keep every sample.
const UPKEEP: Duration = Duration::from_secs(5);

/// A started server without its listener.
pub(crate) struct Parts {
    /// All routes.
    pub(crate) router: Router,
    /// Reconcilers and timers.
    pub(crate) background: Background,
    /// To be closed at the end.
    pub(crate) store: Arc<dyn Store>,
    /// As well.
    pub(crate) driver: Arc<dyn Driver>,
}

/// Opens the store, starts the driver, takes over what an earlier server left, and starts the background work.
pub(crate) async fn start(config: &Config, data_dir: &DataDir, admin_key: &str, secret_key: &SecretKey) -> Result<Parts> {
    let metrics = telemetry::metrics()?;
    let database = data_dir.path().join("sandbank.db");
    let store: Arc<dyn Store> = Arc::new(open_store(database).await?);
    let linux = LinuxConfig {
        disk_watch_period: config.disk_watch_period,
        network: config.network,
        network_plan: config.settings.network.default_plan(),
        ..LinuxConfig::new(data_dir.path())
    };
    let driver = LinuxDriver::start(linux).await.map_err(|error| {
        Failure::new(format!("the Linux driver cannot start: {error}; `sandbank doctor` shows what this machine lacks"))
    })?;
    let driver: Arc<dyn Driver> = Arc::new(driver);
    let drivers = vec![Arc::clone(&driver)];
    let (clock, entropy) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
    let mut settings = Settings { scratch_dir: data_dir.scratch()?, ..config.settings.clone() };
    settings.builds.contexts_dir = Some(data_dir.path().join("contexts"));
    let authority = egress::authority(data_dir)?;
    settings.network.authority_pem = Some(Arc::from(authority.certificate_pem()));
    let control = Control::new(Arc::clone(&store), drivers, clock, entropy, settings, secret_key);
    let failed = |doing: &str, error: sandbank_control::Error| Failure::new(format!("cannot {doing}: {error}"));
    control.ensure_admin_key(admin_key).await.map_err(|error| failed("set the admin key", error))?;
    control.recover().await.map_err(|error| failed("take over what an earlier server left", error))?;
    let changes = control.network_changes();
    if let Some(services) = egress::start(&control, Arc::clone(&driver), authority, &config.outbound).await? {
        tokio::spawn(egress::follow(services, changes));
    }
    let background = control.start();
    keep_up(metrics.clone());
    let router = routes(config, control, metrics);
    Ok(Parts { router, background, store, driver })
}

/// Opening reads the database and may migrate it: not on a thread that serves.
async fn open_store(database: PathBuf) -> Result<SqliteStore> {
    match tokio::task::spawn_blocking(move || SqliteStore::open(database)).await {
        Ok(opened) => opened.map_err(|error| Failure::new(error.to_string())),
        Err(error) => Err(Failure::new(format!("cannot open the database: {error}"))),
    }
}

/// The routes of every dialect.
fn routes(config: &Config, control: Control, metrics: PrometheusHandle) -> Router {
    let settings = NativeSettings {
        cluster_id: config.cluster.id.clone(),
        cluster_name: config.cluster.name.clone(),
        server_version: env!("CARGO_PKG_VERSION").to_owned(),
        public_url: config.public_url.clone(),
        render_metrics: Some(Arc::new(move || metrics.render())),
        ..NativeSettings::default()
    };
    let https = config.public_url.as_ref().is_some_and(|url| url.starts_with("https://"));
    let ports = GatewaySettings { domains: config.port_domains.clone(), https, ..GatewaySettings::default() };
    let gateway = Gateway::new(control.clone(), ports);
    let routes = sandbank_api_native::router(control, gateway.clone(), settings);
    // Around everything else: what a port's host name asks for never reaches the API.
    routes.layer(from_fn_with_state(gateway, by_host))
}

/// Folds histograms from time to time: otherwise a server whose metrics nobody reads would keep every sample.
fn keep_up(metrics: PrometheusHandle) {
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(UPKEEP);
        loop {
            ticks.tick().await;
            metrics.run_upkeep();
        }
    });
}
