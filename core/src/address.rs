//! Limits per peer address: how many connections one host may have, and how fast it may open
//! them.
//!
//! A host is an IPv4 address, or the /64 of an IPv6 address, since that is what one customer is
//! given. Hosts in an exempt prefix (a gateway of the operator's own, a carrier's NAT) are not
//! limited.

use crate::time::Instant;
use crate::transport::Transport;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use core::str::FromStr;
use core::time::Duration;

/// What one host may have. The default limits nothing: many players may share one address.
///
/// ```
/// use cubenet_core::address::AddressLimits;
/// let limits = AddressLimits::new()
///     .with_max_connections(64)
///     .with_connections_per_second(10)
///     .with_exempt("10.0.0.0/8".parse()?);
/// # Ok::<(), cubenet_core::address::PrefixError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressLimits {
    max_connections: usize,
    connections_per_second: u32,
    exempt: Vec<Prefix>,
}

impl Default for AddressLimits {
    fn default() -> Self {
        AddressLimits::new()
    }
}

impl AddressLimits {
    /// No limits.
    pub const fn new() -> Self {
        AddressLimits {
            max_connections: usize::MAX,
            connections_per_second: u32::MAX,
            exempt: Vec::new(),
        }
    }

    /// Streams that one host may have open at once, and as many datagram connections. They are
    /// counted apart, so that datagrams forged in a host's name do not use up its streams.
    /// Default: no limit.
    #[must_use]
    pub fn with_max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections;
        self
    }

    /// Streams that one host may open in a second, and as many datagram connections. As many may
    /// come at once, and then one more whenever a place has become free. Default: no limit.
    #[must_use]
    pub fn with_connections_per_second(mut self, connections: u32) -> Self {
        self.connections_per_second = connections;
        self
    }

    /// See [`with_max_connections`](Self::with_max_connections).
    pub const fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// See [`with_connections_per_second`](Self::with_connections_per_second).
    pub const fn connections_per_second(&self) -> u32 {
        self.connections_per_second
    }

    /// See [`with_exempt`](Self::with_exempt).
    pub fn exempt(&self) -> &[Prefix] {
        &self.exempt
    }

    /// Does not limit the hosts of a prefix, beside those of prefixes given before.
    #[must_use]
    pub fn with_exempt(mut self, prefix: Prefix) -> Self {
        self.exempt.push(prefix);
        self
    }

    /// Whether anything is limited at all.
    pub fn limits_anything(&self) -> bool {
        self.max_connections < usize::MAX || self.connections_per_second < u32::MAX
    }
}

/// Addresses that begin with the same bits, written `10.0.0.0/8` or `2001:db8::/32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    bits: u8,
}

impl Prefix {
    /// The addresses that share their first `bits` bits with `address`.
    pub fn new(address: IpAddr, bits: u8) -> Result<Self, PrefixError> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if bits > longest {
            return Err(PrefixError(()));
        }
        Ok(Prefix { address, bits })
    }

    /// Whether `address` is one of them. An IPv4 address that is mapped into IPv6 counts as
    /// IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(prefix), IpAddr::V4(address)) => {
                let differ = u32::from(prefix) ^ u32::from(address);
                differ.leading_zeros() >= u32::from(self.bits)
            }
            (IpAddr::V6(prefix), IpAddr::V6(address)) => {
                let differ = u128::from(prefix) ^ u128::from(address);
                differ.leading_zeros() >= u32::from(self.bits)
            }
            _ => false,
        }
    }
}

/// A text that is no prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixError(());

impl fmt::Display for PrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a prefix: write an address and a number of bits, such as 10.0.0.0/8")
    }
}

impl core::error::Error for PrefixError {}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, bits) = text.split_once('/').ok_or(PrefixError(()))?;
        let address = address.parse().map_err(|_| PrefixError(()))?;
        let bits = bits.parse().map_err(|_| PrefixError(()))?;
        Prefix::new(address, bits)
    }
}

/// Why a connection of a host is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressRefusal {
    /// It has as many connections as it may have.
    TooMany,
    /// It opens connections faster than it may.
    TooFast,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Host {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for Host {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Host::V4(address.into()),
            IpAddr::V6(address) => Host::V6((u128::from(address) >> 64) as u64),
        }
    }
}

#[derive(Debug)]
struct Entry {
    open: usize,
    /// When the connections opened so far would all have been due, had they come evenly.
    due: Instant,
}

impl Entry {
    /// Whether it says no more than that the host has nothing open.
    fn is_spent(&self, now: Instant) -> bool {
        self.open == 0 && self.due <= now
    }
}

/// Below this many entries it is not worth looking for spent ones.
const SWEEP_FROM: usize = 1_024;

/// The hosts that have connections, or opened some within the last second.
///
/// Its size follows the connections that were admitted; a host that is refused takes no room.
/// A balanced tree: no choice of addresses makes it slow.
#[derive(Debug)]
pub struct AddressTable {
    limits: AddressLimits,
    hosts: BTreeMap<(Host, Transport), Entry>,
    sweep_at: usize,
}

impl AddressTable {
    /// An empty table.
    pub fn new(limits: AddressLimits) -> Self {
        AddressTable {
            limits,
            hosts: BTreeMap::new(),
            sweep_at: SWEEP_FROM,
        }
    }

    /// How many hosts it holds.
    pub fn len(&self) -> usize {
        self.hosts.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }

    /// A host opens a connection at `now`. If it may, [`AddressTable::handle_close`] must
    /// follow.
    pub fn handle_open(
        &mut self,
        address: IpAddr,
        transport: Transport,
        now: Instant,
    ) -> Result<(), AddressRefusal> {
        if self.is_exempt(address) {
            return Ok(());
        }
        let host = (Host::from(address), transport);
        let (open, due) = match self.hosts.get(&host) {
            Some(entry) => (entry.open, entry.due),
            None => (0, Instant::ZERO),
        };
        if open >= self.limits.max_connections {
            return Err(AddressRefusal::TooMany);
        }
        let rate = self.limits.connections_per_second;
        let interval = Duration::from_secs(1)
            .checked_div(rate)
            .unwrap_or(Duration::MAX);
        let due = due.max(now).after(interval);
        if due > now.after(Duration::from_secs(1)) {
            return Err(AddressRefusal::TooFast);
        }
        self.sweep(now);
        let open = open + 1;
        self.hosts.insert(host, Entry { open, due });
        Ok(())
    }

    /// A connection that was let in has closed.
    pub fn handle_close(&mut self, address: IpAddr, transport: Transport, now: Instant) {
        if self.is_exempt(address) {
            return;
        }
        let host = (Host::from(address), transport);
        let Some(entry) = self.hosts.get_mut(&host) else {
            return;
        };
        entry.open = entry.open.saturating_sub(1);
        if entry.is_spent(now) {
            self.hosts.remove(&host);
        }
    }

    fn is_exempt(&self, address: IpAddr) -> bool {
        let mut exempt = self.limits.exempt.iter();
        exempt.any(|prefix| prefix.contains(address))
    }

    /// Forgets spent entries once there may be as many of them as of others.
    fn sweep(&mut self, now: Instant) {
        if self.hosts.len() >= self.sweep_at {
            self.hosts.retain(|_, entry| !entry.is_spent(now));
            self.sweep_at = SWEEP_FROM.max(2 * self.hosts.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    fn at(millis: u64) -> Instant {
        Instant::from_micros(millis * 1_000)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_host_that_has_closed_is_still_held_to_its_rate() {
        let mut table = AddressTable::new(AddressLimits::new().with_connections_per_second(1));
        assert!(table.is_empty());
        let host = address("192.0.2.1");
        assert_eq!(table.handle_open(host, Transport::Tcp, at(0)), Ok(()));
        assert!(!table.is_empty());
        table.handle_close(host, Transport::Tcp, at(100));
        let refused = table.handle_open(host, Transport::Tcp, at(200));
        assert_eq!(refused, Err(AddressRefusal::TooFast));
        assert_eq!(table.handle_open(host, Transport::Tcp, at(1_000)), Ok(()));
        table.handle_close(host, Transport::Tcp, at(2_000));
        assert!(table.is_empty());
    }

    /// Opens a connection from each of these hosts at time zero; closes it, if `closes`.
    fn open_all(table: &mut AddressTable, hosts: core::ops::Range<u32>, closes: bool) {
        for host in hosts {
            let host = IpAddr::from(host.to_be_bytes());
            assert_eq!(table.handle_open(host, Transport::Tcp, at(0)), Ok(()));
            if closes {
                table.handle_close(host, Transport::Tcp, at(0));
            }
        }
    }

    #[test]
    fn spent_entries_are_forgotten_once_there_are_many() {
        let limits = AddressLimits::new().with_connections_per_second(1);
        let mut table = AddressTable::new(limits);
        let newcomer = address("192.0.2.1");
        open_all(&mut table, 0..100, true);
        assert_eq!(
            table.handle_open(newcomer, Transport::Tcp, at(5_000)),
            Ok(())
        );
        assert_eq!(table.len(), 101, "they are few");
        open_all(&mut table, 100..1_023, true);
        assert_eq!(table.len(), 1_024);
        assert_eq!(
            table.handle_open(newcomer, Transport::Tcp, at(9_000)),
            Ok(())
        );
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_table_is_swept_again_only_once_it_has_doubled() {
        let limits = AddressLimits::new().with_connections_per_second(1);
        let mut table = AddressTable::new(limits);
        open_all(&mut table, 0..1_025, false);
        open_all(&mut table, 2_000..2_200, true);
        for newcomer in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
            let opened = table.handle_open(address(newcomer), Transport::Tcp, at(5_000));
            assert_eq!(opened, Ok(()));
        }
        assert_eq!(table.len(), 1_228, "below 2,048 it is not swept");
    }

    #[test]
    fn no_limits_limit_nothing() {
        let limits = AddressLimits::new();
        assert!(!limits.limits_anything());
        assert!(limits.clone().with_max_connections(1).limits_anything());
        assert!(limits.with_connections_per_second(1).limits_anything());
    }

    #[test]
    fn a_close_of_a_host_that_has_nothing_open_changes_nothing() {
        let mut table = AddressTable::new(AddressLimits::new().with_max_connections(1));
        let host = address("192.0.2.1");
        table.handle_close(host, Transport::Tcp, at(0));
        assert_eq!(table.handle_open(host, Transport::Tcp, at(0)), Ok(()));
        assert!(table.handle_open(host, Transport::Tcp, at(0)).is_err());
    }

    #[test]
    fn a_host_has_no_more_connections_than_it_may() {
        let mut table = AddressTable::new(AddressLimits::new().with_max_connections(2));
        let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
        assert_eq!(table.handle_open(one, Transport::Tcp, at(0)), Ok(()));
        assert_eq!(table.handle_open(one, Transport::Tcp, at(0)), Ok(()));
        let mapped = address("::ffff:192.0.2.1");
        let refused = table.handle_open(mapped, Transport::Tcp, at(0));
        assert_eq!(refused, Err(AddressRefusal::TooMany));
        assert_eq!(table.handle_open(other, Transport::Tcp, at(0)), Ok(()));
        table.handle_close(one, Transport::Tcp, at(0));
        assert_eq!(table.handle_open(mapped, Transport::Tcp, at(0)), Ok(()));
        for address in [one, one, other] {
            table.handle_close(address, Transport::Tcp, at(2_000));
        }
        assert!(table.is_empty(), "{table:?}");
    }

    #[test]
    fn an_ipv6_host_is_its_prefix_of_64_bits() {
        let mut table = AddressTable::new(AddressLimits::new().with_max_connections(1));
        assert_eq!(
            table.handle_open(address("2001:db8::1"), Transport::Tcp, at(0)),
            Ok(())
        );
        let same = table.handle_open(address("2001:db8::ffff"), Transport::Tcp, at(0));
        assert_eq!(same, Err(AddressRefusal::TooMany));
        assert_eq!(
            table.handle_open(address("2001:db8:0:1::1"), Transport::Tcp, at(0)),
            Ok(())
        );
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn a_host_opens_connections_no_faster_than_it_may() {
        let mut table = AddressTable::new(AddressLimits::new().with_connections_per_second(4));
        let one = address("192.0.2.1");
        for _ in 0..4 {
            assert_eq!(table.handle_open(one, Transport::Tcp, at(1_000)), Ok(()));
        }
        let fifth = table.handle_open(one, Transport::Tcp, at(1_249));
        assert_eq!(fifth, Err(AddressRefusal::TooFast));
        assert_eq!(table.handle_open(one, Transport::Tcp, at(1_250)), Ok(()));
        let sixth = table.handle_open(one, Transport::Tcp, at(1_499));
        assert_eq!(sixth, Err(AddressRefusal::TooFast));
        for _ in 0..4 {
            assert_eq!(table.handle_open(one, Transport::Tcp, at(9_000)), Ok(()));
        }
    }

    #[test]
    fn a_rate_of_0_admits_no_connection_and_exempt_hosts_are_not_limited() {
        let mut table = AddressTable::new(
            AddressLimits::new()
                .with_connections_per_second(0)
                .with_exempt("10.0.0.0/8".parse().unwrap()),
        );
        let refused = table.handle_open(address("11.0.0.1"), Transport::Tcp, at(0));
        assert_eq!(refused, Err(AddressRefusal::TooFast));
        let exempt = address("10.1.2.3");
        assert_eq!(table.handle_open(exempt, Transport::Tcp, at(0)), Ok(()));
        table.handle_close(exempt, Transport::Tcp, at(0));
        assert!(table.is_empty());
    }

    #[test]
    fn hosts_that_came_and_went_take_no_room() {
        let mut table = AddressTable::new(AddressLimits::new().with_connections_per_second(1));
        for nth in 0..100_000_u32 {
            // A thousand a second.
            let host = IpAddr::V4(nth.into());
            assert_eq!(
                table.handle_open(host, Transport::Tcp, at(u64::from(nth))),
                Ok(())
            );
            table.handle_close(host, Transport::Tcp, at(u64::from(nth)));
            assert!(table.len() <= 2 * SWEEP_FROM);
        }
    }

    #[test]
    fn a_prefix_is_read_and_holds_its_addresses() {
        let prefix: Prefix = "10.0.0.0/8".parse().unwrap();
        assert!(prefix.contains(address("10.255.0.1")));
        assert!(prefix.contains(address("::ffff:10.0.0.1")));
        assert!(!prefix.contains(address("11.0.0.1")));
        assert!(!prefix.contains(address("::a00:1")));
        let prefix: Prefix = "2001:db8::/32".parse().unwrap();
        assert!(prefix.contains(address("2001:db8:ffff::1")));
        assert!(!prefix.contains(address("2001:db9::1")));
        let all: Prefix = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(address("255.1.2.3")));
        for text in ["10.0.0.0", "10.0.0.0/33", "::/129", "ten/8", "10.0.0.0/x"] {
            let error = text.parse::<Prefix>().unwrap_err();
            assert!(error.to_string().contains("10.0.0.0/8"), "{text}");
        }
    }

    #[test]
    fn the_default_limits_nothing() {
        assert!(!AddressLimits::default().limits_anything());
        let limits = AddressLimits::new().with_connections_per_second(7);
        assert!(limits.limits_anything());
    }

    #[test]
    fn streams_and_datagram_connections_are_counted_apart() {
        let mut table = AddressTable::new(
            AddressLimits::new()
                .with_max_connections(1)
                .with_connections_per_second(1),
        );
        let one = address("192.0.2.1");
        for transport in [Transport::Udp, Transport::Tcp] {
            assert_eq!(table.handle_open(one, transport, at(0)), Ok(()));
            let second = table.handle_open(one, transport, at(0));
            assert_eq!(second, Err(AddressRefusal::TooMany));
        }
    }

    #[test]
    fn an_exempt_host_that_closes_leaves_its_neighbours_counted() {
        let mut table = AddressTable::new(
            AddressLimits::new()
                .with_max_connections(1)
                .with_exempt("2001:db8::1/128".parse().unwrap()),
        );
        let (exempt, other) = (address("2001:db8::1"), address("2001:db8::2"));
        let tcp = Transport::Tcp;
        assert_eq!(table.handle_open(other, tcp, at(0)), Ok(()));
        assert_eq!(table.handle_open(exempt, tcp, at(0)), Ok(()));
        table.handle_close(exempt, tcp, at(0));
        let second = table.handle_open(other, tcp, at(0));
        assert_eq!(second, Err(AddressRefusal::TooMany));
    }
}
