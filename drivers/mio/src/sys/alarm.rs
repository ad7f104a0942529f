//! A timer that is an event of a poll. A wait with a timeout has the kernel set a timer and take it
//! back, each time; this one is set when it has gone off, or when something is due before it.

use super::epoll::check;
use cubenet_core::Instant;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

/// It is set to a moment, not to how long that is from now: the caller's clock may be a moment old.
const ABSOLUTE: libc::c_int = libc::TFD_TIMER_ABSTIME;

pub(crate) struct Alarm {
    timer: OwnedFd,
    /// Where the driver's time begins, in microseconds of the system's clock.
    origin: u64,
    /// When it goes off.
    set_to: Instant,
}

impl Alarm {
    pub(crate) fn new(registry: &Registry, token: Token, origin: u64) -> io::Result<Self> {
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: it takes no memory of ours.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
        check(fd)?;
        // SAFETY: the call has succeeded, and nothing else has this descriptor.
        let timer = unsafe { OwnedFd::from_raw_fd(fd) };
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        Ok(Alarm {
            timer,
            origin,
            set_to: Instant::NEVER,
        })
    }

    /// It has gone off, and is not set.
    pub(crate) fn went_off(&mut self) {
        self.set_to = Instant::NEVER;
    }

    /// What is left of a timeout: none, if the alarm goes off by then.
    pub(crate) fn cover(&mut self, timeout: Option<Duration>, now: Instant) -> Option<Duration> {
        let timeout = timeout?;
        if timeout.is_zero() {
            return Some(timeout);
        }
        let deadline = now.after(timeout);
        if deadline < self.set_to {
            if self.set(deadline).is_err() {
                return Some(timeout);
            }
            self.set_to = deadline;
        }
        None
    }

    // Microseconds in 64 bits are less than 2^44 seconds; the fields are shorter on some systems.
    #[allow(clippy::cast_possible_wrap, clippy::cast_lossless)]
    fn set(&self, deadline: Instant) -> io::Result<()> {
        let micros = deadline.as_micros().saturating_add(self.origin);
        let never = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let timer = libc::itimerspec {
            it_interval: never,
            it_value: libc::timespec {
                tv_sec: (micros / 1_000_000) as _,
                tv_nsec: (micros % 1_000_000 * 1_000) as _,
            },
        };
        let fd = self.timer.as_raw_fd();
        // SAFETY: the kernel reads `timer` during the call.
        check(unsafe { libc::timerfd_settime(fd, ABSOLUTE, &raw const timer, ptr::null_mut()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock_micros;
    use mio::{Events, Poll};

    const TOKEN: Token = Token(7);
    const NOW: Instant = Instant::from_micros(1_000_000);

    fn alarm(poll: &Poll) -> Alarm {
        let origin = clock_micros() - NOW.as_micros();
        Alarm::new(poll.registry(), TOKEN, origin).unwrap()
    }

    fn wait(poll: &mut Poll, timeout: Option<Duration>) -> bool {
        let mut events = Events::with_capacity(4);
        poll.poll(&mut events, timeout).unwrap();
        events.iter().any(|event| event.token() == TOKEN)
    }

    #[test]
    fn an_alarm_ends_a_wait_each_time_that_it_goes_off() {
        let mut poll = Poll::new().unwrap();
        let mut alarm = alarm(&poll);
        for nth in 1..=3 {
            let timeout = Duration::from_millis(5) * nth;
            let left = alarm.cover(Some(timeout), NOW);
            assert_eq!(left, None);
            assert!(wait(&mut poll, left));
            let passed = clock_micros() - alarm.origin - NOW.as_micros();
            assert!(u128::from(passed) >= timeout.as_micros(), "not before");
            alarm.went_off();
        }
        assert!(!wait(&mut poll, Some(Duration::from_millis(20))), "once");
    }

    #[test]
    fn an_alarm_is_set_anew_only_for_what_comes_before_it() {
        let poll = Poll::new().unwrap();
        let mut alarm = alarm(&poll);
        let second = Duration::from_secs(1);
        assert_eq!(alarm.cover(None, NOW), None);
        assert_eq!(alarm.set_to, Instant::NEVER);
        assert_eq!(alarm.cover(Some(Duration::ZERO), NOW), Some(Duration::ZERO));
        for (timeout, set_to) in [(60, 60), (70, 60), (5, 5), (5, 5), (60, 5)] {
            assert_eq!(alarm.cover(Some(timeout * second), NOW), None);
            assert_eq!(alarm.set_to, NOW.after(set_to * second));
        }
        assert_eq!(alarm.cover(Some(Duration::MAX), NOW), None);
        alarm.went_off();
        assert_eq!(alarm.cover(Some(60 * second), NOW), None);
    }
}
