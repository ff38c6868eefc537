//! Ports inside by host name, and who may reach them.

use std::time::Duration;

use axum::body::Body;
use http::{Request, header};
use sandbank_driver::Responder;
use serde_json::{Value, json};

use crate::support::{ADMIN, Answer, Server};

const PORT: u16 = 8000;

/// A server, a sandbox on it whose port answers with the request it got, and its host name.
async fn mirrored() -> (Server, String, String) {
    let server = Server::new().await;
    let id = server.sandbox(ADMIN).await;
    server.faults.respond(PORT, Responder::Mirror);
    let host = format!("{PORT}-{id}.localhost:7070");
    (server, id, host)
}

async fn visit(server: &Server, host: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
    let mut request = Request::builder().uri(path).header("host", host);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    server.send(request.body(Body::empty()).unwrap()).await
}

async fn token(server: &Server, id: &str, body: Value) -> Value {
    server.post(ADMIN, &format!("/v1/sandboxes/{id}/port-tokens"), body).await.expect(201)
}

fn text(answer: &Answer) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

#[tokio::test]
async fn a_host_name_leads_inside_with_the_whole_path_untouched() {
    let (server, id, host) = mirrored().await;
    let answer = visit(&server, &host, "/v1/sandboxes/a%2Fb/../c?x=%20&y", &[("x-api-key", ADMIN)]).await;
    assert_eq!(answer.status, 200, "{}", text(&answer));
    let seen = text(&answer);
    assert!(seen.starts_with("GET /v1/sandboxes/a%2Fb/../c?x=%20&y HTTP/1.1\r\n"), "{seen}");
    assert!(seen.contains(&format!("host: {host}\r\n")) && !seen.contains("x-forwarded-prefix"), "{seen}");
    assert!(!seen.contains(ADMIN), "{seen}");
    // Nothing of the API shows, and the page may run: its origin is its own.
    assert!(answer.headers.keys().all(|name| !name.as_str().contains("agentbox") && name != header::CONTENT_SECURITY_POLICY));
    let simple = format!("{PORT}-{}.localhost", id.replace('-', ""));
    assert_eq!(visit(&server, &simple, "/", &[("authorization", &format!("Bearer {ADMIN}"))]).await.status, 200);
}

#[tokio::test]
async fn the_programs_own_credentials_reach_it() {
    let (server, id, host) = mirrored().await;
    let made = token(&server, &id, json!({ "port": PORT })).await;
    let secret = made["token"].as_str().unwrap();
    let fields = [
        ("x-sandbank-port-token", secret),
        ("authorization", "Bearer theirs"),
        ("x-api-key", "their-key"),
        ("cookie", "session=theirs"),
    ];
    let seen = text(&visit(&server, &host, "/", &fields).await);
    for theirs in ["authorization: Bearer theirs", "x-api-key: their-key", "cookie: session=theirs"] {
        assert!(seen.contains(theirs), "{seen}");
    }
    // A key of ours beside the token goes no further, wherever it stands.
    let ours = format!("Bearer {ADMIN}");
    let seen = text(&visit(&server, &host, "/", &[("x-sandbank-port-token", secret), ("authorization", &ours)]).await);
    assert!(seen.starts_with("GET /") && !seen.contains(ADMIN), "{seen}");
    let path = format!("/v1/sandboxes/{id}/ports/{PORT}/");
    let seen = text(&visit(&server, "api.test", &path, &[("x-sandbank-port-token", secret), ("authorization", &ours)]).await);
    assert!(seen.starts_with("GET /") && !seen.contains(ADMIN) && !seen.contains(secret), "{seen}");
}

#[tokio::test]
async fn a_token_opens_its_port_from_field_query_and_cookie_and_never_goes_inside() {
    let (server, id, host) = mirrored().await;
    let made = token(&server, &id, json!({ "port": PORT })).await;
    let secret = made["token"].as_str().unwrap();
    assert!(made["url"].as_str().unwrap().starts_with(&format!("http://{PORT}-{id}.localhost")), "{made}");
    let query = format!("/a?b=1&sandbank_port_token={secret}&c=2");
    let cookie = format!("theirs=1; sandbank_port_token={secret}; more=2");
    let referer = format!("http://{host}/?sandbank_port_token={secret}");
    for (path, fields) in [
        ("/a?b=1&c=2", [("x-sandbank-port-token", secret), ("x-other", "1")]),
        (query.as_str(), [("referer", referer.as_str()), ("x-other", "1")]),
        ("/a?b=1&c=2", [("cookie", cookie.as_str()), ("x-other", "1")]),
        // Cookies that another site of the domain tossed in do not keep the good one from working.
        ("/a?b=1&c=2", [("cookie", &*format!("sandbank_port_token=sbpt_x; sandbank_port_token={secret}")), ("x-other", "1")]),
    ] {
        let answer = visit(&server, &host, path, &fields).await;
        let seen = text(&answer);
        assert_eq!(answer.status, 200, "{path} {fields:?}: {seen}");
        assert!(seen.starts_with("GET /a?b=1&c=2 HTTP/1.1\r\n"), "{seen}");
        assert!(!seen.contains("sbpt_") && !seen.contains("sandbank_port_token"), "{seen}");
        assert_eq!(seen.contains("theirs=1"), fields[0].1.contains("theirs"), "{seen}");
    }
}

#[tokio::test]
async fn a_token_opens_nothing_else() {
    let (server, id, host) = mirrored().await;
    server.faults.respond(PORT + 1, Responder::Mirror);
    let other = server.sandbox(ADMIN).await;
    let made = token(&server, &id, json!({ "port": PORT })).await;
    let secret = made["token"].as_str().unwrap().to_owned();
    let shown = |secret: &str| [("x-sandbank-port-token".to_owned(), secret.to_owned())];
    let refused = async |host: String, secret: &str, why: &str| {
        let fields = shown(secret);
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let answer = visit(&server, &host, "/", &fields).await;
        assert_eq!(answer.status, 401, "{}", text(&answer));
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(why), "{error}");
    };
    refused(format!("{}-{id}.localhost", PORT + 1), &secret, "another port").await;
    refused(format!("{PORT}-{other}.localhost"), &secret, "another sandbox").await;
    refused(host.clone(), "", "port token").await;
    refused(host.clone(), "sbpt_", "port token").await;
    let mut forged = secret.clone().into_bytes();
    let last = forged.len() - 2;
    forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
    refused(host.clone(), std::str::from_utf8(&forged).unwrap(), "damaged").await;
    // The API knows no port tokens.
    let answer = visit(&server, "api.test", &format!("/v1/sandboxes/{id}"), &[("x-sandbank-port-token", &secret)]).await;
    assert_eq!(answer.status, 401);
    // One for all ports, until it is revoked.
    let all = token(&server, &id, json!({})).await;
    let all_ports = all["token"].as_str().unwrap();
    for port in [PORT, PORT + 1] {
        let answer = visit(&server, &format!("{port}-{id}.localhost"), "/", &[("x-sandbank-port-token", all_ports)]).await;
        assert_eq!(answer.status, 200);
    }
    assert!(all.get("url").is_none() && all.get("port").is_none(), "{all}");
    server.delete(ADMIN, &format!("/v1/sandboxes/{id}/port-tokens")).await.expect(204);
    refused(host.clone(), all_ports, "revoked").await;
    refused(host.clone(), &secret, "revoked").await;
    let fresh = token(&server, &id, json!({ "port": PORT })).await;
    assert_eq!(visit(&server, &host, "/", &[("x-sandbank-port-token", fresh["token"].as_str().unwrap())]).await.status, 200);
}

#[tokio::test]
async fn a_token_ends_in_time() {
    let (server, id, host) = mirrored().await;
    let made = token(&server, &id, json!({ "port": PORT, "expiresInSeconds": 1 })).await;
    let secret = made["token"].as_str().unwrap();
    let path = format!("/.sandbank/auth?token={secret}");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let answer = visit(&server, &host, "/", &[("x-sandbank-port-token", secret)]).await;
        if answer.status == 401 {
            assert!(text(&answer).contains("expired"), "{}", text(&answer));
            break;
        }
        assert_eq!(answer.status, 200);
        assert!(tokio::time::Instant::now() < deadline, "it never ends");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(visit(&server, &host, &path, &[]).await.status, 401);
}

#[tokio::test]
async fn a_link_gives_a_browser_the_cookie_and_leads_on() {
    let (server, id, host) = mirrored().await;
    let made = token(&server, &id, json!({ "port": PORT, "expiresInSeconds": 60 })).await;
    let url = made["browserUrl"].as_str().unwrap();
    let path = &url[url.find("/.sandbank/").unwrap()..];
    let answer = visit(&server, &host, path, &[]).await;
    assert_eq!((answer.status.as_u16(), answer.headers["location"].to_str().unwrap()), (303, "/"));
    let cookie = answer.headers["set-cookie"].to_str().unwrap().to_owned();
    for part in ["HttpOnly", "SameSite=Lax", "Path=/", "Max-Age="] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let cookie = cookie.split(';').next().unwrap();
    assert_eq!(visit(&server, &host, "/", &[("cookie", cookie)]).await.status, 200);
    // Another sandbox's page cannot use it: to a browser it is the same site.
    let strange = [("cookie", cookie), ("origin", "http://80-other.localhost:7070")];
    assert_eq!(visit(&server, &host, "/", &strange).await.status, 401);
    for (to, location) in [("/app?x=1", "/app?x=1"), ("//evil.test/", "/"), ("https://evil.test/", "/")] {
        let to = to.replace('/', "%2F").replace('?', "%3F").replace(':', "%3A");
        let answer = visit(&server, &host, &format!("{path}&to={to}").replace("&to=/&", "&"), &[]).await;
        assert_eq!(answer.headers["location"].to_str().unwrap(), location, "{to}");
    }
    assert_eq!(visit(&server, &host, "/.sandbank/auth?token=nonsense", &[("accept", "text/html")]).await.status, 401);
    assert_eq!(visit(&server, &host, "/.sandbank/other", &[]).await.status, 404);
}

#[tokio::test]
async fn what_is_public_needs_nothing_and_only_that() {
    let (server, id, host) = mirrored().await;
    let access = format!("/v1/sandboxes/{id}/port-access");
    assert_eq!(server.get(ADMIN, &access).await.expect(200)["public"], false);
    assert_eq!(visit(&server, &host, "/", &[]).await.status, 401);
    let now = server.put(ADMIN, &access, json!({ "public": true, "ports": [PORT] })).await.expect(200);
    assert_eq!((&now["public"], &now["ports"]), (&json!(true), &json!([PORT])));
    assert!(now["urlPattern"].as_str().unwrap().contains(&format!("{{port}}-{id}.localhost")), "{now}");
    assert_eq!(visit(&server, &host, "/", &[]).await.status, 200);
    assert_eq!(visit(&server, &host, "/", &[("x-sandbank-port-token", "wrong")]).await.status, 200);
    let path = format!("/v1/sandboxes/{id}/ports/{PORT}/");
    let by_path = visit(&server, "api.test", &path, &[("authorization", "Bearer theirs")]).await;
    assert_eq!(by_path.status, 200);
    assert!(text(&by_path).contains("authorization: Bearer theirs"), "{}", text(&by_path));
    // By path a page shares the API's origin: it is locked into one of its own.
    assert!(by_path.headers["content-security-policy"].to_str().unwrap().starts_with("sandbox"));
    assert_eq!(visit(&server, &format!("{}-{id}.localhost", PORT + 1), "/", &[]).await.status, 401);
    let shown = server.get(ADMIN, &format!("/v1/sandboxes/{id}")).await.expect(200);
    assert_eq!(shown["sandbox"]["portAccess"]["public"], true);
    let all = server.put(ADMIN, &access, json!({ "public": true })).await.expect(200);
    assert_eq!((&all["public"], all.get("ports")), (&json!(true), None));
    server.put(ADMIN, &access, json!({ "public": false })).await.expect(200);
    assert_eq!(visit(&server, &host, "/", &[]).await.status, 401);
    let kinds: Vec<Value> =
        server.get(ADMIN, &format!("/v1/sandboxes/{id}/events")).await.expect(200)["items"].as_array().unwrap().clone();
    assert_eq!(kinds.iter().filter(|event| event.to_string().contains("port-access-changed")).count(), 3, "{kinds:?}");
}

#[tokio::test]
async fn another_tenants_sandbox_looks_missing_and_an_ended_one_is() {
    let (server, id, host) = mirrored().await;
    let bob = server.user("bob").await;
    assert_eq!(visit(&server, &host, "/", &[("x-api-key", &bob)]).await.status, 404);
    for (method, path) in [("GET", "port-access"), ("PUT", "port-access"), ("POST", "port-tokens"), ("DELETE", "port-tokens")] {
        let body = (method == "PUT").then(|| json!({ "public": true }));
        server.call(&bob, method, &format!("/v1/sandboxes/{id}/{path}"), body).await.expect(404);
    }
    let nobody = "8000-0190f3c4-7b1a-7000-8000-0123456789ab.localhost";
    let page = visit(&server, nobody, "/", &[("accept", "text/html")]).await;
    assert_eq!((page.status.as_u16(), page.headers["content-type"].to_str().unwrap()), (404, "text/html; charset=utf-8"));
    assert_eq!(visit(&server, nobody, "/", &[("x-api-key", ADMIN)]).await.status, 404);
    // By path, whoever has no key does not learn which sandboxes there are.
    assert_eq!(visit(&server, "api.test", "/v1/sandboxes/0190f3c4-7b1a-7000-8000-0123456789ab/ports/1/", &[]).await.status, 401);
    assert_eq!(visit(&server, &format!("0-{id}.localhost"), "/health", &[]).await.status, 400);
    let made = token(&server, &id, json!({ "port": PORT })).await;
    let shown = [("x-sandbank-port-token", made["token"].as_str().unwrap())];
    server.delete(ADMIN, &format!("/v1/sandboxes/{id}")).await.expect(202);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while visit(&server, &host, "/", &shown).await.status != 404 {
        assert!(tokio::time::Instant::now() < deadline, "it still answers");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_paused_sandbox_says_so_and_goes_on_after_resuming() {
    let (server, id, host) = mirrored().await;
    let key = [("x-api-key", ADMIN)];
    assert_eq!(visit(&server, &host, "/", &key).await.status, 200);
    server.post(ADMIN, &format!("/v1/sandboxes/{id}/pause"), json!({})).await.expect(200);
    let paused = visit(&server, &host, "/", &key).await;
    assert_eq!(paused.status, 409);
    assert!(text(&paused).contains("resume it first"), "{}", text(&paused));
    assert_eq!(visit(&server, &host, "/", &[]).await.status, 401);
    server.post(ADMIN, &format!("/v1/sandboxes/{id}/resume"), json!({})).await.expect(200);
    assert_eq!(visit(&server, &host, "/", &key).await.status, 200);
}

#[tokio::test]
async fn a_closed_port_is_a_page_for_browsers_and_json_for_programs() {
    let (server, id, _) = mirrored().await;
    let closed = format!("9-{id}.localhost");
    let json = visit(&server, &closed, "/", &[("x-api-key", ADMIN)]).await;
    assert_eq!(json.status, 502);
    assert!(json.json()["error"].as_str().unwrap().contains("nothing listens on port 9"));
    let page = visit(&server, &closed, "/", &[("x-api-key", ADMIN), ("accept", "text/html,*/*")]).await;
    assert_eq!((page.status.as_u16(), page.headers["content-type"].to_str().unwrap()), (502, "text/html; charset=utf-8"));
    assert_eq!(page.headers["cache-control"], "no-store");
}

#[tokio::test]
async fn bad_input_about_ports_is_refused_by_field() {
    let (server, id, host) = mirrored().await;
    let base = format!("/v1/sandboxes/{id}");
    for (body, says) in [
        (json!({}), "public"),
        (json!({ "public": true, "ports": [] }), "ports is empty"),
        (json!({ "public": true, "ports": [0] }), "0 is not a port"),
        (json!({ "public": true, "ports": [70_000] }), "70000"),
        (json!({ "public": false, "ports": [1] }), "leave it out"),
        (json!({ "public": true, "ports": (1..=101).collect::<Vec<u16>>() }), "at most 100"),
    ] {
        let error = server.put(ADMIN, &format!("{base}/port-access"), body.clone()).await.expect(400);
        assert!(error.to_string().contains(says), "{body}: {error}");
    }
    for (body, says) in [
        (json!({ "expiresInSeconds": 0 }), "expiresInSeconds"),
        (json!({ "expiresInSeconds": 86_401 }), "expiresInSeconds"),
        (json!({ "port": 0 }), "0 is not a port"),
        (json!({ "port": "x" }), "port"),
    ] {
        let error = server.post(ADMIN, &format!("{base}/port-tokens"), body.clone()).await.expect(400);
        assert!(error.to_string().contains(says), "{body}: {error}");
    }
    let two = Request::builder().uri("/").header("host", &host).header("host", "api.test").body(Body::empty()).unwrap();
    assert_eq!(server.send(two).await.status, 400);
    server.get(ADMIN, &format!("{base}/port-tunnel?port=8000")).await.expect(400);
}
