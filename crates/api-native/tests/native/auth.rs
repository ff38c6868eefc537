//! Who may do what.

use axum::body::Body;
use http::Request;
use serde_json::json;

use crate::support::{ADMIN, Server};

async fn with_headers(server: &Server, path: &str, headers: &[(&str, &str)]) -> crate::support::Answer {
    let mut request = Request::builder().uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    server.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn a_key_is_taken_from_three_headers_and_refused_when_missing_wrong_or_revoked() {
    let server = Server::new().await;
    let bearer = format!("Bearer {ADMIN}");
    for (name, value) in [("AGENTBOX-API-KEY", ADMIN), ("X-API-Key", ADMIN), ("Authorization", &bearer)] {
        let me = with_headers(&server, "/v1/auth/whoami", &[(name, value)]).await.expect(200);
        assert_eq!((me["role"].as_str(), me["user"].as_str()), (Some("admin"), Some("admin")));
    }
    let error = with_headers(&server, "/v1/auth/whoami", &[]).await.expect(401);
    assert_eq!(error["error"], "missing api key");
    let wrong = format!("agbx_{}", "1".repeat(64));
    for key in [wrong.as_str(), "nonsense", ""] {
        let error = with_headers(&server, "/v1/auth/whoami", &[("AGENTBOX-API-KEY", key)]).await.expect(401);
        assert_eq!(error["error"], "invalid api key");
    }
    let key = server.user("ann").await;
    let second = server.post(&key, "/v1/api-keys", json!({"description": "d"})).await.expect(201);
    let (id, secret) = (second["keyId"].as_str().unwrap(), second["apiKey"].as_str().unwrap());
    server.get(secret, "/v1/auth/whoami").await.expect(200);
    assert_eq!(server.delete(&key, &format!("/v1/api-keys/{id}")).await.expect(200), json!({"keyId": id, "status": "Deleted"}));
    server.get(secret, "/v1/auth/whoami").await.expect(401);
}

#[tokio::test]
async fn impersonation_needs_an_admin_and_both_headers() {
    let server = Server::new().await;
    let tenant = server.user("ann").await;
    let both = [("X-Impersonate-Team", "blue"), ("X-Impersonate-User", "bob")];
    let as_bob = with_headers(&server, "/v1/auth/whoami", &[("AGENTBOX-API-KEY", ADMIN), both[0], both[1]]).await.expect(200);
    assert_eq!((as_bob["team"].as_str(), as_bob["user"].as_str()), (Some("blue"), Some("bob")));
    let half = with_headers(&server, "/v1/auth/whoami", &[("AGENTBOX-API-KEY", ADMIN), both[0]]).await.expect(200);
    assert_eq!(half["user"], "admin");
    let ignored = with_headers(&server, "/v1/auth/whoami", &[("AGENTBOX-API-KEY", &tenant), both[0], both[1]]).await.expect(200);
    assert_eq!(ignored["user"], "ann");
}

#[tokio::test]
async fn admin_routes_are_closed_to_tenants() {
    let server = Server::new().await;
    let tenant = server.user("ann").await;
    for path in
        ["teams", "namespaces", "tenants", "api-keys", "statistics/sandboxes", "statistics/sandboxpools", "teams/team/users"]
    {
        let path = format!("/v1/admin/{path}");
        assert_eq!(server.get(&tenant, &path).await.expect(403)["error"], "admin access required");
        server.get(ADMIN, &path).await.expect(200);
    }
    server.post(&tenant, "/v1/admin/sandbox-templates", json!({})).await.expect(403);
    server.post(&tenant, "/v1/admin/images/import", json!({})).await.expect(403);
}

#[tokio::test]
async fn another_tenants_objects_look_missing() {
    let server = Server::new().await;
    let (ann, bob) = (server.user("ann").await, server.user("bob").await);
    server.pool(&ann, "mine", 1).await;
    let id = server.sandbox(&ann).await;
    for path in ["", "/logs", "/metrics", "/events", "/processes", "/files?path=/x", "/is_ready"] {
        let answer = server.get(&bob, &format!("/v1/sandboxes/{id}{path}")).await;
        // Events of a foreign sandbox may be an empty list: nothing of it is shown either way.
        if path == "/events" && answer.status == 200 {
            assert_eq!(answer.json()["items"], json!([]));
        } else {
            answer.expect(404);
        }
    }
    for (method, path) in [("DELETE", ""), ("POST", "/pause"), ("POST", "/exec-token")] {
        server.call(&bob, method, &format!("/v1/sandboxes/{id}{path}"), None).await.expect(404);
    }
    server.get(&bob, &format!("/v1/sandboxes/{id}/ports/80/")).await.expect(404);
    server.get(&bob, "/v1/sandboxpools/mine").await.expect(404);
    server.delete(&bob, "/v1/sandboxpools/mine").await.expect(404);
    server.post(&bob, "/v1/sandboxes", json!({"poolName": "mine"})).await.expect(404);
    assert_eq!(server.get(&bob, "/v1/sandboxes").await.expect(200)["total"], 0);
    server.get(&ann, &format!("/v1/sandboxes/{id}")).await.expect(200);
}

#[tokio::test]
async fn an_old_client_is_told_to_upgrade_on_writes_only() {
    let server = Server::new().await;
    let request = |method: &str| {
        Request::builder()
            .method(method)
            .uri("/v1/api-keys")
            .header("AGENTBOX-API-KEY", ADMIN)
            .header("X-AgentBox-Client-Version", "latest")
    };
    server.send(request("POST").body(Body::from("{}")).unwrap()).await.expect(426);
    server.send(request("GET").body(Body::empty()).unwrap()).await.expect(200);
}

#[tokio::test]
async fn every_answer_carries_a_request_id_and_the_version() {
    let server = Server::new().await;
    let answer = with_headers(&server, "/nothing", &[("X-Request-Id", "abc")]).await;
    assert_eq!((answer.status.as_u16(), answer.headers["x-request-id"].to_str().unwrap()), (404, "abc"));
    assert!(answer.headers.contains_key("x-agentbox-server-version"));
    assert!(!server.get(ADMIN, "/ping").await.headers["x-request-id"].is_empty());
}
