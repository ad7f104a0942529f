//! What sessions may take, and how fast they may come.

use crate::ring::MAX_PAYLOAD;
use cubenet_core::Instant;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

/// Bounds of the sessions of a node. Each can be set.
#[derive(Clone, Debug)]
pub struct SessionLimits {
    max_sessions: usize,
    max_coming: usize,
    max_credentials: usize,
    max_unacknowledged: usize,
    max_message: usize,
    wait: Duration,
    logins_per_second: u32,
    resumes_per_second: u32,
    wrong_tokens_per_minute: u32,
}

impl SessionLimits {
    /// The defaults.
    pub fn new() -> Self {
        SessionLimits {
            // As many as connections.
            max_sessions: 100_000,
            // With the credentials of each, four megabytes.
            max_coming: 1_000,
            // A signed token with its claims has one or two thousand bytes.
            max_credentials: 4_096,
            max_unacknowledged: 64 * 1_024,
            max_message: MAX_PAYLOAD,
            wait: Duration::from_secs(60),
            logins_per_second: 1_000,
            resumes_per_second: 10_000,
            wrong_tokens_per_minute: 10,
        }
    }

    /// The most sessions on this node, those that wait for their clients included. Logins beyond are
    /// refused as busy; so are resumes of sessions that were elsewhere.
    pub fn max_sessions(&self) -> usize {
        self.max_sessions
    }

    /// Sets [`max_sessions`](Self::max_sessions); by default 100,000.
    #[must_use]
    pub fn with_max_sessions(mut self, sessions: usize) -> Self {
        self.max_sessions = sessions;
        self
    }

    /// The most logins and resumes that are looked at at once: those that wait for the application or the
    /// store. Others are refused as busy.
    pub fn max_coming(&self) -> usize {
        self.max_coming
    }

    /// Sets [`max_coming`](Self::max_coming); by default 1,000.
    #[must_use]
    pub fn with_max_coming(mut self, coming: usize) -> Self {
        self.max_coming = coming;
        self
    }

    /// The most bytes of a login's credentials. Longer ones are refused unseen.
    pub fn max_credentials(&self) -> usize {
        self.max_credentials
    }

    /// Sets [`max_credentials`](Self::max_credentials); by default 4,096.
    #[must_use]
    pub fn with_max_credentials(mut self, bytes: usize) -> Self {
        self.max_credentials = bytes;
        self
    }

    /// The longest message that a session sends, in bytes.
    pub fn max_message(&self) -> usize {
        self.max_message
    }

    /// Sets [`max_message`](Self::max_message); by default 65,526, and never more. Nine bytes less than
    /// the driver's [`max_message`](cubenet_core::Limits::max_message), if that is smaller than 65,535.
    #[must_use]
    pub fn with_max_message(mut self, bytes: usize) -> Self {
        self.max_message = bytes.min(MAX_PAYLOAD);
        self
    }

    /// The most bytes of messages to a client that it has not acknowledged, for each session; each
    /// counts 64 bytes more than its length. One message is always accepted where there is none.
    pub fn max_unacknowledged(&self) -> usize {
        self.max_unacknowledged
    }

    /// Sets [`max_unacknowledged`](Self::max_unacknowledged); by default 64 KiB.
    #[must_use]
    pub fn with_max_unacknowledged(mut self, bytes: usize) -> Self {
        self.max_unacknowledged = bytes;
        self
    }

    /// How long a session waits for its client to come back.
    pub fn wait(&self) -> Duration {
        self.wait
    }

    /// Sets [`wait`](Self::wait); by default a minute.
    #[must_use]
    pub fn with_wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Logins that are looked at in a second; others are refused as busy.
    pub fn logins_per_second(&self) -> u32 {
        self.logins_per_second
    }

    /// Sets [`logins_per_second`](Self::logins_per_second); by default 1,000.
    #[must_use]
    pub fn with_logins_per_second(mut self, logins: u32) -> Self {
        self.logins_per_second = logins;
        self
    }

    /// Resumes that are looked at in a second; others are refused as busy. When a node dies, all its
    /// clients come at once.
    pub fn resumes_per_second(&self) -> u32 {
        self.resumes_per_second
    }

    /// Sets [`resumes_per_second`](Self::resumes_per_second); by default 10,000.
    #[must_use]
    pub fn with_resumes_per_second(mut self, resumes: u32) -> Self {
        self.resumes_per_second = resumes;
        self
    }

    /// Wrong tokens from one address in a minute, after which its resumes are refused as busy until
    /// the minute is over. (An IPv6 address counts as its network of 64 bits.)
    pub fn wrong_tokens_per_minute(&self) -> u32 {
        self.wrong_tokens_per_minute
    }

    /// Sets [`wrong_tokens_per_minute`](Self::wrong_tokens_per_minute); by default 10.
    #[must_use]
    pub fn with_wrong_tokens_per_minute(mut self, tokens: u32) -> Self {
        self.wrong_tokens_per_minute = tokens;
        self
    }

    /// How long a store keeps a session without an update: longer than the wait, since a session that
    /// has a client is updated this often only by [`renew_every`](Self::renew_every).
    pub(crate) fn expires_in(&self) -> Duration {
        self.wait.saturating_add(self.renew_every())
    }

    /// How often a session is updated of which there is nothing new.
    pub(crate) fn renew_every(&self) -> Duration {
        (self.wait / 3).max(Duration::from_millis(1))
    }
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts of what comes too fast.
#[derive(Debug, Default)]
pub(super) struct Rates {
    logins: Rate,
    resumes: Rate,
    /// Wrong tokens by address, of the minute that began then.
    wrong: HashMap<IpAddr, u32>,
    minute: Option<Instant>,
}

/// How many there were in the second that began then.
#[derive(Debug, Default)]
struct Rate {
    second: Option<Instant>,
    count: u32,
}

/// The most addresses with wrong tokens; further ones of a minute are not counted.
const MAX_ADDRESSES: usize = 65_536;

impl Rates {
    pub(super) fn login(&mut self, now: Instant, limits: &SessionLimits) -> bool {
        self.logins.count(now, limits.logins_per_second)
    }

    pub(super) fn resume(&mut self, from: IpAddr, now: Instant, limits: &SessionLimits) -> bool {
        self.begin_minute(now);
        let wrong = self.wrong.get(&prefix(from)).copied().unwrap_or(0);
        wrong < limits.wrong_tokens_per_minute && self.resumes.count(now, limits.resumes_per_second)
    }

    pub(super) fn wrong_token(&mut self, from: IpAddr, now: Instant) {
        self.begin_minute(now);
        if self.wrong.len() < MAX_ADDRESSES {
            *self.wrong.entry(prefix(from)).or_insert(0) += 1;
        }
    }

    fn begin_minute(&mut self, now: Instant) {
        let over = |began: Instant| now.since(began) >= Duration::from_secs(60);
        if self.minute.is_none_or(over) {
            self.minute = Some(now);
            self.wrong = HashMap::new();
        }
    }
}

impl Rate {
    /// Counts one. Returns whether it is within the limit.
    fn count(&mut self, now: Instant, limit: u32) -> bool {
        let over = |began: Instant| now.since(began) >= Duration::from_secs(1);
        if self.second.is_none_or(over) {
            self.second = Some(now);
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        self.count <= limit
    }
}

/// An address, or the network of 64 bits that a customer of IPv6 has.
fn prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let mut segments = address.segments();
            segments[4..].fill(0);
            IpAddr::V6(segments.into())
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn so_many_logins_are_looked_at_in_a_second() {
        let limits = SessionLimits::new().with_logins_per_second(2);
        let mut rates = Rates::default();
        let looked_at =
            |rates: &mut Rates, now| (0..5).filter(|_| rates.login(now, &limits)).count();
        assert_eq!(looked_at(&mut rates, at(1)), 2);
        assert_eq!(looked_at(&mut rates, at(2)), 2);
    }

    #[test]
    fn an_address_with_wrong_tokens_waits_for_the_next_minute() {
        let limits = SessionLimits::new().with_wrong_tokens_per_minute(2);
        let mut rates = Rates::default();
        let from: IpAddr = "2001:db8::1".parse().unwrap();
        let neighbour = "2001:db8::2".parse().unwrap();
        let other = "2001:db8:0:1::1".parse().unwrap();
        for _ in 0..2 {
            assert!(rates.resume(from, at(1), &limits));
            rates.wrong_token(from, at(1));
        }
        assert!(!rates.resume(from, at(2), &limits));
        assert!(!rates.resume(neighbour, at(2), &limits));
        assert!(rates.resume(other, at(2), &limits));
        assert!(rates.resume(from, at(61), &limits));
    }
}
