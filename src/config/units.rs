//! Amounts as people type them: times, and sizes of files.

use std::time::Duration;

use crate::registry::MinFree;

/// `30s`, `90m`, `24h` or `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wanted = || "write a number and its unit, such as 30m, 24h or 7d".to_owned();
    let (number, unit) = split(text).ok_or_else(wanted)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(wanted()),
    };
    match number.checked_mul(seconds) {
        Some(0) => Err("that is no time at all".to_owned()),
        Some(seconds) if seconds <= MOST_SECONDS => Ok(Duration::from_secs(seconds)),
        _ => Err("that is longer than a hundred years".to_owned()),
    }
}

/// The same, or `0` for no time at all.
pub(super) fn duration_or_none(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { duration(text) }
}

const MOST_SECONDS: u64 = 100 * 366 * 24 * 60 * 60;

/// `0`, `500M`, `5G` or `3%`; units are powers of 1024.
pub(super) fn min_free(text: &str) -> Result<MinFree, String> {
    let wanted = || "write a size such as 500M or 5G, a share such as 3%, or 0".to_owned();
    let (number, unit) = split(text).ok_or_else(wanted)?;
    if unit == "%" {
        let percent = u8::try_from(number).ok().filter(|percent| *percent < 100);
        return percent.map(MinFree::Percent).ok_or_else(|| "a share is less than 100%".to_owned());
    }
    let factor = match unit.to_ascii_uppercase().as_str() {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => return Err(wanted()),
    };
    number.checked_mul(factor).map(MinFree::Bytes).ok_or_else(wanted)
}

/// A whole number and what follows it.
fn split(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        for (text, seconds) in [("1s", 1), ("90m", 5400), ("24h", 86_400), ("7d", 604_800)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "24", "h", "-1h", "1.5h", "1h30m", "24 h", "0s", "99999d", "1H"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(duration(&format!("{}d", u64::MAX)).is_err());
    }

    #[test]
    fn sizes_are_bytes_or_a_share() {
        for (text, bytes) in [("0", 0), ("17", 17), ("10K", 10 << 10), ("5g", 5 << 30)] {
            assert_eq!(min_free(text), Ok(MinFree::Bytes(bytes)), "{text}");
        }
        assert_eq!(min_free("3%"), Ok(MinFree::Percent(3)));
        for text in ["", "%", "M", "-1", "100%", "300%", "1.5G", "5GB", "5 G", "99999999999T"] {
            assert!(min_free(text).is_err(), "{text}");
        }
    }
}
