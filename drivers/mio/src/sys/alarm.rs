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

pub(crate) struct Alarm {
    timer: OwnedFd,
    /// When it goes off.
    set_to: Instant,
}

impl Alarm {
    pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        let flags = libc::TFD_CLOEXEC | libc::TFD_NONBLOCK;
        // SAFETY: it takes no memory of ours.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
        check(fd)?;
        // SAFETY: the call has succeeded, and nothing else has this descriptor.
        let timer = unsafe { OwnedFd::from_raw_fd(fd) };
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        Ok(Alarm {
            timer,
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
            if self.set(timeout).is_err() {
                return Some(timeout);
            }
            self.set_to = deadline;
        }
        None
    }

    // A deadline of the driver's clock is less than 2^44 seconds away; the fields are shorter on some systems.
    #[allow(clippy::cast_possible_wrap, clippy::cast_lossless)]
    fn set(&self, timeout: Duration) -> io::Result<()> {
        let never = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let timer = libc::itimerspec {
            it_interval: never,
            it_value: libc::timespec {
                tv_sec: timeout.as_secs() as _,
                tv_nsec: timeout.subsec_nanos() as _,
            },
        };
        let fd = self.timer.as_raw_fd();
        // SAFETY: the kernel reads `timer` during the call.
        check(unsafe { libc::timerfd_settime(fd, 0, &raw const timer, ptr::null_mut()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mio::{Events, Poll};

    const TOKEN: Token = Token(7);
    const NOW: Instant = Instant::from_micros(1_000_000);

    fn wait(poll: &mut Poll, timeout: Option<Duration>) -> bool {
        let mut events = Events::with_capacity(4);
        poll.poll(&mut events, timeout).unwrap();
        events.iter().any(|event| event.token() == TOKEN)
    }

    #[test]
    fn an_alarm_ends_a_wait_each_time_that_it_goes_off() {
        let mut poll = Poll::new().unwrap();
        let mut alarm = Alarm::new(poll.registry(), TOKEN).unwrap();
        for _ in 0..3 {
            let left = alarm.cover(Some(Duration::from_millis(2)), NOW);
            assert_eq!(left, None);
            assert!(wait(&mut poll, left));
            alarm.went_off();
        }
        assert!(!wait(&mut poll, Some(Duration::from_millis(20))), "once");
    }

    #[test]
    fn an_alarm_is_set_anew_only_for_what_comes_before_it() {
        let poll = Poll::new().unwrap();
        let mut alarm = Alarm::new(poll.registry(), TOKEN).unwrap();
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
