//! Wall-clock time as text and as protobuf. RFC 3339 in UTC with nine digits, as the CRI log wants it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of a formatted time: `2026-01-02T03:04:05.000000006Z`.
pub const RFC3339_LENGTH: usize = 30;

/// Formats `time` in UTC with nanoseconds. Times before 1970 or after 9999 are clamped.
#[must_use]
pub fn rfc3339(time: SystemTime) -> [u8; RFC3339_LENGTH] {
    const LAST: u64 = 253_402_300_799; // 9999-12-31T23:59:59Z
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs().min(LAST);
    let (year, month, day) = civil(seconds / 86_400);
    let of_day = seconds % 86_400;
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    digits(&mut text[0..4], year);
    digits(&mut text[5..7], month);
    digits(&mut text[8..10], day);
    digits(&mut text[11..13], of_day / 3600);
    digits(&mut text[14..16], of_day / 60 % 60);
    digits(&mut text[17..19], of_day % 60);
    digits(&mut text[20..29], u64::from(since.subsec_nanos()));
    text
}

/// [`rfc3339`] as a string.
#[must_use]
pub fn rfc3339_string(time: SystemTime) -> String {
    String::from_utf8_lossy(&rfc3339(time)).into_owned()
}

fn digits(field: &mut [u8], mut value: u64) {
    for digit in field.iter_mut().rev() {
        *digit = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar.
///
/// Counts in eras of 400 years that begin on 1 March, so that the leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// Reads back what [`rfc3339`] writes.
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let bytes = text.as_bytes();
    if bytes.len() != RFC3339_LENGTH || !text.is_ascii() || bytes[29] != b'Z' {
        return None;
    }
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // The inverse of `civil`: days before the year's 1 March, then months of the March year.
    let march_year = if month <= 2 { year - 1 } else { year };
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * from_march + 2) / 5 + day - 1;
    let days = march_year * 365 + march_year / 4 - march_year / 100 + march_year / 400 + of_year;
    let days = days.checked_sub(719_468)?;
    let seconds = days * 86_400 + number(11..13)? * 3600 + number(14..16)? * 60 + number(17..19)?;
    let nanos = u32::try_from(number(20..29)?).ok()?;
    UNIX_EPOCH.checked_add(std::time::Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn check(seconds: u64, nanos: u32, expect: &str) {
        let time = UNIX_EPOCH + Duration::new(seconds, nanos);
        assert_eq!(rfc3339_string(time), expect);
        assert_eq!(parse_rfc3339(expect), Some(time));
    }

    #[test]
    fn formats_known_moments() {
        check(0, 0, "1970-01-01T00:00:00.000000000Z");
        check(951_782_400, 1, "2000-02-29T00:00:00.000000001Z");
        check(951_868_799, 999_999_999, "2000-02-29T23:59:59.999999999Z");
        check(1_709_210_096, 120_000_000, "2024-02-29T12:34:56.120000000Z");
        check(4_107_542_399, 0, "2100-02-28T23:59:59.000000000Z");
        check(4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z");
    }

    proptest::proptest! {
        #[test]
        fn reads_back_what_it_writes(seconds in 0u64..253_402_300_799, nanos in 0u32..1_000_000_000) {
            let time = UNIX_EPOCH + Duration::new(seconds, nanos);
            proptest::prop_assert_eq!(parse_rfc3339(&rfc3339_string(time)), Some(time));
        }
    }
}
