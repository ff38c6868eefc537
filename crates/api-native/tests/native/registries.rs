//! Registries' credentials: written, listed, never read.

use serde_json::json;

use crate::support::{ADMIN, Server};

#[tokio::test]
async fn credentials_go_in_and_never_come_out() {
    let server = Server::new().await;
    let ann = server.user("ann").await;
    let login = json!({"host": "Reg.example:5000", "username": "ann", "password": "hunter2", "unknownField": 1});
    let made = server.post(&ann, "/v1/registries", login).await.expect(201);
    let item = &made["registry"];
    assert_eq!(
        (item["host"].as_str(), item["username"].as_str(), item["kind"].as_str(), item["global"].as_bool()),
        (Some("reg.example:5000"), Some("ann"), Some("password"), Some(false))
    );
    assert!(item["createdAt"].is_string());
    server.post(&ann, "/v1/registries", json!({"host": "docker.io", "token": "hunter3"})).await.expect(201);
    let list = server.get(&ann, "/v1/registries?limit=1&offset=1").await.expect(200);
    assert_eq!((list["total"].as_u64(), &list["items"][0]), (Some(2), item));
    let list = server.get(&ann, "/v1/registries").await.expect(200);
    assert_eq!(list["items"][0]["kind"], "token");
    assert!(!format!("{made}{list}").contains("hunter"), "{made} {list}");
    for path in ["/v1/registries/reg.example:5000", "/v1/registries/index.docker.io"] {
        let gone = server.delete(&ann, path).await.expect(200);
        assert_eq!(gone["status"], "Deleted");
        server.delete(&ann, path).await.expect(404);
    }
    assert_eq!(server.get(&ann, "/v1/registries").await.expect(200)["items"], json!([]));
}

#[tokio::test]
async fn an_address_without_a_name_is_a_path_too() {
    let server = Server::new().await;
    server.post(ADMIN, "/v1/registries", json!({"host": "[::1]:5000", "token": "t"})).await.expect(201);
    assert_eq!(server.delete(ADMIN, "/v1/registries/%5B::1%5D%3A5000").await.expect(200)["name"], "[::1]:5000");
}

#[tokio::test]
async fn the_installations_are_the_admins() {
    let server = Server::new().await;
    let ann = server.user("ann").await;
    let login = json!({"host": "ghcr.io", "username": "robot", "password": "x", "global": true});
    server.post(&ann, "/v1/registries", login.clone()).await.expect(403);
    server.post(ADMIN, "/v1/registries", login).await.expect(201);
    let seen = server.get(&ann, "/v1/registries").await.expect(200)["items"][0].clone();
    assert_eq!((&seen["host"], &seen["global"], &seen["username"]), (&json!("ghcr.io"), &json!(true), &json!(null)));
    server.delete(&ann, "/v1/registries/ghcr.io").await.expect(404);
    server.delete(&ann, "/v1/registries/ghcr.io?global=true").await.expect(403);
    server.delete(ADMIN, "/v1/registries/ghcr.io").await.expect(404);
    server.delete(ADMIN, "/v1/registries/ghcr.io?global=true").await.expect(200);
}

#[tokio::test]
async fn wrong_credentials_are_refused_without_showing_them() {
    let server = Server::new().await;
    for (body, says) in [
        (json!({}), "host is required"),
        (json!({"host": "ghcr.io"}), "username and password"),
        (json!({"host": "ghcr.io", "username": "me"}), "username and password"),
        (json!({"host": "ghcr.io", "password": "hunter2"}), "username and password"),
        (json!({"host": "ghcr.io", "username": "me", "password": "hunter2", "token": "hunter2"}), "username and password"),
        (json!({"host": "https://ghcr.io", "token": "hunter2"}), "ghcr.io or"),
        (json!({"host": "ghcr.io", "username": "a:b", "password": "hunter2"}), "username"),
        (json!({"host": "ghcr.io", "token": "hunter2 hunter2"}), "token"),
        (json!({"host": "ghcr.io", "username": "me", "password": ["hunter2"]}), "password"),
        (json!({"host": 5, "token": "hunter2"}), "host"),
    ] {
        let shown = body.to_string();
        let error = server.post(ADMIN, "/v1/registries", body).await.expect(400).to_string();
        assert!(error.contains(says) && !error.contains("hunter2"), "{shown}: {error}");
    }
    let error = server.delete(ADMIN, "/v1/registries/nowhere").await.expect(400);
    assert!(error["error"].as_str().unwrap().contains("nowhere"), "{error}");
    server.delete(ADMIN, "/v1/registries/ghcr.io?global=perhaps").await.expect(400);
    server.get("", "/v1/registries").await.expect(401);
}
