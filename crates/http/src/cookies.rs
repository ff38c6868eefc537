//! Cookies of ours among those of the programs that we stand before.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Values of the cookie `name`, in the order sent. There may be several: another site of the same domain can set one.
pub(crate) fn values<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    pairs(headers).filter_map(move |pair| {
        let (key, value) = pair.split_once('=')?;
        (key.trim() == name).then_some(value.trim())
    })
}

fn pairs(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(';')).map(str::trim)
}

fn name_of(pair: &[u8]) -> &[u8] {
    pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii()
}

/// Takes the cookies `names` out of a request's field; the others stay as they were, byte by byte.
pub(crate) fn remove(headers: &mut HeaderMap, field: HeaderName, names: &[&str]) {
    let ours = |pair: &[u8]| names.iter().any(|name| name_of(pair) == name.as_bytes());
    let any = headers.get_all(&field).iter().any(|value| value.as_bytes().split(|byte| *byte == b';').any(ours));
    if !any {
        return;
    }
    let kept: Vec<HeaderValue> = headers
        .get_all(&field)
        .iter()
        .filter_map(|value| {
            let pairs: Vec<&[u8]> = value.as_bytes().split(|byte| *byte == b';').filter(|pair| !ours(pair)).collect();
            let text = pairs.join(&b';');
            HeaderValue::from_bytes(text.trim_ascii()).ok().filter(|value| !value.is_empty())
        })
        .collect();
    headers.remove(&field);
    for value in kept {
        headers.append(&field, value);
    }
}

/// Takes out of an answer what would set one of the cookies `names`.
pub(crate) fn remove_set(headers: &mut HeaderMap, names: &[&str]) {
    let ours = |value: &HeaderValue| {
        let pair = value.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        names.iter().any(|name| name_of(pair) == name.as_bytes())
    };
    if !headers.get_all(header::SET_COOKIE).iter().any(ours) {
        return;
    }
    let kept: Vec<HeaderValue> = headers.get_all(header::SET_COOKIE).iter().filter(|value| !ours(value)).cloned().collect();
    headers.remove(header::SET_COOKIE);
    for value in kept {
        headers.append(header::SET_COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_named_cookies_are_found_and_taken_out() {
        let mut headers = HeaderMap::new();
        headers.append("cookie", HeaderValue::from_static("ours=1;a=b; ours =2 ; c=\"d;e\""));
        headers.append("cookie", HeaderValue::from_static("ours=3"));
        headers.append("cookie", HeaderValue::from_bytes(b"x=\xff").unwrap());
        assert_eq!(values(&headers, "ours").collect::<Vec<_>>(), ["1", "2", "3"]);
        remove(&mut headers, header::COOKIE, &["ours"]);
        let left: Vec<&[u8]> = headers.get_all("cookie").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(left, [b"a=b; c=\"d;e\"".as_slice(), b"x=\xff"]);
    }
}
