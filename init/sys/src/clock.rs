//! The machine's clocks: read, set, and kept in the battery-backed one.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

mod request {
    nix::ioctl_read!(rtc_rd_time, b'p', 0x09, super::RtcTime);
    nix::ioctl_write_ptr!(rtc_set_time, b'p', 0x0a, super::RtcTime);
}

/// `struct rtc_time`: broken-down UTC.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct RtcTime {
    sec: libc::c_int,
    min: libc::c_int,
    hour: libc::c_int,
    mday: libc::c_int,
    mon: libc::c_int,
    year: libc::c_int,
    wday: libc::c_int,
    yday: libc::c_int,
    isdst: libc::c_int,
}

/// What failed.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// The time of day could not be set.
    #[error("cannot set the clock")]
    Set(#[source] io::Error),
    /// The time does not fit the kernel's range.
    #[error("the time is before 1970 or too far ahead")]
    Range,
    /// The clock's frequency could not be bent.
    #[error("cannot slew the clock")]
    Slew(#[source] io::Error),
    /// What becomes of the clock could not be asked.
    #[error("cannot ask about the clock")]
    Ask(#[source] io::Error),
    /// The battery-backed clock could not be used.
    #[error("cannot {operation} /dev/rtc0")]
    Rtc {
        /// What was tried.
        operation: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Time since the kernel started, without that spent suspended. The marks of the boot path are in this clock.
pub fn monotonic() -> Duration {
    to_duration(clock_gettime(ClockId::Monotonic))
}

/// Time since the kernel started.
pub fn boot_time() -> Duration {
    to_duration(clock_gettime(ClockId::Boottime))
}

fn to_duration(time: Timespec) -> Duration {
    let nanos = u32::try_from(time.tv_nsec).unwrap_or_default();
    Duration::new(u64::try_from(time.tv_sec).unwrap_or_default(), nanos)
}

/// Sets the time of day in one step.
///
/// # Errors
/// [`ClockError::Set`] without `CAP_SYS_TIME`, [`ClockError::Range`].
pub fn step_to(time: SystemTime) -> Result<(), ClockError> {
    let since = time.duration_since(UNIX_EPOCH).map_err(|_| ClockError::Range)?;
    let tv_sec = i64::try_from(since.as_secs()).map_err(|_| ClockError::Range)?;
    let time = Timespec { tv_sec, tv_nsec: i64::from(since.subsec_nanos()) };
    clock_settime(ClockId::Realtime, time).map_err(|source| ClockError::Set(source.into()))
}

/// Makes the clock catch up with a time that is `offset_us` microseconds ahead of it (negative: behind), by at most half a second and
/// never going backwards, and marks it as synchronised, whereupon the kernel copies it to the battery-backed clock every eleven minutes.
/// The longer the time between two such calls, `poll`, the more slowly (ntp_adjtime(3): a time constant of its logarithm).
///
/// # Errors
/// [`ClockError::Slew`] without `CAP_SYS_TIME`.
pub fn slew(offset_us: i64, poll: Duration) -> Result<(), ClockError> {
    const LIMIT_NS: i64 = 500_000_000;
    let modes = libc::ADJ_OFFSET
        | libc::ADJ_TIMECONST
        | libc::ADJ_NANO
        | libc::ADJ_STATUS
        | libc::ADJ_MAXERROR
        | libc::ADJ_ESTERROR;
    adjust(|request| {
        request.modes = modes;
        request.status = libc::STA_PLL;
        request.offset = offset_us.saturating_mul(1000).clamp(-LIMIT_NS, LIMIT_NS);
        request.constant = i64::from(poll.as_secs().max(1).ilog2()).saturating_sub(4).clamp(0, 10);
    })
    .map(drop)
    .map_err(ClockError::Slew)
}

/// Whether the clock was marked as synchronised, and not so long ago that nobody knows its error any more (`STA_UNSYNC`).
///
/// # Errors
/// [`ClockError::Ask`].
pub fn is_synchronized() -> Result<bool, ClockError> {
    let answer = adjust(|_| {}).map_err(ClockError::Ask)?;
    Ok(answer.status & libc::STA_UNSYNC == 0)
}

/// Asks adjtimex(2); a request without `modes` changes nothing.
fn adjust(request: impl FnOnce(&mut libc::timex)) -> io::Result<libc::timex> {
    // SAFETY: `struct timex` is plain numbers, for which all bits zero is a value; there is no constructor.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    request(&mut timex);
    // SAFETY: `timex` is a valid `struct timex` for the length of the call; rustix and nix do not wrap adjtimex(2).
    if unsafe { libc::adjtimex(&raw mut timex) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(timex)
}

/// What the battery-backed clock says.
///
/// # Errors
/// [`ClockError::Rtc`] when there is none, [`ClockError::Range`] when it holds no date.
pub fn hardware_time() -> Result<SystemTime, ClockError> {
    let device = open_rtc(false)?;
    let mut time = RtcTime::default();
    // SAFETY: the descriptor is open until the end of this function, and `time` is a valid `struct rtc_time` that the kernel fills; no crate
    // in use wraps this ioctl.
    unsafe { request::rtc_rd_time(device.as_raw_fd(), &raw mut time) }
        .map_err(|source| ClockError::Rtc { operation: "read", source: source.into() })?;
    time.to_system().ok_or(ClockError::Range)
}

/// Copies a time to the battery-backed clock, whole seconds.
///
/// # Errors
/// [`ClockError::Rtc`] and [`ClockError::Range`].
pub fn set_hardware_time(time: SystemTime) -> Result<(), ClockError> {
    let time = RtcTime::from_system(time).ok_or(ClockError::Range)?;
    let device = open_rtc(true)?;
    // SAFETY: the descriptor is open until the end of this function, and `time` is a valid `struct rtc_time` that the kernel only reads; no
    // crate in use wraps this ioctl.
    unsafe { request::rtc_set_time(device.as_raw_fd(), &raw const time) }
        .map_err(|source| ClockError::Rtc { operation: "set", source: source.into() })?;
    Ok(())
}

fn open_rtc(write: bool) -> Result<File, ClockError> {
    OpenOptions::new()
        .read(true)
        .write(write)
        .open(Path::new("/dev/rtc0"))
        .map_err(|source| ClockError::Rtc { operation: "open", source })
}

const SECONDS_PER_DAY: i64 = 86_400;

impl RtcTime {
    fn to_system(self) -> Option<SystemTime> {
        let in_range = (0..=11).contains(&self.mon)
            && (1..=31).contains(&self.mday)
            && (0..=23).contains(&self.hour)
            && (0..=59).contains(&self.min)
            && (0..=60).contains(&self.sec);
        if !in_range {
            return None;
        }
        let days = days_from_civil(i64::from(self.year) + 1900, i64::from(self.mon) + 1, i64::from(self.mday));
        let clock = i64::from(self.hour) * 3600 + i64::from(self.min) * 60 + i64::from(self.sec);
        let seconds = u64::try_from(days * SECONDS_PER_DAY + clock).ok()?;
        UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    fn from_system(time: SystemTime) -> Option<Self> {
        let seconds = i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()?;
        let (year, month, day) = civil_from_days(seconds / SECONDS_PER_DAY);
        let clock = libc::c_int::try_from(seconds % SECONDS_PER_DAY).ok()?;
        Some(Self {
            sec: clock % 60,
            min: clock / 60 % 60,
            hour: clock / 3600,
            mday: libc::c_int::try_from(day).ok()?,
            mon: libc::c_int::try_from(month - 1).ok()?,
            year: libc::c_int::try_from(year - 1900).ok()?,
            wday: libc::c_int::try_from((seconds / SECONDS_PER_DAY + 4) % 7).ok()?,
            yday: libc::c_int::try_from(seconds / SECONDS_PER_DAY - days_from_civil(year, 1, 1)).ok()?,
            isdst: 0,
        })
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar. Years are counted from March, so that the leap day comes last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_dates() {
        let cases = [
            ("epoch", 0, (1970, 1, 1)),
            ("leap day", 11_016, (2000, 2, 29)),
            ("day after", 11_017, (2000, 3, 1)),
            ("no leap day", 47_541, (2100, 3, 1)),
            ("new year's eve", 20_453, (2025, 12, 31)),
        ];
        for (name, days, (year, month, day)) in cases {
            assert_eq!(civil_from_days(days), (year, month, day), "{name}");
            assert_eq!(days_from_civil(year, month, day), days, "{name}");
        }
    }

    #[test]
    fn clocks_go_forward() {
        let before = monotonic();
        assert!(boot_time() >= before && monotonic() >= before);
    }

    #[test]
    fn the_clock_can_be_asked_by_anybody() {
        is_synchronized().unwrap();
    }

    #[test]
    fn impossible_dates_are_refused() {
        let time = RtcTime { mday: 1, year: 100, ..RtcTime::default() };
        assert!(time.to_system().is_some());
        for broken in [
            RtcTime { mon: 12, ..time },
            RtcTime { mday: 0, ..time },
            RtcTime { hour: 24, ..time },
            RtcTime { year: 1, ..time },
        ] {
            assert_eq!(broken.to_system(), None, "{broken:?}");
        }
    }

    proptest! {
        #[test]
        fn broken_down_time_is_the_same_time(seconds in 0_u64..20_000_000_000) {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            prop_assert_eq!(RtcTime::from_system(time).unwrap().to_system(), Some(time));
        }
    }
}
