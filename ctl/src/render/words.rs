//! Times, spans and sizes as people say them.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// The moment and the place that relative times refer to.
pub(crate) struct Clock {
    now: Timestamp,
    zone: TimeZone,
}

impl Clock {
    /// Reads the system's clock and time zone.
    pub(crate) fn read() -> Self {
        Self {
            now: Timestamp::now(),
            zone: TimeZone::system(),
        }
    }

    /// Returns how long ago `at` was; zero for the future, which clocks that disagree can bring about.
    pub(crate) fn age(&self, at: &prost_types::Timestamp) -> Option<Duration> {
        let age = self.now.duration_since(moment(at)?);
        Some(Duration::try_from(age).unwrap_or(Duration::ZERO))
    }

    /// Returns how long it is until `at`; zero for the past.
    pub(crate) fn until(&self, at: &prost_types::Timestamp) -> Option<Duration> {
        let rest = moment(at)?.duration_since(self.now);
        Some(Duration::try_from(rest).unwrap_or(Duration::ZERO))
    }

    /// Returns the local time, with the date unless it is today's.
    pub(crate) fn time(&self, at: &prost_types::Timestamp) -> Option<String> {
        let at = moment(at)?.to_zoned_datetime(self.zone.clone());
        let today = self.now.to_zoned_datetime(self.zone.clone()).date();
        let format = if at.date() == today {
            "%H:%M:%S"
        } else {
            "%Y-%m-%d %H:%M:%S"
        };
        Some(at.strftime(format).to_string())
    }

    /// Returns now for programs: RFC 3339, in UTC.
    pub(crate) fn now_rfc3339(&self) -> String {
        self.now.to_string()
    }

    /// Returns the local time of now.
    pub(crate) fn time_now(&self) -> String {
        self.now
            .to_zoned_datetime(self.zone.clone())
            .strftime("%H:%M:%S")
            .to_string()
    }
}

/// Writes a moment for programs: RFC 3339, in UTC.
pub(crate) fn rfc3339(at: &prost_types::Timestamp) -> Option<String> {
    Some(moment(at)?.to_string())
}

fn moment(at: &prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(at.seconds, at.nanos).ok()
}

/// Writes a span in its largest unit: `12 s`, `6 min`, `2 h`, `3 d`.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        // Up to two days in hours: `1 d` would hide up to half of the span.
        3600..172_800 => format!("{} h", seconds / 3600),
        172_800.. => format!("{} d", seconds / 86_400),
    }
}

/// Writes how long something took; tenths matter while it is short.
pub(crate) fn elapsed(elapsed: Duration) -> String {
    if elapsed < Duration::from_secs(10) {
        return format!("{:.1} s", elapsed.as_secs_f64());
    }
    span(elapsed)
}

/// Writes a number of bytes: `512 B`, `4.1 MB`, `12 GB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = 0;
    // What would be written as 1000 is one of the next unit.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = usize::from(value < 9.95);
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// Writes a number with its noun: `1 connection`, `3 connections`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

/// Writes the name of a database engine as its makers do.
pub(crate) fn engine(engine: &str) -> &str {
    match engine {
        "postgres" | "postgresql" | "aurora-postgresql" => "PostgreSQL",
        "mysql" | "aurora-mysql" => "MySQL",
        "mariadb" => "MariaDB",
        other if other.starts_with("oracle") => "Oracle",
        other if other.starts_with("sqlserver") => "SQL Server",
        other if other.starts_with("db2") => "Db2",
        other => other,
    }
}

#[cfg(test)]
impl Clock {
    /// A clock that stands at `now`, an RFC 3339 time, in UTC.
    pub(crate) fn standing_at(now: &str) -> Self {
        Self {
            now: now.parse().unwrap(),
            zone: TimeZone::UTC,
        }
    }

    /// The moment `earlier` before this clock's.
    pub(crate) fn ago(&self, earlier: Duration) -> prost_types::Timestamp {
        let at = self.now - earlier;
        prost_types::Timestamp {
            seconds: at.as_second(),
            nanos: at.subsec_nanosecond(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_said_in_their_largest_unit() {
        let said = [0, 59, 60, 3599, 3600, 172_799, 172_800, 900_000]
            .map(|seconds| span(Duration::from_secs(seconds)));
        assert_eq!(
            said,
            ["0 s", "59 s", "1 min", "59 min", "1 h", "47 h", "2 d", "10 d"]
        );
        assert_eq!(elapsed(Duration::from_millis(940)), "0.9 s");
        assert_eq!(elapsed(Duration::from_secs(70)), "1 min");
    }

    #[test]
    fn sizes_never_show_a_thousand_of_a_unit() {
        let said = [
            0,
            999,
            1000,
            4_100_000,
            9_960_000,
            999_499,
            999_500,
            1_200_000_000,
            u64::MAX,
        ]
        .map(size);
        assert_eq!(
            said,
            [
                "0 B", "999 B", "1.0 kB", "4.1 MB", "10 MB", "999 kB", "1.0 MB", "1.2 GB", "18 EB"
            ]
        );
    }

    #[test]
    fn times_carry_their_date_unless_it_is_today() {
        let clock = Clock::standing_at("2025-11-24T09:00:00Z");
        assert_eq!(
            clock.time(&clock.ago(Duration::from_secs(60))).unwrap(),
            "08:59:00"
        );
        assert_eq!(
            clock.time(&clock.ago(Duration::from_hours(10))).unwrap(),
            "2025-11-23 23:00:00"
        );
    }

    #[test]
    fn a_moment_in_the_future_is_no_time_ago() {
        let clock = Clock::standing_at("2025-11-24T09:00:00Z");
        let future = prost_types::Timestamp {
            seconds: clock.now.as_second() + 5,
            nanos: 0,
        };
        assert_eq!(clock.age(&future), Some(Duration::ZERO));
        assert_eq!(clock.until(&future), Some(Duration::from_secs(5)));
    }

    #[test]
    fn a_moment_beyond_all_calendars_is_left_out() {
        let absurd = prost_types::Timestamp {
            seconds: i64::MAX,
            nanos: -7,
        };
        assert_eq!(rfc3339(&absurd), None);
        assert_eq!(Clock::standing_at("2025-11-24T09:00:00Z").age(&absurd), None);
    }
}
