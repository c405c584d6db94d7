//! Moments as people read them, in UTC.

use std::fmt;

use guestmnt_protocol::attr::Time;

/// A moment: `2001-01-31 23:59:59`.
pub struct Utc(pub Time);

impl fmt::Display for Utc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DAY: i64 = 24 * 3600;
        let (days, second) = (self.0.secs.div_euclid(DAY), self.0.secs.rem_euclid(DAY));
        let (year, month, day) = date(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
    }
}

/// Year, month and day of the day that is so many behind 1970-01-01. Years are counted from March
/// on, so that the leap day is their last; 400 of them are one round of the calendar.
fn date(days: i64) -> (i64, i64, i64) {
    const ROUND: i64 = 146_097;
    // From 0000-03-01 to 1970-01-01.
    let days = days + 719_468;
    let (round, day) = (days.div_euclid(ROUND), days.rem_euclid(ROUND));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    (round * 400 + year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_before_and_after_1970_and_around_leap_days() {
        let table = [
            (0, "1970-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_799, "2000-02-29 23:59:59"),
            (951_868_800, "2000-03-01 00:00:00"),
            (4_107_542_400, "2100-03-01 00:00:00"),
            (-11_644_473_600, "1601-01-01 00:00:00"),
        ];
        for (secs, expected) in table {
            assert_eq!(Utc(Time { secs, nanos: 0 }).to_string(), expected);
        }
    }
}
