//! `cp`: files and directories into and out of a sandbox.

pub(super) mod download;
mod upload;

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::cli::Cp;
use crate::client::{Client, encode_query, encode_segment};
use crate::failure::{Failure, Result};
use crate::output;

/// Length of a sandbox id; a cluster's id and a dot may stand before it (native.md §4).
const ID_LEN: usize = 36;

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// Here.
    Local(PathBuf),
    /// In a sandbox.
    Inside { id: String, path: String },
    /// Standard input or output.
    Stdio,
}

impl End {
    /// `ID:PATH`, `-`, or a path here. A path here that looks like the first is written with `./` before it.
    fn parse(text: &str) -> Self {
        if text == "-" {
            return Self::Stdio;
        }
        match text.split_once(':') {
            Some((id, path)) if is_sandbox_id(id) => {
                let path = if path.is_empty() { "." } else { path };
                Self::Inside { id: id.to_owned(), path: path.to_owned() }
            }
            _ => Self::Local(PathBuf::from(text)),
        }
    }
}

fn is_sandbox_id(text: &str) -> bool {
    let Some(start) = text.len().checked_sub(ID_LEN) else { return false };
    let (cluster, id) = match text.split_at_checked(start) {
        Some(("", id)) => ("", id),
        Some((cluster, id)) => match cluster.strip_suffix('.') {
            Some(cluster) => (cluster, id),
            None => return false,
        },
        None => return false,
    };
    !cluster.contains('/') && id.parse::<sandbank_model::SandboxId>().is_ok()
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Copied {
    files: u64,
    directories: u64,
    bytes: u64,
    /// Symbolic links, devices and the like, which a copy leaves out.
    skipped: u64,
}

/// The files of one sandbox.
struct Inside<'a> {
    client: &'a Client,
    id: &'a str,
    user: Option<&'a str>,
}

impl Inside<'_> {
    /// Address of a file operation; `operation` is "" for content, else "/stat" and so on.
    fn address(&self, operation: &str, path: &str, more: &str) -> String {
        let user = self.user.map_or_else(String::new, |user| format!("&user={}", encode_query(user)));
        format!("/v1/sandboxes/{}/files{operation}?path={}{user}{more}", encode_segment(self.id), encode_query(path))
    }

    /// `file`, `directory`, ... ; `None` when there is nothing.
    async fn kind(&self, path: &str) -> Result<Option<String>> {
        let answer = self.client.get_if_any(&self.address("/stat", path, "")).await?;
        let Some(answer) = answer else {
            // The sandbox itself may be missing, and that must not look like a missing file.
            self.client.get(&format!("/v1/sandboxes/{}", encode_segment(self.id))).await?;
            return Ok(None);
        };
        Ok(answer.pointer("/file/type").and_then(Value::as_str).map(str::to_owned))
    }
}

/// `cp SRC DST`.
pub(crate) async fn run(client: &Client, options: &Cp, json: bool) -> Result<()> {
    let user = options.user.as_deref();
    let copied = match (End::parse(&options.source), End::parse(&options.target)) {
        (End::Inside { id, path }, target @ (End::Local(_) | End::Stdio)) => {
            let inside = Inside { client, id: &id, user };
            match target {
                End::Local(target) => download::copy(&inside, &path, &target).await?,
                _ => download::to_stdout(&inside, &path).await?,
            }
        }
        (End::Local(source), End::Inside { id, path }) => upload::copy(&Inside { client, id: &id, user }, &source, &path).await?,
        (End::Stdio, End::Inside { id, path }) => upload::from_stdin(&Inside { client, id: &id, user }, &path).await?,
        (End::Inside { .. }, End::Inside { .. }) => {
            return Err(Failure::usage("both ends are in sandboxes: copy to a local path first"));
        }
        _ => {
            return Err(Failure::usage(
                "neither end is in a sandbox: write one of them as ID:PATH, with the id as `sandbank ps` shows it",
            ));
        }
    };
    if copied.skipped > 0 {
        output::note(&format!("sandbank: {} symbolic links and special files were left out", copied.skipped));
    }
    if json && options.target != "-" {
        output::document(&json!({
            "files": copied.files, "directories": copied.directories, "bytes": copied.bytes, "skipped": copied.skipped,
        }))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_in_a_sandbox_is_told_from_a_path() {
        let id = "019ab3c4-5d6e-7f80-9a1b-2c3d4e5f6071";
        let inside = |id: &str, path: &str| End::Inside { id: id.to_owned(), path: path.to_owned() };
        assert_eq!(End::parse(&format!("{id}:/tmp/a:b")), inside(id, "/tmp/a:b"));
        assert_eq!(End::parse(&format!("{id}:")), inside(id, "."));
        assert_eq!(End::parse(&format!("local.{id}:x")), inside(&format!("local.{id}"), "x"));
        assert_eq!(End::parse("-"), End::Stdio);
        for local in ["a:b", "./x", &format!("./{id}:x"), &format!("local{id}:x"), "äöü:x", id] {
            assert_eq!(End::parse(local), End::Local(PathBuf::from(local)), "{local}");
        }
    }
}
