//! Network policies over HTTP: set with every object, shown without secrets, refused with the entry's name.

use sandbank_driver::{DeniedDestination, DriverEvent, Traffic};
use sandbank_model::{Floor, NetworkPlan, NetworkPolicy};
use serde_json::{Value, json};

use crate::support::{ADMIN, Server};

fn policy() -> Value {
    json!({
        "internet": false,
        "allow": ["Packages.Example.com:443", {"to": "20.1.0.0/16", "ports": [443, "8000-8100"], "transport": "tcp"},
                  {"to": "*.example.com", "except": ["evil.example.com"]}],
        "deny": ["1.2.3.4"],
        "headers": [{"hosts": ["packages.example.com"], "paths": ["/simple"], "set": {"Authorization": "Bearer hunter2"}}],
        "limits": {"inBytesPerSecond": 1000000, "connections": 50},
    })
}

/// As it is shown: in order, complete, and without the secret.
fn shown() -> Value {
    json!({
        "internet": false,
        "allow": ["packages.example.com:443", {"to": "20.1.0.0/16", "ports": ["443", "8000-8100"], "transport": "tcp"},
                  {"to": "*.example.com", "except": ["evil.example.com"]}],
        "deny": ["1.2.3.4"],
        "headers": [{"hosts": ["packages.example.com"], "paths": ["/simple"], "set": {"Authorization": {"isSet": true}}}],
        "limits": {"inBytesPerSecond": 1000000, "connections": 50},
    })
}

fn closed() -> Value {
    json!({"internet": false, "allow": [], "deny": [], "headers": []})
}

async fn network(server: &Server, key: &str, id: &str) -> (Value, String) {
    let answer = server.get(key, &format!("/v1/sandboxes/{id}/network")).await.expect(200);
    (answer["network"].clone(), answer["source"].as_str().unwrap().to_owned())
}

fn id_of(answer: &Value) -> String {
    answer["sandbox"]["sandboxId"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_policy_goes_in_with_a_create_and_comes_out_without_its_secrets() {
    let server = Server::new().await;
    let user = server.user("ann").await;
    let made = server.post(&user, "/v1/sandboxes", json!({"image": "host", "network": policy()})).await.expect(201);
    assert_eq!(made["sandbox"]["network"], shown());
    let id = id_of(&made);
    assert_eq!(network(&server, &user, &id).await, (shown(), "sandbox".to_owned()));
    let single = server.get(&user, &format!("/v1/sandboxes/{id}")).await.expect(200);
    assert_eq!(single["sandbox"]["network"], shown());
    let list = server.get(&user, "/v1/sandboxes").await.expect(200);
    assert!(list["items"][0]["network"].is_null());
    // What was read can be written: the value that nobody sees stays.
    let path = format!("/v1/sandboxes/{id}/network");
    assert_eq!(server.put(&user, &path, shown()).await.expect(200)["network"], shown());
    for answer in [&made, &single, &list] {
        assert!(!answer.to_string().contains("hunter2"));
    }
    let plain = id_of(&server.post(&user, "/v1/sandboxes", json!({"image": "host"})).await.expect(201));
    let open = json!({"internet": true, "allow": [], "deny": [], "headers": []});
    assert_eq!(network(&server, &user, &plain).await, (open, "server".to_owned()));
}

#[tokio::test]
async fn a_policy_is_replaced_as_a_whole() {
    let server = Server::new().await;
    let user = server.user("ann").await;
    let made = server.post(&user, "/v1/sandboxes", json!({"image": "host", "network": policy()})).await.expect(201);
    let id = id_of(&made);
    let path = format!("/v1/sandboxes/{id}/network");
    let answer = server.put(&user, &path, json!({"internet": false})).await.expect(200);
    assert_eq!((answer["network"].clone(), answer["source"].clone()), (closed(), json!("sandbox")));
    assert_eq!(server.faults.network(id.parse().unwrap()).unwrap(), NetworkPlan::closed());
    server.put(&user, &path, json!({})).await.expect(200);
    let open = <NetworkPolicy>::default().plan(&Floor::default());
    assert_eq!(server.faults.network(id.parse().unwrap()).unwrap(), open);
    let events = server.get(&user, &format!("/v1/sandboxes/{id}/events")).await.expect(200);
    assert_eq!(events["items"].as_array().unwrap().iter().filter(|event| event["type"] == "network-changed").count(), 2);
    let other = server.user("bob").await;
    server.put(&other, &path, json!({})).await.expect(404);
    server.get(&other, &path).await.expect(404);
    server.delete(&user, &format!("/v1/sandboxes/{id}")).await.expect(202);
    assert!(matches!(server.put(&user, &path, json!({})).await.status.as_u16(), 404 | 409));
}

#[tokio::test]
async fn pools_templates_claims_and_forks_take_a_policy() {
    let server = Server::new().await;
    let user = server.user("ann").await;
    let only = |name: &str| json!({"internet": false, "allow": [name], "deny": [], "headers": []});
    let template = json!({"name": "t", "image": "host", "network": policy()});
    let made = server.post(&user, "/v1/sandbox-templates", template).await.expect(201);
    assert_eq!(made["template"]["spec"]["network"], shown());
    assert!(!made.to_string().contains("hunter2"));
    let from = server.post(&user, "/v1/sandboxes", json!({"templateName": "t"})).await.expect(201);
    assert_eq!(network(&server, &user, &id_of(&from)).await, (shown(), "template".to_owned()));
    server.pool(&user, "plain", 1).await;
    let pool = json!({"name": "p", "templateName": "t", "replicas": 0, "network": only("pool.example")});
    let made = server.post(&user, "/v1/sandboxpools", pool).await.expect(201);
    assert_eq!(made["template"]["network"], only("pool.example"));
    let claim = json!({"poolName": "p", "whenEmpty": "create"});
    let claimed = server.post(&user, "/v1/sandboxes", claim).await.expect(201);
    assert_eq!(network(&server, &user, &id_of(&claimed)).await, (only("pool.example"), "template".to_owned()));
    let changed = server.put(&user, "/v1/sandboxpools/p", json!({"network": only("changed.example")})).await.expect(200);
    assert_eq!(changed["template"]["network"], only("changed.example"));
    let claim = json!({"poolName": "plain", "network": only("claim.example")});
    let claimed = id_of(&server.post(&user, "/v1/sandboxes", claim).await.expect(201));
    assert_eq!(network(&server, &user, &claimed).await, (only("claim.example"), "sandbox".to_owned()));
    let fork = server.call(&user, "POST", &format!("/v1/sandboxes/{claimed}/fork"), Some(json!({"network": closed()}))).await;
    let forked = id_of(&fork.expect(201)["items"][0]);
    assert_eq!(network(&server, &user, &forked).await, (closed(), "sandbox".to_owned()));
}

#[tokio::test]
async fn an_installation_s_template_keeps_its_policy_through_yaml() {
    let server = Server::new().await;
    let pod = "spec:\n  containers: [{image: host}]\n";
    let spec = json!({"version": "1.0.0", "template": pod, "network": policy()});
    let made = server.post(ADMIN, "/v1/admin/sandbox-templates", json!({"name": "t", "spec": spec})).await.expect(201);
    let crd = made["template"]["crdYaml"].as_str().unwrap();
    assert!(crd.contains("isSet: true") && !crd.contains("hunter2"), "{crd}");
    let next = json!({"crdYaml": crd.replace("1.0.0", "1.0.1")});
    let updated = server.put(ADMIN, "/v1/admin/sandbox-templates/t", next).await.expect(200);
    assert_eq!(updated["template"]["spec"]["network"], shown());
}

#[tokio::test]
async fn an_admin_sets_a_namespace_s_default() {
    let server = Server::new().await;
    let user = server.user("ann").await;
    let path = "/v1/admin/tenants/t-team-ann/network";
    let answer = server.put(ADMIN, path, json!({"internet": false})).await.expect(200);
    assert_eq!(answer["tenant"]["network"], closed());
    let id = server.sandbox(&user).await;
    assert_eq!(network(&server, &user, &id).await, (closed(), "tenant".to_owned()));
    assert!(server.delete(ADMIN, path).await.expect(200)["tenant"]["network"].is_null());
    assert_eq!(network(&server, &user, &id).await.1, "server");
    server.put(&user, path, json!({})).await.expect(403);
    server.put(ADMIN, "/v1/admin/tenants/nobody/network", json!({})).await.expect(404);
}

#[tokio::test]
async fn wrong_policies_are_400_and_name_the_entry() {
    let server = Server::new().await;
    let id = server.sandbox(ADMIN).await;
    let long = vec!["1.2.3.4"; 4097];
    for (network, expect) in [
        (json!({"allow": ["a.com", "10.0.0.0/33"]}), "network.allow[1]: \\\"10.0.0.0/33\\\" is no range"),
        (json!({"allow": [{"to": "a.com", "ports": ["0"]}]}), "network.allow[0]: \\\"0\\\" is no port"),
        (json!({"allow": [{"to": "a.com", "ports": [70000]}]}), "network.allow[0]: \\\"70000\\\" is no port"),
        (json!({"allow": [{"to": "a.com", "transport": "sctp"}]}), "allow[0].transport"),
        (json!({"allow": [{"ports": ["1"]}]}), "missing field `to`"),
        (json!({"allow": [5]}), "expected a rule"),
        (json!({"deny": ["https://evil.com"]}), "network.deny[0]: \\\"https://evil.com\\\" is a URL"),
        (json!({"deny": ["evil.com:22"]}), "network.deny[0]: a name can be denied"),
        (json!({"allow": long}), "network.allow: allow and deny hold 4097"),
        (json!({"alow": []}), "unknown field `alow`"),
        (json!({"headers": [{"hosts": ["a b"], "set": {"A": "x"}}]}), "network.headers[0].hosts[0]"),
        (json!({"headers": [{"hosts": ["a.com"], "set": {"Host": "secret-word"}}]}), "network.headers[0].set.Host: "),
        (json!({"headers": [{"hosts": ["a.com"], "set": {"A": 1234567}}]}), "write it in quotes"),
        (json!({"headers": [{"hosts": ["a.com"], "set": {"A": "secret-word\n"}}]}), "network.headers[0].set.A: "),
        (json!({"headers": [{"hosts": ["a.com"], "set": {"A": {"isSet": true}}}]}), "no value to keep"),
        (json!({"limits": {"connections": 0}}), "network.limits.connections"),
        (json!({"limits": {"inBytesPerSecond": 5}}), "network.limits.inBytesPerSecond"),
    ] {
        for (method, path, body) in [
            ("POST", "/v1/sandboxes".to_owned(), json!({"image": "host", "network": network})),
            ("POST", "/v1/sandbox-templates".to_owned(), json!({"name": "t", "image": "host", "network": network})),
            ("PUT", format!("/v1/sandboxes/{id}/network"), network.clone()),
        ] {
            let text = server.call(ADMIN, method, &path, Some(body)).await.expect(400).to_string();
            assert!(text.contains(expect), "{method} {path} {network}: {text}");
            assert!(!text.contains("secret-word") && !text.contains("1234567"), "{text}");
        }
    }
}

#[tokio::test]
async fn traffic_and_denials_are_shown() {
    let server = Server::new().await;
    let id = server.sandbox(ADMIN).await;
    server.faults.traffic(id.parse().unwrap(), Traffic { in_bytes: 5, out_bytes: 6 });
    let metrics = server.get(ADMIN, &format!("/v1/sandboxes/{id}/metrics")).await.expect(200)["metrics"].clone();
    assert_eq!((metrics["networkInBytes"].as_u64(), metrics["networkOutBytes"].as_u64()), (Some(5), Some(6)));
    let destinations = vec![DeniedDestination { address: [10, 0, 0, 1].into(), port: 22 }];
    server.faults.emit(DriverEvent::Denied { id: id.parse().unwrap(), destinations });
    for _ in 0..500 {
        let events = server.get(ADMIN, &format!("/v1/sandboxes/{id}/events")).await.expect(200);
        let denied = events["items"].as_array().unwrap().iter().find(|event| event["type"] == "network-denied").cloned();
        if let Some(event) = denied {
            assert_eq!(event["detail"], "1 refused: 10.0.0.1:22");
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the denial was never told");
}
