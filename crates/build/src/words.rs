//! Quotes, escapes and variables, as a Dockerfile's words have them.
//!
//! The rules are those of the Dockerfile reference ("Environment replacement"): `$x`, `${x}`, `${x:-word}`, `${x-word}`,
//! `${x:+word}`, `${x+word}`, `${x:?word}`; nothing is replaced between single quotes; a backslash takes the next character as
//! it is.

/// Finds a variable's value.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Replacements inside replacements: deeper ones are refused.
const DEPTH_MAX: usize = 16;

/// Replaces variables and takes quotes and escapes away. The error is for people.
pub fn expand(text: &str, lookup: Lookup<'_>) -> Result<String, String> {
    expand_at(text, lookup, 0)
}

fn expand_at(text: &str, lookup: Lookup<'_>, depth: usize) -> Result<String, String> {
    if depth > DEPTH_MAX {
        return Err(format!("variables are nested deeper than {DEPTH_MAX} levels"));
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    let mut quoted = false;
    while let Some(c) = rest.next() {
        match c {
            '\'' if !quoted => loop {
                match rest.next() {
                    Some('\'') => break,
                    Some(c) => out.push(c),
                    None => return Err(format!("a single quote is not closed in {}", shown(text))),
                }
            },
            '"' => quoted = !quoted,
            '\\' => match rest.next() {
                // Between double quotes a backslash only takes away the meaning of what has one there.
                Some(c) if quoted && !matches!(c, '"' | '$' | '\\') => out.extend(['\\', c]),
                Some(c) => out.push(c),
                None => out.push('\\'),
            },
            '$' => variable(&mut rest, &mut out, lookup, depth)?,
            c => out.push(c),
        }
    }
    if quoted { Err(format!("a double quote is not closed in {}", shown(text))) } else { Ok(out) }
}

type Rest<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn variable(rest: &mut Rest<'_>, out: &mut String, lookup: Lookup<'_>, depth: usize) -> Result<(), String> {
    if rest.peek() == Some(&'{') {
        rest.next();
        let body = braced(rest)?;
        out.push_str(&replaced(&body, lookup, depth)?);
        return Ok(());
    }
    let name = take_name(rest);
    if name.is_empty() {
        out.push('$');
    } else {
        out.push_str(&lookup(&name).unwrap_or_default());
    }
    Ok(())
}

fn take_name(rest: &mut Rest<'_>) -> String {
    let mut name = String::new();
    while let Some(c) = rest.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
        if name.is_empty() && c.is_ascii_digit() {
            // `$1` is a parameter of one digit; there are none.
            return c.to_string();
        }
        name.push(c);
    }
    name
}

/// What stands before the brace that closes.
fn braced(rest: &mut Rest<'_>) -> Result<String, String> {
    let (mut body, mut depth) = (String::new(), 0usize);
    while let Some(c) = rest.next() {
        match c {
            '}' if depth == 0 => return Ok(body),
            '}' => depth -= 1,
            '{' => depth += 1,
            '\\' => {
                body.push(c);
                body.extend(rest.next());
                continue;
            }
            _ => {}
        }
        body.push(c);
    }
    Err(format!("a variable is not closed: ${{{}", shown(&body)))
}

fn replaced(body: &str, lookup: Lookup<'_>, depth: usize) -> Result<String, String> {
    let mut rest = body.chars().peekable();
    let name = take_name(&mut rest);
    if name.is_empty() {
        return Err(format!("${{{}}} names no variable", shown(body)));
    }
    let operator: String = rest.collect();
    let value = lookup(&name);
    let (colon, operator) = match operator.strip_prefix(':') {
        Some(operator) => (true, operator),
        None => (false, operator.as_str()),
    };
    let set = value.as_ref().is_some_and(|value| !colon || !value.is_empty());
    let mut chars = operator.chars();
    let word = |chars: std::str::Chars<'_>| expand_at(chars.as_str(), lookup, depth + 1);
    match chars.next() {
        None if !colon => Ok(value.unwrap_or_default()),
        Some('-') if set => Ok(value.unwrap_or_default()),
        Some('-') => word(chars),
        Some('+') if set => word(chars),
        Some('+') => Ok(String::new()),
        Some('?') if set => Ok(value.unwrap_or_default()),
        Some('?') => Err(format!("{name} is not set: {}", word(chars)?)),
        _ => Err(format!("${{{}}} is not supported: use ${{x}}, ${{x:-word}}, ${{x:+word}} or ${{x:?word}}", shown(body))),
    }
}

/// Splits at white space outside quotes; quotes and escapes stay for [`expand`].
#[must_use]
pub fn split_words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => {
                word.push(c);
                word.extend(rest.next());
                continue;
            }
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (c, None) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            _ => {}
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// `name=value` pairs, or the old form `name value` for one; names are without quotes, values raw.
pub fn key_values(text: &str) -> Result<Vec<(String, String)>, String> {
    let words = split_words(text);
    let Some(first) = words.first() else { return Err("names nothing: write name=value".to_owned()) };
    let bare = |name: &str| expand(name, &|_| None);
    if !first.contains('=') {
        let value = text.trim_start().strip_prefix(first.as_str()).unwrap_or_default().trim();
        if value.is_empty() {
            return Err(format!("{} has no value: write name=value", shown(first)));
        }
        return Ok(vec![(bare(first)?, value.to_owned())]);
    }
    let mut pairs = Vec::with_capacity(words.len());
    for word in &words {
        match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => pairs.push((bare(name)?, value.to_owned())),
            _ => return Err(format!("{} is not name=value", shown(word))),
        }
    }
    Ok(pairs)
}

/// The beginning of a text, quoted, for an error.
pub(crate) fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

/// A text that [`expand`] turns into this very text: for steps whose values mean what they say.
#[must_use]
pub fn literal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '\\' | '$' | '\'' | '"') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
