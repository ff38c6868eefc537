//! `env`: the export lines that point a program at this server.

use serde_json::{Map, Value};

use crate::cli::{Env, Global};
use crate::client::Client;
use crate::failure::{Failure, Result};
use crate::output;

/// The dialects that there are.
const DIALECTS: [&str; 1] = ["native"];

/// `env DIALECT`.
pub(crate) fn run(global: &Global, options: &Env, json: bool) -> Result<()> {
    if !DIALECTS.contains(&options.dialect.as_str()) {
        return Err(Failure::usage(format!("there is no dialect {:?}; there is: {}", options.dialect, DIALECTS.join(", "))));
    }
    let client = Client::find(global)?;
    let variables = native(client.base(), client.key());
    if json {
        let object: Map<String, Value> =
            variables.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
        return output::document(&Value::Object(object));
    }
    variables.iter().try_for_each(|(name, value)| output::line(&format!("export {name}={}", quoted(value))))
}

/// What our own command line and AgentBox's clients read.
fn native(base: &str, key: &str) -> Vec<(&'static str, String)> {
    vec![
        ("SANDBANK_URL", base.to_owned()),
        ("SANDBANK_KEY", key.to_owned()),
        ("AGENTBOX_BASE_URL", format!("{base}/v1")),
        ("AGENTBOX_API_KEY", key.to_owned()),
    ]
}

/// Text as one word of a POSIX shell.
pub(crate) fn quoted(text: &str) -> String {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./:@%+,".contains(&b));
    if plain { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_shell_would_act_on_is_left_bare() {
        assert_eq!(quoted("http://127.0.0.1:7070"), "http://127.0.0.1:7070");
        assert_eq!(quoted("a b$(reboot)'c"), r"'a b$(reboot)'\''c'");
        assert_eq!(quoted(""), "''");
    }
}
