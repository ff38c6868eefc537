//! What a sandbox may reach.

use std::io::Read as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::cli::{Network, NetworkArgs};
use crate::client::{Client, encode_segment};
use crate::failure::{Failure, Result};
use crate::output::{self, field, harmless};

/// Most bytes read of a policy; the server takes no larger request.
const POLICY_BYTES_MAX: u64 = 1024 * 1024;

/// `network …`.
pub(crate) async fn run(client: &Client, command: Network, json: bool) -> Result<()> {
    let path = |id: &str| format!("/v1/sandboxes/{}/network", encode_segment(id));
    let answer = match command {
        Network::Show(one) => client.get(&path(&one.id)).await?,
        Network::Set(options) => {
            let policy = match &options.file {
                Some(file) => read_policy(file)?,
                None => policy(&options.network).unwrap_or_else(|| json!({})),
            };
            client.put(&path(&options.id), &policy).await?
        }
    };
    if json { output::document(&answer) } else { rows(&answer).iter().try_for_each(|row| output::line(row)) }
}

/// The policy that options describe; `None` when they say nothing.
pub(crate) fn policy(options: &NetworkArgs) -> Option<Value> {
    let NetworkArgs { allow, deny, no_internet } = options;
    let said = *no_internet || !allow.is_empty() || !deny.is_empty();
    said.then(|| json!({ "internet": !no_internet, "allow": allow, "deny": deny }))
}

fn read_policy(path: &Path) -> Result<Value> {
    let shown = path.display();
    let wrong = |error: &dyn std::fmt::Display| Failure::new(format!("cannot read the policy {shown}: {error}"));
    let source: Box<dyn std::io::Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).map_err(|error| wrong(&error))?)
    };
    let mut text = String::new();
    source.take(POLICY_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| wrong(&error))?;
    if text.len() as u64 > POLICY_BYTES_MAX {
        return Err(wrong(&format!("it has more than {POLICY_BYTES_MAX} bytes")));
    }
    // The parser's own words repeat what they found, and a header's value may be among it.
    let place = |error: serde_json::Error| wrong(&format!("line {} is no JSON", error.line()));
    let document: Value = serde_json::from_str(&text).map_err(place)?;
    // What `network show --json` prints can be given back as it is.
    Ok(document.get("network").cloned().unwrap_or(document))
}

/// For people: one thing a line.
fn rows(answer: &Value) -> Vec<String> {
    let policy = answer.get("network").unwrap_or(&Value::Null);
    let open = policy.get("internet").and_then(Value::as_bool).unwrap_or(false);
    let mut rows = vec![
        format!("said by   {}", field(answer, "source")),
        format!("internet  {}", if open { "yes" } else { "no, only what is allowed" }),
    ];
    for list in ["allow", "deny"] {
        for rule in policy.get(list).and_then(Value::as_array).into_iter().flatten() {
            rows.push(format!("{list:<8}  {}", rule_text(rule)));
        }
    }
    for rule in policy.get("headers").and_then(Value::as_array).into_iter().flatten() {
        let names = rule.get("set").and_then(Value::as_object).map(|set| set.keys().cloned().collect::<Vec<_>>().join(", "));
        rows.push(format!("header    {} for {}", names.unwrap_or_default(), texts(rule.get("hosts"))));
    }
    for (name, what) in
        [("inBytesPerSecond", "bytes a second in"), ("outBytesPerSecond", "bytes a second out"), ("connections", "connections")]
    {
        if let Some(limit) = policy.pointer(&format!("/limits/{name}")).and_then(Value::as_u64) {
            rows.push(format!("limit     {limit} {what}"));
        }
    }
    rows.iter().map(|row| harmless(row)).collect()
}

fn rule_text(rule: &Value) -> String {
    if let Some(text) = rule.as_str() {
        return text.to_owned();
    }
    let mut text = field(rule, "to");
    for (name, before) in [("ports", " ports "), ("except", " except ")] {
        let list = texts(rule.get(name));
        if !list.is_empty() {
            text.push_str(before);
            text.push_str(&list);
        }
    }
    match rule.get("transport").and_then(Value::as_str) {
        Some(transport) => format!("{text} over {transport}"),
        None => text,
    }
}

fn texts(list: Option<&Value>) -> String {
    let texts = list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    texts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn options_become_a_policy_only_when_they_say_something() {
        assert_eq!(policy(&NetworkArgs::default()), None);
        let options = NetworkArgs { allow: vec!["a.com".to_owned()], deny: vec![], no_internet: true };
        assert_eq!(policy(&options).unwrap(), json!({"internet": false, "allow": ["a.com"], "deny": []}));
        let options = NetworkArgs { deny: vec!["*:25".to_owned()], ..NetworkArgs::default() };
        assert_eq!(policy(&options).unwrap(), json!({"internet": true, "allow": [], "deny": ["*:25"]}));
    }

    #[test]
    fn a_policy_is_read_from_a_file_and_its_secrets_are_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.json");
        std::fs::write(&file, r#"{"network": {"internet": false}, "source": "sandbox"}"#).unwrap();
        assert_eq!(read_policy(&file).unwrap(), json!({"internet": false}));
        std::fs::write(&file, r#"{"internet": false}"#).unwrap();
        assert_eq!(read_policy(&file).unwrap(), json!({"internet": false}));
        std::fs::write(&file, "{\n\"a\": secret-word").unwrap();
        let error = read_policy(&file).unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("secret"), "{error}");
        assert!(read_policy(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn a_policy_is_shown_one_thing_a_line() {
        let answer = json!({"source": "sandbox", "network": {
            "internet": false,
            "allow": ["a.com:443", {"to": "*.b.com", "except": ["c.b.com"], "ports": ["80", "443"], "transport": "tcp"}],
            "deny": ["1.2.3.4"],
            "headers": [{"hosts": ["a.com"], "set": {"Authorization": {"isSet": true}}}],
            "limits": {"connections": 5},
        }});
        let expected = [
            "said by   sandbox",
            "internet  no, only what is allowed",
            "allow     a.com:443",
            "allow     *.b.com ports 80, 443 except c.b.com over tcp",
            "deny      1.2.3.4",
            "header    Authorization for a.com",
            "limit     5 connections",
        ];
        assert_eq!(rows(&answer), expected);
    }
}
