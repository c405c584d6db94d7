//! Times as they are printed: in UTC, whoever reads them wherever.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970 as `2014-03-18 10:21:09`, by the proleptic Gregorian calendar.
#[must_use]
pub fn date_and_time(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// As [`date_and_time`], in the form of RFC 3339 with as many nanoseconds.
#[must_use]
pub fn rfc3339(seconds: i64, nanos: u32) -> String {
    let text = date_and_time(seconds).replace(' ', "T");
    if nanos == 0 { format!("{text}Z") } else { format!("{text}.{nanos:09}Z") }
}

/// Seconds since 1970, rounded down, and nanoseconds.
#[must_use]
pub fn since_1970(time: SystemTime) -> (i64, u32) {
    let whole = |seconds| i64::try_from(seconds).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (whole(after.as_secs()), after.subsec_nanos()),
        Err(error) => match (whole(error.duration().as_secs()), error.duration().subsec_nanos()) {
            (seconds, 0) => (-seconds, 0),
            (seconds, nanos) => (-seconds - 1, 1_000_000_000 - nanos),
        },
    }
}

/// Year, month and day of a day counted from 1970-01-01. The calendar repeats itself every 400
/// years, which here begin in March: then the day that comes and goes is a year's last.
fn date(days: i64) -> (i64, i64, i64) {
    const ERA: i64 = 146_097;
    /// From 0000-03-01 to 1970-01-01.
    const TO_1970: i64 = 719_468;
    let days = days.saturating_add(TO_1970);
    let (era, day) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let first = (153 * month + 2) / 5;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (year + era * 400 + next, month, day - first + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn seconds_are_printed_as_date_1_does() {
        let table = [
            (0, "1970-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (4_107_542_400, "2100-03-01 00:00:00"),
            (1_395_138_069, "2014-03-18 10:21:09"),
            (-11_644_473_600, "1601-01-01 00:00:00"),
            (15_032_385_535, "2446-05-10 22:38:55"),
        ];
        for (seconds, expected) in table {
            assert_eq!(date_and_time(seconds), expected);
        }
        assert_eq!(rfc3339(0, 0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(0, 5), "1970-01-01T00:00:00.000000005Z");
        // What an image says need not be a year.
        for seconds in [i64::MIN, i64::MAX] {
            assert!(!date_and_time(seconds).is_empty());
        }
    }

    #[test]
    fn times_before_1970_count_back() {
        let before = UNIX_EPOCH - Duration::from_millis(1500);
        assert_eq!(since_1970(before), (-2, 500_000_000));
        assert_eq!(since_1970(UNIX_EPOCH - Duration::from_secs(1)), (-1, 0));
        assert_eq!(since_1970(UNIX_EPOCH + Duration::from_millis(1500)), (1, 500_000_000));
    }
}
