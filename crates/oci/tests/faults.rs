//! Registries that fail, lie, stall and send us around: what we answer, and that nobody else sees the credentials.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use sandbank_oci::{
    Credentials, Error, LayerBlob, Platform, RegistryClient, RegistrySettings, RegistrySource, Resolved, Result, Source,
};
use support::server::{Reply, Request, Server, registry_reply};
use support::{Layout, assert_layers, read_layer, three_layers};

const SECRET: &str = "s3cr3t-p4ssw0rd";
/// `me:s3cr3t-p4ssw0rd`
const BASIC: &str = "Basic bWU6czNjcjN0LXA0c3N3MHJk";

fn settings() -> RegistrySettings {
    RegistrySettings {
        connect_timeout: Duration::from_secs(2),
        stall_timeout: Duration::from_secs(1),
        document_timeout: Duration::from_secs(2),
        tries_max: 3,
        backoff: Duration::from_millis(10),
        retry_after_max: Duration::from_secs(1),
        ..RegistrySettings::default()
    }
}

fn password() -> Credentials {
    Credentials::Password { username: "me".to_owned(), password: SECRET.to_owned() }
}

fn image_of(settings: RegistrySettings, name: &str, credentials: Option<Credentials>) -> RegistrySource {
    let client = RegistryClient::new(settings).unwrap();
    client.image(client.reference(name).unwrap(), credentials).unwrap()
}

fn image_at(server: &Server, credentials: Option<Credentials>) -> RegistrySource {
    image_of(settings(), &format!("{}/app:1", server.address), credentials)
}

async fn resolve(source: &RegistrySource) -> Result<Resolved> {
    source.resolve(&Platform::linux_amd64()).await
}

/// A layout with the image `1`.
fn layout() -> Arc<Layout> {
    let mut layout = Layout::new();
    let index = layout.index(&[layout.image("arm64", &[]), layout.image("amd64", &three_layers("x"))]);
    layout.add(Some("1"), index);
    Arc::new(layout)
}

/// A registry with the image `app:1`, which answers by `rule` where that says something.
async fn registry(ranges: bool, rule: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> Server {
    let layout = layout();
    Server::start(move |request| rule(request).or_else(|| registry_reply(layout.path(), request, ranges))).await
}

async fn failure(rule: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static) -> (String, Error, Server) {
    let server = registry(true, rule).await;
    let error = resolve(&image_at(&server, Some(password()))).await.unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(!text.contains(SECRET) && !text.contains(&BASIC[6..]), "{text}");
    assert!(text.contains("app:1") && text.contains("127.0.0.1"), "an error says which image and who keeps it: {text}");
    (error.to_string(), error, server)
}

/// The image at `server`, its second, large layer, and reading that.
async fn read_large(server: &Server) -> (Resolved, std::io::Result<Vec<u8>>) {
    let source = image_at(server, None);
    let resolved = resolve(&source).await.unwrap();
    let read = read_layer(&source, &resolved.layers[1]).await;
    (resolved, read)
}

fn is_large(request: &Request, reply: &Reply) -> bool {
    request.path.contains("/blobs/") && reply.body.len() > 1 << 20
}

/// A registry whose large layer is answered by `change`, which gets the right reply.
async fn with_large(ranges: bool, change: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) -> Server {
    let layout = layout();
    Server::start(move |request| {
        let reply = registry_reply(layout.path(), request, ranges)?;
        Some(if is_large(request, &reply) || request.header("range").is_some() { change(request, reply) } else { reply })
    })
    .await
}

#[tokio::test]
async fn a_good_registry_serves_an_image() {
    let server = registry(true, |_| None).await;
    let source = image_at(&server, None);
    let resolved = resolve(&source).await.unwrap();
    assert_eq!(resolved.config.env["ARCH"], "amd64");
    assert_layers(&source, &resolved, &three_layers("x")).await;
    let by_digest = image_of(settings(), &format!("{}/app@{}", server.address, resolved.root_digest), None);
    assert_eq!(resolve(&by_digest).await.unwrap(), resolved);
    let error = source.resolve(&Platform { architecture: "riscv64".to_owned(), ..Platform::linux_amd64() }).await.unwrap_err();
    assert!(error.to_string().contains("has nothing for linux/riscv64; it has linux/arm64, linux/amd64"), "{error}");
}

#[tokio::test]
async fn a_layer_goes_on_where_the_connection_broke() {
    let server = with_large(true, |request, reply| if request.before < 2 { reply.cut_at(1_000_000) } else { reply }).await;
    let (resolved, read) = read_large(&server).await;
    assert_eq!(read.unwrap().len() as u64, resolved.layers[1].size_bytes);
    let asked = server.requests_of(&resolved.layers[1].digest.to_string());
    let ranges: Vec<_> = asked.iter().map(|request| request.header("range")).collect();
    assert_eq!(ranges, [None, Some("bytes=1000000-"), Some("bytes=2000000-")]);
}

#[tokio::test]
async fn without_ranges_a_layer_begins_again() {
    let server = with_large(false, |request, reply| if request.before < 2 { reply.cut_at(1_500_000) } else { reply }).await;
    let (resolved, read) = read_large(&server).await;
    assert_eq!(read.unwrap().len() as u64, resolved.layers[1].size_bytes);
    assert_eq!(server.requests_of(&resolved.layers[1].digest.to_string()).len(), 3);
}

#[tokio::test]
async fn a_stalled_layer_is_asked_for_again_and_then_given_up() {
    let server = with_large(true, |request, reply| if request.before == 0 { reply.stall_at(100_000) } else { reply }).await;
    assert!(read_large(&server).await.1.is_ok());

    let server = with_large(true, |_, reply| reply.stall_at(0)).await;
    let started = Instant::now();
    let error = read_large(&server).await.1.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(20));
    let text = Error::within(&error).unwrap().to_string();
    assert!(text.contains("(3 tries)") && text.contains("stalled for 1 s after 0 of"), "{text}");
}

#[tokio::test]
async fn a_layer_that_always_breaks_is_given_up() {
    let server = with_large(true, |_, reply| reply.cut_at(1000)).await;
    let error = Error::within(&read_large(&server).await.1.unwrap_err()).unwrap();
    assert!(error.is_transient() && error.to_string().contains("after 3000 of"), "{error}");
}

#[tokio::test]
async fn a_layer_with_other_content_is_refused() {
    let server = with_large(true, |_, mut reply| {
        reply.body[70_000] ^= 1;
        reply
    })
    .await;
    let (resolved, read) = read_large(&server).await;
    let error = read.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    let text = Error::within(&error).unwrap().to_string();
    assert!(text.contains("was promised") && text.contains(&resolved.layers[1].digest.to_string()), "{text}");

    let server = with_large(true, |_, mut reply| {
        reply.body.truncate(5000);
        reply
    })
    .await;
    let text = read_large(&server).await.1.unwrap_err().to_string();
    assert!(text.contains("has 5000 bytes where"), "{text}");
}

#[tokio::test]
async fn refusals_say_what_to_do_and_are_not_repeated() {
    for (status, says) in [
        (401, "does not accept the credentials"),
        (403, "ask its owner"),
        (404, "check the name and the tag"),
        (418, "answers status 418"),
    ] {
        let (text, error, server) =
            failure(move |request| request.path.starts_with("/v2/app").then(|| Reply::new(status, "secret"))).await;
        assert!(text.contains(says) && !error.is_transient(), "{text}");
        assert_eq!(server.requests_of("/v2/app").len(), 1);
    }
    let server = registry(true, |_| Some(Reply::new(401, "").with("WWW-Authenticate", "Basic realm=x"))).await;
    let text = resolve(&image_at(&server, None)).await.unwrap_err().to_string();
    assert!(text.contains("wants credentials"), "{text}");
}

#[tokio::test]
async fn failures_that_may_pass_are_tried_again() {
    for (status, says) in [(500, "status 500"), (503, "status 503"), (429, "no more requests")] {
        let server = registry(true, move |request| (request.before < 2).then(|| Reply::new(status, ""))).await;
        resolve(&image_at(&server, None)).await.unwrap();
        let (text, error, server) = failure(move |_| Some(Reply::new(status, ""))).await;
        assert!(text.contains(says) && error.is_transient(), "{text}");
        assert_eq!(server.requests_of("/v2/app").len(), 3);
    }
}

#[tokio::test]
async fn retry_after_is_kept_within_reason() {
    let server = registry(true, |request| (request.before == 0).then(|| Reply::new(429, "").with("Retry-After", "1"))).await;
    let started = Instant::now();
    resolve(&image_at(&server, None)).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));

    let (text, _, server) = failure(|_| Some(Reply::new(429, "").with("Retry-After", "3600"))).await;
    assert!(text.contains("try again in 3600 s"), "{text}");
    assert_eq!(server.requests_of("/v2/app").len(), 1);
}

#[tokio::test]
async fn nobody_at_home_is_said() {
    let server = registry(true, |_| None).await;
    let source = image_at(&server, None);
    let address = server.address;
    drop(server);
    tokio::task::yield_now().await;
    let text = resolve(&source).await.unwrap_err().to_string();
    assert!(text.contains(&address.to_string()) && text.contains("refused"), "{text}");
}

#[tokio::test]
async fn redirects_end() {
    let circle = |request: &Request| {
        let to = if request.path.ends_with('b') { "/a" } else { "/b" };
        Some(Reply::new(307, "").with("Location", to))
    };
    assert!(failure(circle).await.0.contains("in a circle"));
    let endless = |request: &Request| Some(Reply::new(302, "").with("Location", format!("{}x", request.path)));
    assert!(failure(endless).await.0.contains("more than 10 times"));
    for location in ["file:///etc/passwd", "http://", ""] {
        let nowhere = move |_: &Request| Some(Reply::new(302, "").with("Location", location));
        let text = failure(nowhere).await.0;
        assert!(text.contains("to nowhere") || text.contains("in a circle"), "{text}");
    }
}

/// Asks for a user name and password.
fn guarded(request: &Request) -> Option<Reply> {
    let wrong = request.header("authorization") != Some(BASIC);
    wrong.then(|| Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""))
}

#[tokio::test]
async fn credentials_stay_with_the_registry_when_it_redirects() {
    let kept = layout();
    let elsewhere = {
        let kept = kept.clone();
        Server::start(move |request| registry_reply(kept.path(), request, true)).await
    };
    let (address, kept) = (elsewhere.address, kept.clone());
    let server = Server::start(move |request| {
        let to_elsewhere = || Reply::new(307, "").with("Location", format!("http://{address}{}?signature=abc", request.path));
        let blob = request.path.contains("/blobs/").then(to_elsewhere);
        guarded(request).or(blob).or_else(|| registry_reply(kept.path(), request, true))
    })
    .await;
    let source = image_at(&server, Some(password()));
    let resolved = resolve(&source).await.unwrap();
    assert_layers(&source, &resolved, &three_layers("x")).await;
    assert_eq!(elsewhere.requests().len(), 4);
    assert!(elsewhere.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn mirrors_are_asked_first_and_never_with_credentials() {
    let kept = layout();
    let registry_of = |guard: bool| {
        let kept = kept.clone();
        Server::start(move |request| {
            guard.then(|| guarded(request)).flatten().or_else(|| registry_reply(kept.path(), request, true))
        })
    };
    let (good, broken, guarding, origin) = (
        registry_of(false).await,
        Server::start(|_| Some(Reply::new(500, ""))).await,
        registry_of(true).await,
        registry_of(true).await,
    );
    let with_mirrors = |mirrors: Vec<String>| {
        let mirrors = [(origin.address.to_string(), mirrors)].into();
        image_of(RegistrySettings { mirrors, ..settings() }, &format!("{}/app:1", origin.address), Some(password()))
    };
    let source = with_mirrors(vec![format!("http://{}/prefix", broken.address), good.address.to_string()]);
    let resolved = resolve(&source).await.unwrap();
    assert_layers(&source, &resolved, &three_layers("x")).await;
    assert!(broken.requests()[0].path.starts_with("/v2/prefix/app/manifests/"));
    assert!(origin.requests().is_empty() && broken.requests().len() < 5, "what a mirror has is not asked for elsewhere");

    let source = with_mirrors(vec![guarding.address.to_string()]);
    let resolved = resolve(&source).await.unwrap();
    assert_layers(&source, &resolved, &three_layers("x")).await;
    assert!(!origin.requests().is_empty());
    assert!(guarding.requests().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn a_token_is_fetched_and_used_and_renewed() {
    let auth = Server::start(|request| {
        let asked = request.path.starts_with("/token?service=reg&scope=repository%3Aapp%3Apull");
        let known = request.header("authorization") == Some(BASIC);
        let token = format!(r#"{{"token":"tok{}"}}"#, request.before);
        Some(if asked && known { Reply::new(200, token) } else { Reply::new(401, "") })
    })
    .await;
    let challenge = format!(r#"Bearer realm="http://{}/token",service="reg",scope="repository:app:pull""#, auth.address);
    // The first token is forgotten as soon as layers are asked for.
    let server = registry(true, move |request| {
        let token = request.header("authorization").unwrap_or_default();
        let good = token == "Bearer tok1" || (token == "Bearer tok0" && request.path.contains("/manifests/"));
        (!good).then(|| Reply::new(401, "").with("WWW-Authenticate", challenge.clone()))
    })
    .await;
    let source = image_at(&server, Some(password()));
    let resolved = resolve(&source).await.unwrap();
    assert_layers(&source, &resolved, &three_layers("x")).await;
    assert_eq!(auth.requests().len(), 2);
    assert!(server.requests().iter().all(|request| !request.header("authorization").unwrap_or_default().starts_with("Basic")));

    let error = resolve(&image_at(&server, None)).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { anonymous: true, .. }), "one's token is not another's: {error}");
}

#[tokio::test]
async fn a_token_server_that_misbehaves_is_no_way_in() {
    let token_server = |body: Vec<u8>| Server::start(move |_| Some(Reply::new(200, body.clone())));
    for (body, says) in [
        (b"{}".to_vec(), "not the JSON of a token"),
        (br#"{"token":"a\nb"}"#.to_vec(), "does not accept"),
        (vec![b' '; 1 << 20], "not the JSON of a token"),
    ] {
        let auth = token_server(body).await;
        let challenge = format!(r#"Bearer realm="http://{}/token""#, auth.address);
        let server = registry(true, move |_| Some(Reply::new(401, "").with("WWW-Authenticate", challenge.clone()))).await;
        let error = resolve(&image_at(&server, Some(password()))).await.unwrap_err();
        assert!(error.to_string().contains(says) && !error.to_string().contains(SECRET), "{error}");
    }
    for realm in ["http://example.com/token", "nowhere", "file:///x"] {
        let challenge = format!("Bearer realm=\"{realm}\"");
        let (text, ..) = failure(move |_| Some(Reply::new(401, "").with("WWW-Authenticate", challenge.clone()))).await;
        assert!(text.contains("for a token to"), "{text}");
    }
}

#[tokio::test]
async fn documents_are_bounded_and_checked() {
    let manifest = |content: Vec<u8>| {
        move |request: &Request| request.path.contains("/manifests/").then(|| Reply::new(200, content.clone()))
    };
    assert!(failure(manifest(vec![b' '; 5 << 20])).await.0.contains("larger than 4194304 bytes"));
    let server = registry(true, manifest(b"<html>hello</html>".to_vec())).await;
    let error = resolve(&image_at(&server, None)).await.unwrap_err().to_string();
    assert!(error.contains("its manifest is damaged"), "{error}");
    // Claims to be endless, and drips.
    let server = registry(true, |_| Some(Reply::new(200, vec![b' '; 10]).with("Content-Length", "1000000").stall_at(10))).await;
    let started = Instant::now();
    assert!(resolve(&image_at(&server, None)).await.unwrap_err().to_string().contains("no whole answer within"));
    assert!(started.elapsed() < Duration::from_secs(20));
    // By digest, another manifest is none.
    let server = registry(true, manifest(br#"{"schemaVersion":2}"#.to_vec())).await;
    let name = format!("{}/app@sha256:{}", server.address, "0".repeat(64));
    let error = resolve(&image_of(settings(), &name, None)).await.unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error}");
}

#[tokio::test]
async fn a_reader_that_is_dropped_ends_its_download() {
    let server = with_large(true, |_, reply| reply.stall_at(10)).await;
    let source = image_at(&server, None);
    let resolved = resolve(&source).await.unwrap();
    let layer: &LayerBlob = &resolved.layers[1];
    drop(source.open(layer).await.unwrap());
    assert_eq!(server.requests_of(&layer.digest.to_string()).len(), 1);
}
