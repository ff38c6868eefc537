//! Builds and uploads.

use serde_json::{Value, json};

use crate::support::{ADMIN, Server};

async fn ended(server: &Server, key: &str, begun: &Value) -> (Value, Vec<Value>) {
    let path = format!("/v1/builds/{}", begun["build"]["id"].as_str().unwrap());
    let lines = server.get(key, &format!("{path}/logs")).await.lines();
    (server.get(key, &path).await.expect(200)["build"].clone(), lines)
}

#[tokio::test]
async fn a_dockerfile_and_steps_are_built_and_followed() {
    let server = Server::new().await;
    let request = json!({"name": "made:1", "dockerfile": "FROM host\nARG A=x\nRUN echo $A\n", "buildArgs": {"A": "given"}});
    let begun = server.post(ADMIN, "/v1/builds", request).await.expect(202);
    let (build, lines) = ended(&server, ADMIN, &begun).await;
    assert_eq!((build["state"].as_str(), build["stepsTotal"].as_u64()), (Some("ready"), Some(2)), "{build}");
    let said = lines.iter().find(|line| line["text"] == "given").expect("what the program wrote");
    assert_eq!((said["step"].as_str(), said["level"].as_str()), (Some("2"), Some("info")));
    let offset = said["offset"].as_u64().unwrap();
    let path = format!("/v1/builds/{}/logs?follow=false&offset={offset}", build["id"].as_str().unwrap());
    assert_eq!(server.get(ADMIN, &path).await.lines()[0], *said);
    let steps = json!([
        {"type": "env", "vars": {"PRICE": "5 $x"}},
        {"type": "workdir", "path": "/srv"},
        {"type": "run", "command": "echo $PRICE > price && cat price; exit 4"},
    ]);
    let begun = server.post(ADMIN, "/v1/builds", json!({"name": "made:2", "from": "host", "steps": steps})).await.expect(202);
    let (build, lines) = ended(&server, ADMIN, &begun).await;
    assert_eq!((build["state"].as_str(), build["reason"]["step"].as_str()), (Some("error"), Some("3")), "{build}");
    assert!(lines.iter().any(|line| line["text"] == "5 $x"), "values mean what they say: {lines:?}");
    let list = server.get(ADMIN, "/v1/builds?limit=1").await.expect(200);
    assert_eq!((list["total"].as_u64(), list["items"][0]["name"].as_str()), (Some(2), Some("made:2")));
    assert_eq!(server.delete(ADMIN, "/v1/build-cache").await.expect(200)["steps"], 2);
    let other = server.user("u").await;
    let path = format!("/v1/builds/{}", build["id"].as_str().unwrap());
    server.get(&other, &path).await.expect(404);
    assert_eq!(server.delete(ADMIN, &path).await.expect(200)["build"]["state"], "error", "what has ended stays as it is");
}

#[tokio::test]
async fn an_image_shows_what_its_dockerfile_said() {
    let server = Server::new().await;
    let dockerfile = "FROM host\nENV A=1\nLABEL team=blue\nEXPOSE 80 53/udp\nENTRYPOINT [\"run\"]\nCMD [\"it\"]\n\
                      USER user\nSTOPSIGNAL SIGINT\n";
    let begun = server.post(ADMIN, "/v1/builds", json!({"name": "made:1", "dockerfile": dockerfile})).await.expect(202);
    assert_eq!(ended(&server, ADMIN, &begun).await.0["state"], "ready");
    let image = server.get(ADMIN, "/v1/images/made:1").await.expect(200)["image"].clone();
    assert_eq!(image["env"]["A"], "1");
    assert_eq!(image["labels"], json!({"team": "blue"}));
    assert_eq!(image["exposedPorts"], json!(["53/udp", "80/tcp"]));
    assert_eq!((&image["entrypoint"], &image["command"]), (&json!(["run"]), &json!(["it"])));
    assert_eq!((image["user"].as_str(), image["stopSignal"].as_str()), (Some("user"), Some("SIGINT")));
}

#[tokio::test]
async fn a_wrong_build_is_refused_in_words() {
    let server = Server::new().await;
    let table = [
        (json!({"name": "a"}), "either dockerfile"),
        (json!({"name": "a", "dockerfile": "FROM host\n", "from": "host"}), "either dockerfile"),
        (json!({"name": "a", "dockerfile": "FROM host\nADD x y\n"}), "line 2"),
        (json!({"name": "a b", "dockerfile": "FROM host\n"}), "name"),
        (json!({"name": "a", "dockerfile": "FROM host\n", "timeout": "9h"}), "timeout"),
        (json!({"name": "a", "from": "host", "steps": [{"type": "add"}]}), "add"),
        (json!({"name": "a", "from": "host", "steps": [{"type": "copy", "sources": ["x"], "dest": "/", "chmod": "9"}]}), "octal"),
        (json!({"name": "a", "dockerfile": "FROM host\n", "nocache": true}), "nocache"),
    ];
    for (request, word) in table {
        let refused = server.post(ADMIN, "/v1/builds", request.clone()).await.expect(400);
        assert!(refused["error"].as_str().unwrap().contains(word), "{request}: {refused}");
    }
    server.get(ADMIN, "/v1/builds/nonsense").await.expect(400);
    let refused = server.call_text(ADMIN, "POST", "/v1/contexts", "no archive").await.expect(400);
    assert!(refused["error"].as_str().unwrap().contains("tar"), "{refused}");
    let empty = server.call_text(ADMIN, "POST", "/v1/contexts", vec![0; 1024]).await.expect(201);
    assert_eq!(empty["sizeBytes"], 1024);
}
