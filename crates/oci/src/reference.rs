//! Names of images in registries, read and shown as Docker does (`distribution/reference`, `grammar` in its `reference.go`).

use std::fmt;

use crate::Digest;
use crate::error::InvalidReference;

/// The registry that Docker means when a name says none.
pub const DOCKER_REGISTRY: &str = "docker.io";
/// Where repositories without a user lie on the default registry.
const OFFICIAL: &str = "library/";
const TAG_DEFAULT: &str = "latest";
const TAG_LEN_MAX: usize = 128;

/// One image of one registry: host, repository, and a tag, a digest, or both. Where both are given the digest decides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Most characters of a name without tag and digest, and the registry's host among them.
    pub const NAME_LEN_MAX: usize = 255;
    /// Most characters of a whole reference.
    pub const LEN_MAX: usize = Self::NAME_LEN_MAX + 1 + TAG_LEN_MAX + 1 + 71;

    /// Reads `[HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]`.
    ///
    /// The first part is a host when it holds a dot or a colon or is `localhost`. A name without a host belongs to
    /// `default_registry`, below `library/` when it has one part only. Without tag and digest, the tag is `latest`.
    pub fn parse(text: &str, default_registry: &str) -> Result<Self, InvalidReference> {
        let len = text.chars().count();
        if len == 0 || len > Self::LEN_MAX {
            return Err(InvalidReference::Length { max: Self::LEN_MAX, len });
        }
        let shown = || text.to_owned();
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|source| InvalidReference::Digest { name: shown(), source })?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (name, tag) = split_tag(rest);
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(InvalidReference::Tag { name: shown() });
        }
        if Digest::from_hex(name).is_some() && tag.is_none() && digest.is_none() {
            return Err(InvalidReference::BareId { name: shown() });
        }
        let (registry, repository) = split_registry(name, default_registry);
        if !is_host(&registry) {
            return Err(InvalidReference::Registry { name: shown(), host: registry });
        }
        check_repository(&repository, text)?;
        let len = registry.len() + 1 + repository.len();
        if len > Self::NAME_LEN_MAX {
            return Err(InvalidReference::Length { max: Self::NAME_LEN_MAX, len });
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| TAG_DEFAULT.to_owned()));
        Ok(Self { registry, repository, tag, digest })
    }

    /// The registry that `host` means, spelled as [`Reference::registry`] spells it; `None` when no reference can name it: it is
    /// no host, or has neither a dot nor a port and is not `localhost`.
    #[must_use]
    pub fn registry_of(host: &str) -> Option<String> {
        let named = host.len() <= Self::NAME_LEN_MAX && (host.contains(['.', ':']) || host == "localhost");
        (named && is_host(host)).then(|| canonical_host(host))
    }

    /// The registry's host, with its port if it has one.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository, without the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same repository at `digest`.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// The shortest spelling that [`Reference::parse`] reads as this one: `python:3.12-slim`.
    #[must_use]
    pub fn familiar(&self, default_registry: &str) -> String {
        let full = self.to_string();
        let Some(without_registry) = full.strip_prefix(&format!("{}/", self.registry)) else { return full };
        let without_library = without_registry.strip_prefix(OFFICIAL).unwrap_or(without_registry);
        [without_library, without_registry]
            .into_iter()
            .find(|short| Self::parse(short, default_registry).as_ref() == Ok(self))
            .map_or(full.clone(), str::to_owned)
    }

    /// What a registry is asked for: the digest, else the tag.
    pub(crate) fn manifest_key(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => TAG_DEFAULT.to_owned(),
        }
    }
}

/// The canonical spelling, with registry and tag.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// A tag follows the last colon after the last slash; an earlier colon is a port's.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    let after_slash = text.rfind('/').map_or(0, |slash| slash + 1);
    match text[after_slash..].find(':') {
        Some(colon) => (&text[..after_slash + colon], Some(&text[after_slash + colon + 1..])),
        None => (text, None),
    }
}

fn split_registry(name: &str, default_registry: &str) -> (String, String) {
    match name.split_once('/') {
        Some((host, repository)) if host.contains(['.', ':']) || host == "localhost" => {
            let registry = canonical_host(host);
            let official = registry == DOCKER_REGISTRY && !repository.contains('/');
            (registry, if official { format!("{OFFICIAL}{repository}") } else { repository.to_owned() })
        }
        Some(_) => (default_registry.to_owned(), name.to_owned()),
        None => (default_registry.to_owned(), format!("{OFFICIAL}{name}")),
    }
}

/// In lower case, and one of Docker's three names of one registry.
fn canonical_host(host: &str) -> String {
    match host.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" => DOCKER_REGISTRY.to_owned(),
        host => host.to_owned(),
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let rest = |b: u8| word(b) || b == b'.' || b == b'-';
    (1..=TAG_LEN_MAX).contains(&tag.len()) && word(tag.as_bytes()[0]) && tag.bytes().all(rest)
}

/// `example.com`, `localhost:5000`, `[::1]:5000`.
pub(crate) fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port_ok =
        port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0));
    let name_ok = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            !label.is_empty() && label.bytes().all(plain) && !label.starts_with('-') && !label.ends_with('-')
        }),
    };
    port_ok && name_ok
}

fn check_repository(repository: &str, whole: &str) -> Result<(), InvalidReference> {
    if repository.bytes().any(|b| b.is_ascii_uppercase()) && repository.to_ascii_lowercase().split('/').all(is_component) {
        let suggestion = whole.replace(repository.strip_prefix(OFFICIAL).unwrap_or(repository), &repository.to_ascii_lowercase());
        let suggestion = suggestion.strip_prefix(OFFICIAL).unwrap_or(&suggestion).to_owned();
        return Err(InvalidReference::UpperCase { name: whole.to_owned(), suggestion });
    }
    if repository.split('/').all(is_component) { Ok(()) } else { Err(InvalidReference::Repository { name: whole.to_owned() }) }
}

/// Runs of `a-z0-9` with `.`, `_`, `__` or any number of `-` between them.
fn is_component(component: &str) -> bool {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators_ok = component
        .split(letter)
        .filter(|between| !between.is_empty())
        .all(|between| matches!(between, "." | "_" | "__") || between.bytes().all(|b| b == b'-'));
    component.starts_with(letter) && component.ends_with(letter) && separators_ok
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Result<Reference, InvalidReference> {
        Reference::parse(text, DOCKER_REGISTRY)
    }

    #[test]
    fn names_normalise_as_dockers_do() {
        let at = format!("@sha256:{HEX}");
        for (text, canonical) in [
            ("python:3.12-slim".to_owned(), "docker.io/library/python:3.12-slim".to_owned()),
            ("python".to_owned(), "docker.io/library/python:latest".to_owned()),
            ("user/app".to_owned(), "docker.io/user/app:latest".to_owned()),
            ("docker.io/python".to_owned(), "docker.io/library/python:latest".to_owned()),
            ("index.docker.io/user/app:1".to_owned(), "docker.io/user/app:1".to_owned()),
            ("localhost/x".to_owned(), "localhost/x:latest".to_owned()),
            ("localhost:5000/x".to_owned(), "localhost:5000/x:latest".to_owned()),
            ("[::1]:5000/x:y".to_owned(), "[::1]:5000/x:y".to_owned()),
            ("GHCR.io/a/b:V1".to_owned(), "ghcr.io/a/b:V1".to_owned()),
            (format!("ghcr.io/a/b{at}"), format!("ghcr.io/a/b{at}")),
            (format!("a_b/c__d/e--f:1{at}"), format!("docker.io/a_b/c__d/e--f:1{at}")),
        ] {
            assert_eq!(parse(&text).unwrap().to_string(), canonical, "{text}");
        }
        assert_eq!(Reference::parse("x", "registry.corp:5000").unwrap().to_string(), "registry.corp:5000/library/x:latest");
    }

    #[test]
    fn the_familiar_form_is_short() {
        for (text, familiar) in [
            ("docker.io/library/python:3", "python:3"),
            ("docker.io/user/app", "user/app:latest"),
            ("docker.io/library/x/y", "library/x/y:latest"),
            ("docker.io/a.b/c", "docker.io/a.b/c:latest"),
            ("quay.io/library/x", "quay.io/library/x:latest"),
        ] {
            assert_eq!(parse(text).unwrap().familiar(DOCKER_REGISTRY), familiar);
        }
        // On a default registry of one's own, a name of one part lies below library/, so this one is not `x`.
        let own = Reference::parse("registry.corp/x", "registry.corp").unwrap();
        assert_eq!(own.familiar("registry.corp"), "registry.corp/x:latest");
    }

    #[test]
    fn a_registrys_host_is_spelled_as_references_spell_it() {
        for (host, registry) in [
            ("ghcr.io", "ghcr.io"),
            ("GHCR.io", "ghcr.io"),
            ("index.docker.io", "docker.io"),
            ("Registry-1.Docker.IO", "docker.io"),
            ("localhost", "localhost"),
            ("reg:5000", "reg:5000"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            assert_eq!(Reference::registry_of(host).as_deref(), Some(registry));
            assert_eq!(parse(&format!("{host}/a")).unwrap().registry(), registry);
        }
        let long = format!("{}.io", "a".repeat(300));
        for wrong in ["", "registry", "LOCALHOST", "https://ghcr.io", "ghcr.io/me", "a b.io", "ghcr.io:0", "ü.io", ".", &long] {
            assert_eq!(Reference::registry_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_rule() {
        let long = "a".repeat(256);
        let tag = format!("a:{}", "t".repeat(129));
        for (text, says) in [
            ("", "1 to"),
            (long.as_str(), "255"),
            ("Python", "did you mean python?"),
            ("ghcr.io/Me/app:1", "did you mean ghcr.io/me/app:1?"),
            ("a//b", "repository"),
            ("a/../b", "repository"),
            ("/a", "repository"),
            ("a/", "repository"),
            ("-a", "repository"),
            ("a___b", "repository"),
            ("ä", "repository"),
            ("a b", "repository"),
            ("a:", "tag"),
            ("a:-x", "tag"),
            ("a:x/y:z w", "tag"),
            (tag.as_str(), "tag"),
            ("a@sha256:123", "64 hexadecimal"),
            ("a@sha512:123", "only sha256"),
            ("a@", "64 hexadecimal"),
            (HEX, "image's id"),
            ("host.x:99999/a", "no registry"),
            ("-h.x/a", "no registry"),
            ("https://docker.io/a", "no registry"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    fn reference() -> impl Strategy<Value = String> {
        let host = prop_oneof![
            Just(String::new()),
            Just("docker.io/".to_owned()),
            Just("localhost:5000/".to_owned()),
            "[a-z]{1,5}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?/",
        ];
        let repository = "[a-z0-9]{1,5}(([._]|__|-{1,3})[a-z0-9]{1,4}){0,2}(/(library|[a-z0-9]{1,5}([.][a-z0-9]{1,4})?)){0,2}";
        let tag = "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,10})?";
        let digest = prop_oneof![Just(String::new()), "@sha256:[0-9a-f]{64}"];
        (host, repository, tag, digest).prop_map(|(host, repository, tag, digest)| format!("{host}{repository}{tag}{digest}"))
    }

    proptest! {
        #[test]
        fn every_spelling_of_a_name_reads_the_same(text in reference(), registry in prop_oneof![Just("docker.io"), Just("reg.corp:5")]) {
            let read = Reference::parse(&text, registry);
            // Without a host, a first part with a dot is taken for one, and may not be one.
            prop_assume!(!matches!(read, Err(InvalidReference::Registry { .. })));
            let read = read.unwrap();
            prop_assert_eq!(Reference::parse(&read.to_string(), registry), Ok(read.clone()));
            prop_assert_eq!(Reference::parse(&read.familiar(registry), registry), Ok(read.clone()));
            prop_assert!(read.familiar(registry).len() <= read.to_string().len());
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}|[a-zA-Z0-9:/@._-]{0,40}") {
            if let Ok(read) = parse(&text) {
                prop_assert_eq!(parse(&read.to_string()), Ok(read.clone()));
            }
        }
    }
}
