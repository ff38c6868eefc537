//! What a cached layer is found by: pure functions of what went into it.

use std::fmt::Write as _;

use sandbank_model::{Layer, TenantId};
use sha2::{Digest, Sha256};

use crate::meaning::Action;

/// Changes when a step comes to mean something else, so that older layers are not taken for it.
const VERSION: &str = "sandbank-build-1";

/// A file, directory or link that is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedFile<'a> {
    /// Where it goes, below the destination.
    pub path: &'a str,
    /// Permission bits.
    pub mode: u32,
    /// What it is, in one letter (`f`, `d`, `l`), and its content: a digest, nothing, or a link's target.
    pub kind: char,
    /// See `kind`.
    pub content: &'a str,
}

/// Adds a field that no other fields can imitate: its length goes before it.
fn field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_be_bytes());
    hash.update(bytes);
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What a step sees of the image so far: its layers, and whether the host lies beneath them. Not its configuration: what of it
/// matters to a step is in the step's [`Action`].
#[must_use]
pub fn file_system_identity(layers: &[Layer], on_host: bool) -> String {
    let mut hash = Sha256::new();
    field(&mut hash, &[u8::from(on_host)]);
    layers.iter().for_each(|layer| field(&mut hash, layer.id.as_bytes()));
    hex(hash)
}

/// The content of what is copied: paths, modes, contents; not the times.
#[must_use]
pub fn content_hash<'a>(files: impl IntoIterator<Item = CopiedFile<'a>>) -> String {
    let mut hash = Sha256::new();
    for file in files {
        field(&mut hash, file.path.as_bytes());
        field(&mut hash, &file.mode.to_be_bytes());
        field(&mut hash, file.kind.to_string().as_bytes());
        field(&mut hash, file.content.as_bytes());
    }
    hex(hash)
}

/// The key of the layer that `action` makes on a file system of this identity. `content`: see [`content_hash`], empty where
/// nothing is copied. One tenant's layers are never another's.
#[must_use]
pub fn cache_key(tenant: TenantId, parent: &str, action: &Action, content: &str) -> String {
    let mut hash = Sha256::new();
    field(&mut hash, VERSION.as_bytes());
    field(&mut hash, tenant.uuid().as_bytes());
    field(&mut hash, parent.as_bytes());
    // The action's maps are ordered, so that its text is the same for the same action.
    field(&mut hash, serde_json::to_string(action).unwrap_or_default().as_bytes());
    field(&mut hash, content.as_bytes());
    hex(hash)
}
