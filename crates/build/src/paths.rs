//! Paths inside an upload, patterns, `.dockerignore`.

use globset::{GlobBuilder, GlobMatcher};

/// A name in an upload that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} {why}")]
pub struct UnsafePath {
    path: String,
    why: &'static str,
}

/// A relative path without `.`, empty parts and the slash at the end; `""` is the top. Refuses what is absolute or has `..`.
pub fn clean_path(path: &str) -> Result<String, UnsafePath> {
    let refused = |why| Err(UnsafePath { path: path.chars().take(80).collect(), why });
    if path.starts_with('/') {
        return refused("is absolute");
    }
    if path.contains('\0') {
        return refused("has a NUL byte");
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return refused("has a part '..'"),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// An absolute path: `path` as seen from `workdir`, without `.` and `..`. A slash at the end stays.
#[must_use]
pub fn absolute_path(workdir: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{workdir}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let ends = path.ends_with('/') || path == "." || path.ends_with("/.");
    let slash = if ends && !parts.is_empty() { "/" } else { "" };
    format!("/{}{slash}", parts.join("/"))
}

/// A pattern of `COPY` or `.dockerignore`: `*`, `?` and `[…]` stay within a part, `**` is any number of parts.
#[derive(Debug, Clone)]
pub struct Pattern {
    matcher: Option<GlobMatcher>,
    text: String,
}

impl Pattern {
    /// Reads one; the error is for people.
    pub fn new(text: &str) -> Result<Self, String> {
        if !text.contains(['*', '?', '[', '\\']) {
            return Ok(Self { matcher: None, text: text.to_owned() });
        }
        // Braces mean nothing here, though they do to the library.
        let plain = text.replace('{', "[{]").replace('}', "[}]");
        let built = GlobBuilder::new(&plain).literal_separator(true).backslash_escape(true).build();
        let matcher = built.map_err(|error| format!("the pattern {text:?} cannot be read: {}", error.kind()))?;
        Ok(Self { matcher: Some(matcher.compile_matcher()), text: text.to_owned() })
    }

    /// Whether it can name more than one path.
    #[must_use]
    pub const fn is_wild(&self) -> bool {
        self.matcher.is_some()
    }

    /// Whether it names this very path.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        match &self.matcher {
            Some(matcher) => matcher.is_match(path),
            None => self.text == path,
        }
    }
}

/// A `.dockerignore`: the last line that matches a path, or a directory that it is in, decides.
#[derive(Debug, Clone, Default)]
pub struct Ignore {
    rules: Vec<(Pattern, bool)>,
}

impl Ignore {
    /// Reads the file's text; the error names the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut rules = Vec::new();
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (line, ignored) = line.strip_prefix('!').map_or((line, true), |line| (line.trim(), false));
            let named = |what: String| format!(".dockerignore line {}: {what}", number + 1);
            let path = clean_path(line.trim_start_matches('/')).map_err(|error| named(error.to_string()))?;
            if !path.is_empty() {
                rules.push((Pattern::new(&path).map_err(named)?, ignored));
            }
        }
        Ok(Self { rules })
    }

    /// Whether this path is left out.
    #[must_use]
    pub fn ignores(&self, path: &str) -> bool {
        let mut ignored = false;
        for (pattern, verdict) in &self.rules {
            let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
            if *verdict != ignored && ends.into_iter().any(|end| pattern.matches(&path[..end])) {
                ignored = *verdict;
            }
        }
        ignored
    }

    /// Whether a directory that is left out may hold files that are not: it must be looked into.
    #[must_use]
    pub fn may_hold_exceptions(&self) -> bool {
        self.rules.iter().any(|(_, ignored)| !ignored)
    }
}
