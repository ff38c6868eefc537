//! One server in memory, and requests to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::Body;
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use http::{HeaderMap, Method, Request, StatusCode};
use sandbank_api_native::{NativeSettings, router};
use sandbank_control::{Background, BuildSettings, Clock, Control, Entropy, SecretKey, Settings};
use sandbank_driver::{FakeDriver, FakeFaults};
use sandbank_http::{Gateway, GatewaySettings, by_host};
use sandbank_model::{QuotaLimits, Timestamp};
use sandbank_store::SqliteStore;
use serde_json::{Value, json};
use tower::ServiceExt;

pub const ADMIN: &str = "agbx_00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

#[derive(Debug)]
struct WallClock;
impl Clock for WallClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap())
    }
}

#[derive(Debug)]
struct Numbers(AtomicU64);
impl Entropy for Numbers {
    fn fill(&self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            piece.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..piece.len()]);
        }
    }
}

pub struct Server {
    pub router: Router,
    pub faults: FakeFaults,
    _background: Background,
    _dir: tempfile::TempDir,
}

/// An answer, read whole.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", String::from_utf8_lossy(&self.body)))
    }

    /// Lines of NDJSON.
    pub fn lines(&self) -> Vec<Value> {
        String::from_utf8_lossy(&self.body).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Asserts the status and gives the JSON.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", String::from_utf8_lossy(&self.body));
        if self.body.is_empty() { Value::Null } else { self.json() }
    }
}

impl Server {
    pub async fn new() -> Self {
        Self::with(QuotaLimits::default()).await
    }

    pub async fn with(default_quota: QuotaLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteStore::open(dir.path().join("sandbank.db")).unwrap());
        let driver = FakeDriver::new();
        let faults = driver.faults();
        let settings = Settings {
            image_aliases: BTreeMap::from([("base".to_owned(), "host".to_owned())]),
            default_driver: "fake".to_owned(),
            startup_timeout: Duration::from_secs(10),
            create_concurrency: 8,
            waiting_claims_max: 64,
            retention: Duration::from_secs(86_400),
            exec_output_max: 1 << 20,
            default_quota,
            default_image: "host".parse().unwrap(),
            pulls: sandbank_control::PullSettings::default(),
            scratch_dir: std::env::temp_dir(),
            builds: BuildSettings { contexts_dir: Some(dir.path().join("contexts")), ..BuildSettings::default() },
            network: sandbank_control::NetworkSettings::default(),
        };
        let numbers = Arc::new(Numbers(AtomicU64::new(1)));
        let key = SecretKey::new([7; 32]);
        let control = Control::new(store, vec![Arc::new(driver)], Arc::new(WallClock), numbers, settings, &key);
        control.recover().await.unwrap();
        control.ensure_admin_key(ADMIN.strip_prefix("agbx_").unwrap()).await.unwrap();
        let background = control.start();
        let settings = NativeSettings { render_metrics: Some(Arc::new(|| "up 1\n".to_owned())), ..NativeSettings::default() };
        let gateway = Gateway::new(control.clone(), GatewaySettings::default());
        let router = router(control, gateway.clone(), settings).layer(from_fn_with_state(gateway, by_host));
        Self { router, faults, _background: background, _dir: dir }
    }

    pub async fn raw(&self, request: Request<Body>) -> Response {
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        read(self.raw(request).await).await
    }

    pub async fn call(&self, key: &str, method: &str, path: &str, body: Option<Value>) -> Answer {
        let text = body.map(|body| body.to_string());
        self.call_text(key, method, path, text.unwrap_or_default()).await
    }

    pub async fn call_text(&self, key: &str, method: &str, path: &str, body: impl Into<Body>) -> Answer {
        let request =
            Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path).header("AGENTBOX-API-KEY", key);
        self.send(request.header("host", "sandbank.test:8080").body(body.into()).unwrap()).await
    }

    pub async fn get(&self, key: &str, path: &str) -> Answer {
        self.call(key, "GET", path, None).await
    }

    pub async fn post(&self, key: &str, path: &str, body: Value) -> Answer {
        self.call(key, "POST", path, Some(body)).await
    }

    pub async fn put(&self, key: &str, path: &str, body: Value) -> Answer {
        self.call(key, "PUT", path, Some(body)).await
    }

    pub async fn delete(&self, key: &str, path: &str) -> Answer {
        self.call(key, "DELETE", path, None).await
    }

    /// A key of this user in team `team`.
    pub async fn user(&self, user: &str) -> String {
        let made = self.post(ADMIN, "/v1/admin/api-keys", json!({"team": "team", "user": user})).await.expect(201);
        made["apiKey"].as_str().unwrap().to_owned()
    }

    /// A pool of the host image with `replicas` warm sandboxes.
    pub async fn pool(&self, key: &str, name: &str, replicas: u32) {
        self.post(key, "/v1/sandboxpools", json!({"name": name, "image": "host", "replicas": replicas})).await.expect(201);
        for _ in 0..500 {
            let pool = self.get(key, &format!("/v1/sandboxpools/{name}")).await.expect(200);
            if pool["template"]["status"]["idleReplicas"] == replicas {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the pool {name} never had {replicas} warm sandboxes");
    }

    /// A running sandbox without a pool.
    pub async fn sandbox(&self, key: &str) -> String {
        let made = self.post(key, "/v1/sandboxes", json!({"image": "host"})).await.expect(201);
        made["sandbox"]["sandboxId"].as_str().unwrap().to_owned()
    }

    /// Serves on a real port; the address.
    pub async fn listen(&self) -> std::net::SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = self.router.clone().into_make_service_with_connect_info::<std::net::SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, service).await });
        address
    }
}

pub async fn read(response: Response) -> Answer {
    let (parts, body) = response.into_parts();
    let body = tokio::time::timeout(Duration::from_secs(20), axum::body::to_bytes(body, 16 << 20)).await.unwrap().unwrap();
    Answer { status: parts.status, headers: parts.headers, body: body.to_vec() }
}
