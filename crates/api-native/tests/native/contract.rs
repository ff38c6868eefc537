//! Each endpoint's success, as native.md §6 to §10 and the seed show it.

use serde_json::{Value, json};

use crate::support::{ADMIN, Server};

const POD: &str =
    "spec:\n  containers:\n    - name: main\n      image: host\n      resources: {limits: {cpu: '1', memory: 1Gi}}\n";

fn has(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(!value[*key].is_null(), "{key} is missing in {value}");
    }
}

#[tokio::test]
async fn a_pool_has_the_seeds_shape_and_sync_leaves_replicas_alone() {
    let server = Server::new().await;
    let template = json!({"name": "py", "spec": {"version": "1.0.0", "template": POD}});
    let made = server.post(ADMIN, "/v1/admin/sandbox-templates", template).await.expect(201);
    assert_eq!(made["template"]["version"], "1.0.0");
    let user = server.user("user").await;
    let pool = server
        .post(
            &user,
            "/v1/sandboxpools",
            json!({"name": "my-pool", "templateName": "py", "replicas": 2, "overrides": {"resourceMultiplier": 2}}),
        )
        .await;
    let pool = pool.expect(201)["template"].clone();
    has(
        &pool,
        &["name", "namespace", "cpu", "memory", "team", "user", "spec", "status", "createdAt", "templateVersion", "specYaml"],
    );
    assert_eq!(
        (pool["namespace"].as_str(), pool["memory"].as_str(), pool["cpu"].as_str()),
        (Some("t-team-user"), Some("2Gi"), Some("2"))
    );
    assert_eq!(pool["spec"]["replicas"], 2);
    for key in
        ["idleReplicas", "unavailableIdleReplicas", "runningReplicas", "startingReplicas", "stoppingReplicas", "failedReplicas"]
    {
        assert!(pool["status"][key].is_u64(), "{key}");
    }
    let synced = server.call(&user, "POST", "/v1/sandboxpools/local::my-pool/sync-template", None).await.expect(200);
    assert_eq!(synced["template"]["spec"]["replicas"], 2);
    let preview = server.call(&user, "POST", "/v1/sandboxpools/my-pool/sync-template/preview", None).await.expect(200);
    assert_eq!(preview["version"], "1.0.0");
    assert!(preview["specYaml"].as_str().unwrap().contains("replicas: 2"));
    server.call(&user, "POST", "/v1/sandboxpools/none/sync-template", None).await.expect(404);
    let changed = server.put(&user, "/v1/sandboxpools/my-pool", json!({"replicas": 1})).await.expect(200);
    assert_eq!(changed["template"]["spec"]["replicas"], 1);
    server.put(&user, "/v1/sandboxpools/my-pool", json!({})).await.expect(400);
    server.post(&user, "/v1/sandboxpools", json!({"name": "my-pool", "image": "host"})).await.expect(409);
    let list = server.get(&user, "/v1/sandboxpools").await.expect(200);
    assert_eq!((list["total"].as_u64(), list["limit"].as_u64(), list["offset"].as_u64()), (Some(1), Some(20), Some(0)));
    let gone = server.delete(&user, "/v1/sandboxpools/my-pool").await.expect(202);
    assert_eq!(gone, json!({"name": "my-pool", "namespace": "t-team-user", "status": "Terminating"}));
}

#[tokio::test]
async fn a_pool_of_an_image_cannot_be_synced_and_a_missing_template_lists_those_there_are() {
    let server = Server::new().await;
    server.post(ADMIN, "/v1/sandboxpools", json!({"name": "own", "image": "host", "replicas": 0})).await.expect(201);
    server.call(ADMIN, "POST", "/v1/sandboxpools/own/sync-template", None).await.expect(400);
    let error = server.post(ADMIN, "/v1/sandboxpools", json!({"name": "p", "templateName": "none"})).await.expect(400);
    assert!(error["detail"]["availableTemplates"].is_array(), "{error}");
}

#[tokio::test]
async fn a_sandbox_is_claimed_used_and_given_back() {
    let server = Server::new().await;
    let key = server.user("ann").await;
    server.pool(&key, "py", 1).await;
    let claim = json!({"poolName": "local::py", "metadata": {"job": "7"}, "idleTimeout": "30m", "unknownField": 1});
    let sandbox = server.post(&key, "/v1/sandboxes", claim).await.expect(201)["sandbox"].clone();
    has(
        &sandbox,
        &["sandboxId", "namespace", "poolName", "podName", "status", "claimedAt", "startedAt", "cpu", "memory", "team", "user"],
    );
    assert_eq!((sandbox["status"].as_str(), sandbox["state"].as_str()), (Some("Running"), Some("running")));
    assert_eq!((sandbox["idleTimeoutSeconds"].as_u64(), sandbox["metadata"]["job"].as_str()), (Some(1800), Some("7")));
    let id = sandbox["sandboxId"].as_str().unwrap();
    assert!(id.starts_with("local."));
    let path = format!("/v1/sandboxes/{id}");
    assert_eq!(server.get(&key, &path).await.expect(200)["sandbox"]["sandboxId"], id);
    let bare = id.strip_prefix("local.").unwrap();
    assert_eq!(server.get(&key, &format!("/v1/sandboxes/{bare}")).await.expect(200)["sandbox"]["sandboxId"], bare);
    for (query, total) in [
        ("", 1),
        ("?status=Running", 1),
        ("?status=Completed,Released", 0),
        ("?poolName=py", 1),
        ("?metadata.job=7", 1),
        ("?metadata.job=8", 0),
    ] {
        assert_eq!(server.get(&key, &format!("/v1/sandboxes{query}")).await.expect(200)["total"], total, "{query}");
    }
    server.put(&key, &format!("{path}/timeout"), json!({"timeout": "0"})).await.expect(204);
    let paused = server.call(&key, "POST", &format!("{path}/pause"), None).await.expect(200);
    assert_eq!(paused["sandbox"]["status"], "Paused");
    server.post(&key, &format!("{path}/exec"), json!({"command": "true"})).await.expect(400);
    server.post(&key, &format!("{path}/exec/stream"), json!({"command": "true"})).await.expect(409);
    server.call(&key, "POST", &format!("{path}/exec-token"), None).await.expect(400);
    server.call(&key, "POST", &format!("{path}/resume"), None).await.expect(200);
    let renewed = server.post(&key, &format!("{path}/renew"), json!({"timeout": "1h", "onExpiry": "pause"})).await.expect(200);
    has(&renewed["sandbox"], &["expiresAt"]);
    let deleted = server.delete(&key, &path).await.expect(202);
    has(&deleted, &["sandboxId", "namespace", "poolName", "podName", "status"]);
    let events = server.get(&key, &format!("{path}/events")).await.expect(200);
    assert!(events["items"].as_array().unwrap().iter().any(|event| event["type"] == "claimed"), "{events}");
}

#[tokio::test]
async fn an_empty_pool_answers_429_with_its_status() {
    let server = Server::new().await;
    server.post(ADMIN, "/v1/sandboxpools", json!({"name": "none", "image": "host", "replicas": 0})).await.expect(201);
    let answer = server.post(ADMIN, "/v1/sandboxes", json!({"poolName": "none", "whenEmpty": "refuse"})).await;
    assert!(answer.headers.contains_key("retry-after"));
    let error = answer.expect(429);
    has(&error["detail"], &["idle", "running", "starting", "stopping", "failed", "hint"]);
    server.post(ADMIN, "/v1/sandboxes", json!({"poolName": "none", "startupTimeout": "50ms"})).await.expect(429);
}

#[tokio::test]
async fn a_quota_is_shown_and_enforced() {
    let server = Server::new().await;
    let key = server.user("ann").await;
    server.put(ADMIN, "/v1/admin/tenants/t-team-ann/quota", json!({"sandboxes": 1, "cpu": "4"})).await.expect(200);
    server.sandbox(&key).await;
    let error = server.post(&key, "/v1/sandboxes", json!({"image": "host"})).await.expect(429);
    assert_eq!(error["detail"]["errCode"], "QUOTA_EXCEEDED");
    let quota = server.get(&key, "/v1/quotas").await.expect(200)["items"][0].clone();
    assert_eq!((quota["resources"]["sandboxes"].as_str(), quota["free"]["sandboxes"].as_str()), (Some("1"), Some("0")));
    let statistics = server.get(&key, "/v1/statistics/sandboxes").await.expect(200);
    assert_eq!(statistics["statistics"]["byStatus"]["Running"], 1);
}

#[tokio::test]
async fn templates_follow_the_version_and_lock_rules() {
    let server = Server::new().await;
    let spec =
        |version: &str| json!({"spec": {"version": version, "template": POD, "runtimes": [{"name": "web", "port": 8080}]}});
    server.post(ADMIN, "/v1/admin/sandbox-templates", json!({"name": "py", "spec": spec("1.0.0")["spec"]})).await.expect(201);
    server.post(ADMIN, "/v1/admin/sandbox-templates", json!({"name": "py", "spec": spec("1.0.0")["spec"]})).await.expect(409);
    let full = server.get(ADMIN, "/v1/sandbox-templates/py").await.expect(200)["template"].clone();
    has(&full, &["name", "version", "createdAt", "cpu", "memory", "syncSource", "runtimeNames", "hasDocs", "crdYaml"]);
    let crd = full["crdYaml"].as_str().unwrap();
    let newer = crd.replace("1.0.0", "1.1.0");
    server.put(ADMIN, "/v1/admin/sandbox-templates/py", json!({"crdYaml": newer})).await.expect(200);
    let stale = crd.replace("1.0.0", "1.2.0");
    server.put(ADMIN, "/v1/admin/sandbox-templates/py", json!({"crdYaml": stale})).await.expect(409);
    server.put(ADMIN, "/v1/admin/sandbox-templates/py", spec("1.1.0")).await.expect(400);
    server.put(ADMIN, "/v1/admin/sandbox-templates/none", spec("1.1.0")).await.expect(404);
    let simple = json!({"name": "mine", "image": "host", "ports": [{"name": "web", "port": 80}]});
    server.post(ADMIN, "/v1/sandbox-templates", simple).await.expect(201);
    assert_eq!(server.get(ADMIN, "/v1/sandbox-templates").await.expect(200)["total"], 2);
    let made = server.post(ADMIN, "/v1/sandboxes", json!({"templateName": "mine"})).await.expect(201);
    let url = made["sandbox"]["endpoints"]["web"]["url"].as_str().unwrap();
    assert!(url.starts_with("http://sandbank.test:8080/sandboxes/") && url.ends_with("/80"), "{url}");
    assert_eq!(server.delete(ADMIN, "/v1/sandbox-templates/mine").await.expect(200)["status"], "Deleted");
    server.delete(ADMIN, "/v1/admin/sandbox-templates/py").await.expect(200);
}

#[tokio::test]
async fn a_pools_documentation_shows_the_readers_own_key() {
    let server = Server::new().await;
    let crd = "metadata: {name: py, annotations: {agentbox.navix.sh/docs: 'key ${AGBX_API_KEY} pool ${AGBX_POOL_NAME}'}}\nspec: {version: 1.0.0, template: {spec: {containers: [{image: host}]}}}";
    server.post(ADMIN, "/v1/admin/sandbox-templates", json!({"crdYaml": crd})).await.expect(201);
    let key = server.user("ann").await;
    server.post(&key, "/v1/sandboxpools", json!({"name": "p", "templateName": "py", "replicas": 0})).await.expect(201);
    let docs = server.get(&key, "/v1/sandboxpools/p").await.expect(200)["template"]["poolDocs"].clone();
    assert_eq!(docs.as_str().unwrap(), format!("key {key} pool p"));
    let request = http::Request::builder().uri("/v1/sandboxpools/p").header("X-API-Key", ADMIN);
    let request =
        request.header("X-Impersonate-Team", "team").header("X-Impersonate-User", "ann").body(axum::body::Body::empty()).unwrap();
    assert_eq!(server.send(request).await.expect(422)["errorCode"], "API_KEY_REQUIRED");
}

#[tokio::test]
async fn keys_are_listed_without_secrets_and_imported_once() {
    let server = Server::new().await;
    let key = server.user("ann").await;
    let list = server.get(&key, "/v1/api-keys").await.expect(200);
    assert_eq!(list["total"], 1);
    assert!(!list.to_string().contains(key.strip_prefix("agbx_").unwrap_or(&key)));
    let hash = "0123456789abcdef".repeat(4);
    let import =
        json!({"team": "team", "user": "bob", "tokenHash": hash, "hashPrefix": &hash[..16], "issuedAt": "2026-04-01T00:00:00Z"});
    server.post(ADMIN, "/v1/admin/api-keys", import.clone()).await.expect(201);
    server.post(ADMIN, "/v1/admin/api-keys", import).await.expect(200);
    server.call(ADMIN, "POST", &format!("/v1/admin/api-keys/{}/promote", &hash[..16]), None).await.expect(503);
    server.delete(ADMIN, &format!("/v1/admin/api-keys/t-team-bob/agentbox-apikey-{}", &hash[..16])).await.expect(200);
    server.delete(ADMIN, "/v1/admin/api-keys/none").await.expect(404);
}

#[tokio::test]
async fn the_installation_tells_about_itself() {
    let server = Server::new().await;
    assert_eq!(
        server.get(ADMIN, "/v1/clusters").await.expect(200),
        json!({"clusters": [{"id": "local", "name": "local", "local": true}]})
    );
    assert_eq!(server.get(ADMIN, "/v1/feature-gates").await.expect(200), json!({"quota": true}));
    assert_eq!(server.get("", "/ping").await.expect(200), json!({"status": "ok"}));
    has(&server.get("", "/health").await.expect(200), &["status", "drivers", "version"]);
    server.get("", "/metrics").await.expect(401);
    assert_eq!(server.get(ADMIN, "/metrics").await.body, b"up 1\n");
    has(
        &server.get(ADMIN, "/v1/admin/statistics/sandboxpools").await.expect(200)["statistics"],
        &["total", "totalReplicas", "byNamespace"],
    );
    let images = server.get(ADMIN, "/v1/images").await.expect(200);
    assert!(images["items"].as_array().unwrap().iter().any(|image| image["name"] == "host"), "{images}");
}
