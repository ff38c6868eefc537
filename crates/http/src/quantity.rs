//! Kubernetes resource quantities: `500m`, `16Gi`, `1e3`.

/// A text that is not a quantity that can be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a quantity: {why}")]
pub struct InvalidQuantity {
    text: String,
    why: &'static str,
}

const GRAMMAR: &str = "write a number, perhaps with m, k, M, G, T, Ki, Mi, Gi, Ti or an exponent such as e3";
/// Longer texts are refused unread.
const LEN_MAX: usize = 40;

/// Thousandths of the unit (`"500m"` is 500, `"1.5"` is 1500), rounded up as Kubernetes does.
pub fn parse_quantity_millis(text: &str) -> Result<u64, InvalidQuantity> {
    scaled(text, 1_000)
}

/// Whole units (`"16Gi"` is 17179869184), rounded up as Kubernetes does.
pub fn parse_quantity_bytes(text: &str) -> Result<u64, InvalidQuantity> {
    scaled(text, 1)
}

/// `text` times `scale`, rounded up.
fn scaled(text: &str, scale: u128) -> Result<u64, InvalidQuantity> {
    let refused = |why| InvalidQuantity { text: text.chars().take(LEN_MAX).collect(), why };
    if text.len() > LEN_MAX {
        return Err(refused(GRAMMAR));
    }
    if text.starts_with('-') {
        return Err(refused("it is negative"));
    }
    let unsigned = text.strip_prefix('+').unwrap_or(text);
    let number_len = unsigned.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
    let (number, suffix) = unsigned.split_at(number_len);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(refused(GRAMMAR));
    }
    let (mut numerator, mut denominator) = factor(suffix).ok_or_else(|| refused(GRAMMAR))?;
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > 18 {
        return Err(refused("it has too many decimal places"));
    }
    let digits: u128 = format!("0{whole}{fraction}").parse().map_err(|_| refused("it is too large"))?;
    denominator = denominator.saturating_mul(10u128.pow(u32::try_from(fraction.len()).unwrap_or(18)));
    numerator = numerator.saturating_mul(scale);
    let product = digits.checked_mul(numerator).ok_or_else(|| refused("it is too large"))?;
    u64::try_from(product.div_ceil(denominator)).map_err(|_| refused("it is too large"))
}

/// Numerator and denominator of a suffix.
fn factor(suffix: &str) -> Option<(u128, u128)> {
    Some(match suffix {
        "n" => (1, 1_000_000_000),
        "u" => (1, 1_000_000),
        "m" => (1, 1_000),
        "" => (1, 1),
        "k" => (1_000, 1),
        "M" => (1_000_000, 1),
        "G" => (1_000_000_000, 1),
        "T" => (1_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok().filter(|power| (-18..=18).contains(power))?;
            let ten = 10u128.pow(power.unsigned_abs());
            if power < 0 { (1, ten) } else { (ten, 1) }
        }
    })
}

/// Thousandths as a quantity: 500 is `"500m"`, 2000 is `"2"`.
#[must_use]
pub fn format_millis(millis: u64) -> String {
    if millis.is_multiple_of(1_000) { (millis / 1_000).to_string() } else { format!("{millis}m") }
}

/// Bytes as a quantity with the largest binary suffix that divides them: 17179869184 is `"16Gi"`.
#[must_use]
pub fn format_binary_bytes(bytes: u64) -> String {
    if bytes == 0 {
        return "0".to_owned();
    }
    let suffixes = [(40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")];
    match suffixes.into_iter().find(|(shift, _)| bytes.is_multiple_of(1 << shift)) {
        Some((shift, suffix)) => format!("{}{suffix}", bytes >> shift),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn quantities_of_every_suffix_parse() {
        let rows = [
            ("16Gi", 17_179_869_184),
            ("1e3", 1_000),
            ("1E3", 1_000),
            ("1E", 1_000_000_000_000_000_000),
            ("0", 0),
            ("1.5Ki", 1_536),
            ("1.", 1),
            (".5k", 500),
            ("100m", 1),
            ("1G", 1_000_000_000),
            ("12e-1", 2),
        ];
        for (text, bytes) in rows {
            assert_eq!(parse_quantity_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn millis_round_up() {
        for (text, millis) in [("500m", 500), ("1", 1_000), ("0.1", 100), ("2.5", 2_500), ("1u", 1), ("4k", 4_000_000)] {
            assert_eq!(parse_quantity_millis(text), Ok(millis), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let long = "1".repeat(100);
        for text in ["", "m", "-1", "1 Gi", "1gi", "1e99", "1e", "1..2", "1.2.3", "abc", "1Zi", "99999999999Ei", "1_000", &long] {
            assert!(parse_quantity_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn formatting_parses_back() {
        for bytes in [0, 1, 1_023, 1 << 10, 1_536, 512 << 20, 16 << 30, 3 << 40] {
            assert_eq!(parse_quantity_bytes(&format_binary_bytes(bytes)), Ok(bytes));
        }
        for millis in [0, 1, 500, 1_000, 1_500] {
            assert_eq!(parse_quantity_millis(&format_millis(millis)), Ok(millis));
        }
        assert_eq!(format_binary_bytes(16 << 30), "16Gi");
        assert_eq!(format_millis(2_000), "2");
    }
}
