//! The API document.

use serde_json::Value;

use crate::support::{ADMIN, Server};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");

#[test]
fn the_checked_in_document_is_what_the_code_says() {
    let made = format!("{}\n", sandbank_api_native::openapi_json());
    if std::env::var_os("SANDBANK_BLESS").is_some() {
        std::fs::write(FILE, &made).unwrap();
    }
    let kept = std::fs::read_to_string(FILE).unwrap_or_default();
    assert!(kept == made, "openapi.json differs from the code: run this test with SANDBANK_BLESS=1 and review the difference");
}

#[tokio::test]
async fn every_documented_operation_is_served() {
    let server = Server::new().await;
    let document: Value = server.get("", "/openapi.json").await.expect(200);
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let id = server.sandbox(ADMIN).await;
    let mut seen = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let answers = operation["responses"].as_object().unwrap();
            let concrete = path.replace("{id}", &id).replace("{port}", "80").replace("{pid}", "1").replace("{rest}", "x");
            let concrete = concrete
                .replace("{name}", "none")
                .replace("{host}", "none.example")
                .replace("{team}", "t")
                .replace("{tenant}", "t");
            let answer = server.raw(request(method, &concrete)).await;
            let status = answer.status().as_u16().to_string();
            assert!(
                answers.contains_key(&status) || answers.contains_key("default"),
                "{method} {path}: {status} is not documented"
            );
            assert_ne!(status, "405", "{method} {path}");
            seen += 1;
        }
    }
    assert!(seen > 75, "only {seen} operations");
}

fn request(method: &str, path: &str) -> http::Request<axum::body::Body> {
    let method = method.to_ascii_uppercase();
    // Streams end at once where there is nothing to stream; the sandbox itself must live to the end.
    let path = if method == "DELETE" && path.matches('/').count() == 3 { "/v1/sandboxes/none" } else { path };
    http::Request::builder().method(method.as_str()).uri(path).header("AGENTBOX-API-KEY", ADMIN).body("{}".into()).unwrap()
}
