//! Go durations: the grammar of `time.ParseDuration`.

use std::time::Duration;

/// A text that is not a duration that can be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDuration {
    /// Not the grammar.
    #[error(
        "{0:?} is not a duration: write numbers with units, such as \"30s\", \"1h30m\" or \"0\" (units: ns, us, ms, s, m, h)"
    )]
    Grammar(String),
    /// Below zero.
    #[error("{0:?} is negative: a duration here is 0 or more")]
    Negative(String),
    /// More than Go's own limit of 2^63 - 1 nanoseconds (about 292 years).
    #[error("{0:?} is too long")]
    TooLong(String),
}

const NANOS_MAX: u128 = i64::MAX as u128;
/// Longer texts are refused unread: the longest sensible duration has far fewer characters.
const LEN_MAX: usize = 64;

/// Parses `"1h30m"`, `"1.5h"`, `"300ms"`, `"0"`. Negative durations other than `-0` are refused by name.
pub fn parse_go_duration(text: &str) -> Result<Duration, InvalidDuration> {
    let shown = || text.chars().take(LEN_MAX).collect::<String>();
    let refused = || InvalidDuration::Grammar(shown());
    if text.len() > LEN_MAX {
        return Err(refused());
    }
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(refused());
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let (part, after) = term(rest).ok_or_else(refused)?;
        nanos = nanos.checked_add(part).filter(|sum| *sum <= NANOS_MAX).ok_or_else(|| InvalidDuration::TooLong(shown()))?;
        rest = after;
    }
    if negative && nanos > 0 {
        return Err(InvalidDuration::Negative(shown()));
    }
    let seconds = u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX);
    let fraction = u32::try_from(nanos % 1_000_000_000).unwrap_or(0);
    Ok(Duration::new(seconds, fraction))
}

/// One number with its unit: nanoseconds (saturating far above the limit) and what follows.
fn term(text: &str) -> Option<(u128, &str)> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let whole_len = digits(text);
    let (whole, rest) = text.split_at(whole_len);
    let (fraction, rest) = match rest.strip_prefix('.') {
        Some(after) => after.split_at(digits(after)),
        None => ("", rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let unit_len = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
    let (unit, rest) = rest.split_at(unit_len);
    let scale: u128 = match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    // At most 64 digits: a number too long for u128 is far above the limit anyway.
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().unwrap_or(u128::MAX) };
    // Eighteen digits of a fraction are finer than a nanosecond of an hour.
    let fraction = &fraction[..fraction.len().min(18)];
    let part = match fraction.parse::<u128>() {
        Ok(number) => number * scale / 10u128.pow(u32::try_from(fraction.len()).unwrap_or(18)),
        Err(_) => 0,
    };
    Some((whole.saturating_mul(scale).saturating_add(part), rest))
}

/// Formats as Go's `Duration.String`: `"1h30m0s"`, `"1.5s"`, `"300ms"`, `"0s"`.
#[must_use]
pub fn format_go_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    if nanos < 1_000 {
        return format!("{nanos}ns");
    }
    if nanos < 1_000_000 {
        return decimal(nanos, 1_000, "µs");
    }
    if nanos < 1_000_000_000 {
        return decimal(nanos, 1_000_000, "ms");
    }
    let minutes_all = duration.as_secs() / 60;
    let seconds = decimal(nanos - u128::from(minutes_all) * 60_000_000_000, 1_000_000_000, "s");
    match (minutes_all / 60, minutes_all % 60) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

fn decimal(nanos: u128, scale: u128, unit: &str) -> String {
    let width = scale.ilog10() as usize;
    let fraction = format!("{:0width$}", nanos % scale);
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    format!("{}{dot}{fraction}{unit}", nanos / scale)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn check(text: &str, nanos: u64) {
        assert_eq!(parse_go_duration(text), Ok(Duration::from_nanos(nanos)), "{text}");
    }

    #[test]
    fn gos_own_examples_parse() {
        let second = 1_000_000_000;
        check("0", 0);
        check("-0", 0);
        check("5s", 5 * second);
        check("+5s", 5 * second);
        check("5.0s", 5 * second);
        check("5.6s", 5_600_000_000);
        check("5.s", 5 * second);
        check(".5s", second / 2);
        check("10ns", 10);
        check("11us", 11_000);
        check("12µs", 12_000);
        check("12μs", 12_000);
        check("300ms", 300_000_000);
        check("14s", 14 * second);
        check("15m", 900 * second);
        check("1.5h", 5_400 * second);
        check("1h30m", 5_400 * second);
        check("3h30m10.5s", 12_610_500_000_000);
        check("0.3333333333333333333h", 1_199_999_999_999);
        check("9223372036854775807ns", i64::MAX as u64);
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in ["", "3", "-", "s", ".", "-.", ".s", "+.s", "1d", "1 h", "1h ", "x", "1e3s", "∞", "١s", "1h-5m"] {
            assert!(matches!(parse_go_duration(text), Err(InvalidDuration::Grammar(_))), "{text}");
        }
        assert!(parse_go_duration(&"1".repeat(10_000)).is_err());
    }

    #[test]
    fn negative_and_endless_durations_are_told_apart_from_bad_grammar() {
        assert!(matches!(parse_go_duration("-1s"), Err(InvalidDuration::Negative(_))));
        assert!(matches!(parse_go_duration("9223372036854775808ns"), Err(InvalidDuration::TooLong(_))));
        assert!(matches!(parse_go_duration("3000000h"), Err(InvalidDuration::TooLong(_))));
        assert!(matches!(parse_go_duration(&format!("{}h", "9".repeat(60))), Err(InvalidDuration::TooLong(_))));
    }

    #[test]
    fn formatting_is_gos_and_parses_back() {
        let rows = [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1µs"),
            (2_200_000, "2.2ms"),
            (3_300_000_000, "3.3s"),
            (245_000_000_000, "4m5s"),
            (245_001_000_000, "4m5.001s"),
            (5_400_000_000_000, "1h30m0s"),
        ];
        for (nanos, text) in rows {
            let duration = Duration::from_nanos(nanos);
            assert_eq!(format_go_duration(duration), text);
            assert_eq!(parse_go_duration(text), Ok(duration));
        }
    }
}
