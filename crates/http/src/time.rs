//! RFC 3339 timestamps.

use sandbank_model::Timestamp;

/// A text that is not an RFC 3339 timestamp, or one before 1970 or after 9999.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a time: write RFC 3339 with a zone, such as 2026-04-01T12:00:00Z")]
pub struct InvalidTime(String);

/// `2026-04-01T12:00:00.123Z`; whole seconds without the fraction.
#[must_use]
pub fn format_time(at: Timestamp) -> String {
    let millis = i64::try_from(at.as_millis()).unwrap_or(i64::MAX);
    // jiff's last moment lies 26 hours before that of RFC 3339, so that it has a spelling in every zone.
    jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX).to_string()
}

/// Parses RFC 3339 with any offset; finer digits than milliseconds are dropped.
pub fn parse_time(text: &str) -> Result<Timestamp, InvalidTime> {
    let refused = || InvalidTime(text.chars().take(64).collect());
    if text.len() > 64 {
        return Err(refused());
    }
    let parsed: jiff::Timestamp = text.parse().map_err(|_| refused())?;
    let millis = u64::try_from(parsed.as_millisecond()).map_err(|_| refused())?;
    Ok(Timestamp::from_millis(millis))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn times_come_out_as_they_went_in() {
        for text in ["2026-04-01T12:00:00Z", "2026-04-01T12:00:00.123Z", "1970-01-01T00:00:00Z"] {
            assert_eq!(format_time(parse_time(text).unwrap()), text);
        }
        assert_eq!(format_time(parse_time("2026-04-01T14:00:00+02:00").unwrap()), "2026-04-01T12:00:00Z");
        assert!(format_time(Timestamp::MAX).starts_with("9999-12-30"));
    }

    #[test]
    fn times_without_zone_or_before_1970_are_refused() {
        for text in ["", "2026-04-01", "2026-04-01T12:00:00", "1969-12-31T23:59:59Z", "tomorrow", &"2".repeat(1000)] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
