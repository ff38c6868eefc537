//! Wrong requests get a clear error in the envelope, never a 500.

use serde_json::{Value, json};

use crate::support::{ADMIN, Server};

fn is_envelope(error: &Value) -> bool {
    error["error"].as_str().is_some_and(|text| !text.is_empty())
}

#[tokio::test]
async fn wrong_bodies_are_400_and_name_the_field() {
    let server = Server::new().await;
    let id = server.sandbox(ADMIN).await;
    let rows: Vec<(&str, String, Value, &str)> = vec![
        ("POST", "/v1/sandboxes".into(), json!({}), "poolName is required"),
        ("POST", "/v1/sandboxes".into(), json!({"poolName": 5}), "poolName"),
        ("POST", "/v1/sandboxes".into(), json!({"poolName": "x".repeat(64)}), "63"),
        ("POST", "/v1/sandboxes".into(), json!({"poolName": "a//img"}), "image"),
        ("POST", "/v1/sandboxes".into(), json!({"image": "host", "whenEmpty": "explode"}), "whenEmpty"),
        ("POST", "/v1/sandboxes".into(), json!({"image": "host", "onExpiry": "explode"}), "onExpiry"),
        ("POST", "/v1/sandboxes".into(), json!({"image": "host", "timeout": "-1s"}), "negative"),
        ("POST", "/v1/sandboxes".into(), json!({"image": "host", "idleTimeout": "999999h"}), "too long"),
        ("POST", "/v1/sandboxes".into(), json!({"poolName": "a", "startupTimeout": "0"}), "startupTimeout"),
        ("POST", "/v1/sandboxes".into(), json!({"image": "host", "memory": "lots"}), "memory"),
        ("POST", "/v1/sandboxes".into(), json!({"image": "../etc"}), "image"),
        ("POST", "/v1/sandboxes".into(), json!({"poolName": "a", "cpu": "1"}), "cpu"),
        ("POST", "/v1/sandboxes".into(), json!({"image": "a", "templateName": "b"}), "exclude"),
        ("POST", "/v1/sandboxpools".into(), json!({"name": "Bad Name", "image": "host"}), "pool name"),
        ("POST", "/v1/sandboxpools".into(), json!({"name": "p"}), "templateName"),
        (
            "POST",
            "/v1/sandboxpools".into(),
            json!({"name": "p", "image": "host", "replicas": 2, "minReplicas": 3, "maxReplicas": 1}),
            "minReplicas",
        ),
        ("POST", "/v1/sandboxpools".into(), json!({"name": "p", "image": "host", "replicas": -1}), "replicas"),
        ("POST", "/v1/sandboxpools".into(), json!({"name": "p", "templateName": "missing"}), "missing"),
        (
            "POST",
            "/v1/sandboxpools".into(),
            json!({"name": "p", "image": "host", "imagePullSecret": {"registries": [{"registry": "r", "username": "u", "password": "secret-word"}]}}),
            "not kept with pools",
        ),
        ("PUT", format!("/v1/sandboxes/{id}/timeout"), json!({"timeout": "soon"}), "timeout"),
        ("POST", format!("/v1/sandboxes/{id}/renew"), json!({}), "nothing to renew"),
        ("POST", format!("/v1/sandboxes/{id}/commit"), json!({"image": "a b"}), "image"),
        ("POST", format!("/v1/sandboxes/{id}/exec"), json!({"command": ""}), "command"),
        ("POST", format!("/v1/sandboxes/{id}/exec"), json!({"command": "x", "timeoutSeconds": 301}), "timeoutSeconds"),
        ("POST", format!("/v1/sandboxes/{id}/processes/1/signal"), json!({"signal": "SIGNOPE"}), "SIGNOPE"),
        ("POST", format!("/v1/sandboxes/{id}/files/mkdir"), json!({"path": "/a\u{0}b"}), "NUL"),
        ("POST", "/v1/api-keys".into(), json!({"expiresAt": "tomorrow"}), "expiresAt"),
        ("POST", "/v1/admin/api-keys".into(), json!({"user": "u"}), "team"),
        ("POST", "/v1/admin/sandbox-templates".into(), json!({"name": "t"}), "spec"),
    ];
    for (method, path, body, expect) in rows {
        let shown = format!("{method} {path} {body}");
        let error = server.call(ADMIN, method, &path, Some(body)).await.expect(400);
        let text = error.to_string();
        assert!(is_envelope(&error) && text.contains(expect), "{shown}: {text} should contain {expect}");
        assert!(!text.contains("secret-word"), "{shown}");
    }
}

#[tokio::test]
async fn malformed_and_oversized_bodies_are_refused() {
    let server = Server::new().await;
    let deep = format!("{{\"metadata\":{}", "[".repeat(5_000));
    for body in ["", "{", "nonsense", "[1,2", "\u{0}", "{\"poolName\":\"a\",\"poolName\":\"b\"}", &deep, "null", "\"x\"", "[]"] {
        let error = server.call_text(ADMIN, "POST", "/v1/sandboxes", body.to_owned()).await.expect(400);
        assert!(is_envelope(&error), "{error}");
    }
    let huge = format!("{{\"poolName\":\"{}\"}}", "x".repeat(1 << 20));
    assert!(is_envelope(&server.call_text(ADMIN, "POST", "/v1/sandboxes", huge).await.expect(413)));
}

#[tokio::test]
async fn wrong_queries_are_400_and_name_the_parameter() {
    let server = Server::new().await;
    let id = server.sandbox(ADMIN).await;
    for (path, expect) in [
        ("/v1/sandboxes?limit=0".to_owned(), "limit"),
        ("/v1/sandboxes?limit=abc".to_owned(), "limit"),
        ("/v1/sandboxes?limit=1001".to_owned(), "limit"),
        ("/v1/sandboxes?offset=-1".to_owned(), "offset"),
        ("/v1/sandboxes?status=Sleeping".to_owned(), "Sleeping"),
        ("/v1/sandboxes?warm=maybe".to_owned(), "warm"),
        ("/v1/sandboxpools?limit=5000".to_owned(), "limit"),
        ("/v1/events?after=x".to_owned(), "after"),
        (format!("/v1/sandboxes/{id}/logs?lines=10001"), "lines"),
        (format!("/v1/sandboxes/{id}/logs?container=other"), "container"),
        (format!("/v1/sandboxes/{id}/files"), "path"),
        (format!("/v1/sandboxes/{id}/files?path=%00"), "NUL"),
        (format!("/v1/sandboxes/{id}/files?path=%ff"), "percent-encoded"),
        (format!("/v1/sandboxes/{id}/files/list?path=/&depth=0"), "depth"),
        (format!("/v1/sandboxes/{id}/ports/99999/"), "port"),
        (format!("/v1/sandboxes/{id}/terminal"), "WebSocket"),
    ] {
        let error = server.get(ADMIN, &path).await.expect(400);
        assert!(error.to_string().contains(expect), "{path}: {error}");
    }
}

#[tokio::test]
async fn unknown_things_are_404_and_unknown_clusters_502() {
    let server = Server::new().await;
    let id = "019ab3c4-5d6e-7f80-9a1b-2c3d4e5f6071";
    for path in [
        "/",
        "/v1",
        "/v2/sandboxes",
        "/v1/sandboxes/x",
        "/v1/sandboxpools/none",
        "/v1/sandbox-templates/none",
        "/v1/images/none:1",
        "/sandboxes/x",
    ] {
        assert!(is_envelope(&server.get(ADMIN, path).await.expect(404)), "{path}");
    }
    server.get(ADMIN, &format!("/v1/sandboxes/{id}")).await.expect(404);
    for (path, status) in [
        (format!("/v1/sandboxes/far.{id}"), 502),
        ("/v1/sandboxpools/far::p".to_owned(), 502),
        ("/v1/sandboxpools/p%2F%2Fimage".to_owned(), 400),
    ] {
        assert!(is_envelope(&server.get(ADMIN, &path).await.expect(status)), "{path}");
    }
    server.post(ADMIN, "/v1/sandboxes", json!({"poolName": "far::p"})).await.expect(502);
    assert!(is_envelope(&server.call(ADMIN, "PATCH", "/v1/sandboxes", None).await.expect(405)));
    let error = server.post(ADMIN, "/v1/sandboxes", json!({"poolName": "none"})).await.expect(404);
    assert!(error["detail"]["availablePools"].is_array() && error["detail"]["hint"].is_string(), "{error}");
}
