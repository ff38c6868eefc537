//! Snapshots and forks.

use serde_json::json;

use crate::support::{ADMIN, Server};

#[tokio::test]
async fn a_snapshot_is_taken_found_used_and_deleted() {
    let server = Server::new().await;
    let made = server.post(ADMIN, "/v1/sandboxes", json!({"image": "host", "workdir": "/tmp"})).await.expect(201);
    let id = made["sandbox"]["sandboxId"].as_str().unwrap().to_owned();
    let taken = server.post(ADMIN, &format!("/v1/sandboxes/{id}/snapshots"), json!({"name": "team/work"})).await.expect(201);
    let snapshot = &taken["snapshot"];
    assert_eq!((snapshot["name"].as_str(), snapshot["sandboxId"].as_str()), (Some("team/work:latest"), Some(id.as_str())));
    let snapshot_id = snapshot["snapshotId"].as_str().unwrap();
    for path in
        [format!("/v1/snapshots/{snapshot_id}"), "/v1/snapshots/team/work:latest".into(), "/v1/snapshots/team/work".into()]
    {
        assert_eq!(server.get(ADMIN, &path).await.expect(200), taken);
    }
    let listed = server.get(ADMIN, &format!("/v1/snapshots?sandboxId={id}&limit=5")).await.expect(200);
    assert_eq!((listed["total"].as_u64(), &listed["items"][0]), (Some(1), snapshot));
    let other = server.user("u").await;
    assert_eq!(server.get(&other, "/v1/snapshots").await.expect(200)["total"], 0);
    server.get(&other, &format!("/v1/snapshots/{snapshot_id}")).await.expect(404);
    let copy = server.post(ADMIN, "/v1/sandboxes", json!({"snapshot": "team/work"})).await.expect(201);
    let copy = copy["sandbox"]["sandboxId"].as_str().unwrap().to_owned();
    let said = server.post(ADMIN, &format!("/v1/sandboxes/{copy}/exec"), json!({"command": "pwd"})).await.expect(200);
    assert_eq!(said["stdout"], "/tmp\n");
    let refused = server.delete(ADMIN, "/v1/snapshots/team/work").await.expect(409);
    assert!(refused["error"].as_str().unwrap().contains(&copy), "{refused}");
    server.delete(ADMIN, &format!("/v1/sandboxes/{copy}")).await.expect(202);
    let deleted = loop {
        let answer = server.delete(ADMIN, "/v1/snapshots/team/work").await;
        // Until the sandbox is gone.
        if answer.status != 409 {
            break answer.expect(200);
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(deleted["name"], snapshot_id);
    server.get(ADMIN, "/v1/snapshots/team/work").await.expect(404);
}

#[tokio::test]
async fn forks_are_answered_one_by_one() {
    let server = Server::new().await;
    let made = server.post(ADMIN, "/v1/sandboxes", json!({"image": "host", "metadata": {"task": "7"}})).await.expect(201);
    let id = made["sandbox"]["sandboxId"].as_str().unwrap().to_owned();
    let forked = server.post(ADMIN, &format!("/v1/sandboxes/{id}/fork"), json!({"count": 2, "timeout": "5m"})).await.expect(201);
    let items = forked["items"].as_array().unwrap();
    assert_eq!(items.len(), 2);
    for fork in items {
        assert_eq!(fork["sandbox"]["metadata"], json!({"task": "7"}));
        assert!(fork["sandbox"]["expiresAt"].is_string(), "{fork}");
    }
    let one = server.post(ADMIN, &format!("/v1/sandboxes/{id}/fork"), json!({})).await.expect(201);
    assert_eq!(one["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn wrong_snapshots_and_forks_are_refused_in_words() {
    let server = Server::new().await;
    let made = server.post(ADMIN, "/v1/sandboxes", json!({"image": "host"})).await.expect(201);
    let id = made["sandbox"]["sandboxId"].as_str().unwrap().to_owned();
    let (snapshots, fork) = (format!("/v1/sandboxes/{id}/snapshots"), format!("/v1/sandboxes/{id}/fork"));
    let table = [
        (snapshots.as_str(), json!({"name": "a b"}), "name"),
        (&snapshots, json!({"name": "a@b"}), "name"),
        (&snapshots, json!({"name": id}), "an id is no name"),
        (&snapshots, json!({"name": 7}), "name"),
        (&fork, json!({"count": 0}), "count is 0"),
        (&fork, json!({"count": 101}), "count is 101"),
        (&fork, json!({"timeout": "soon"}), "timeout"),
        ("/v1/sandboxes", json!({"snapshot": "x", "image": "host"}), "exclude each other"),
        ("/v1/sandboxes", json!({"snapshot": "x", "poolName": "p"}), "exclude each other"),
    ];
    for (path, request, word) in table {
        let refused = server.post(ADMIN, path, request.clone()).await.expect(400);
        assert!(refused["error"].as_str().unwrap().contains(word), "{request}: {refused}");
    }
    server.post(ADMIN, "/v1/sandboxes", json!({"snapshot": "nowhere"})).await.expect(404);
    server.get(ADMIN, "/v1/snapshots?sandboxId=x").await.expect(404);
    server.delete(ADMIN, "/v1/snapshots/..").await.expect(404);
}
