//! What goes wrong, and when.

use crate::{SERVER, host};
use cubenet_sim::{Bursts, Conditions, Error, Faults, Limits, Network, Simulation};
use std::time::Duration;

/// Everything at once, a little of each.
pub(crate) fn at_first() -> (Conditions, Faults) {
    let conditions = Conditions::new()
        .with_latency(Duration::from_millis(20))
        .with_jitter(Duration::from_millis(15))
        .with_loss(0.02)
        .with_bursts(Some(
            Bursts::new()
                .with_begin(0.000_5)
                .with_end(0.1)
                .with_loss(0.5),
        ))
        .with_duplicate(0.01)
        .with_reorder(0.02)
        .with_corrupt(0.01)
        .with_undetected(0.5)
        .with_spoof(0.005)
        .with_bandwidth(Some(50_000_000))
        .with_queue(128 * 1024)
        .with_mtu(1_500)
        .with_refuse(0.02)
        .with_reset(0.000_2)
        .with_half_open(0.000_2);
    let faults = Faults::new()
        .with_short_read(0.2)
        .with_partial_write(0.1)
        .with_full_buffer(0.05)
        .with_stall(0.01)
        .with_stall_for(Duration::from_secs(1))
        .with_accept_failure(0.05)
        .with_reset_loses_unread(0.3);
    (conditions, faults)
}

/// Perhaps something changes: about once in two seconds.
pub(crate) fn change(
    simulation: &Simulation,
    networks: &mut [Network],
    limits: &Limits,
) -> Result<(), Error> {
    if !simulation.random().is_multiple_of(20) {
        return Ok(());
    }
    let nth = (simulation.random() % networks.len() as u64) as usize;
    let client = host(nth);
    let short = Duration::from_millis(simulation.random() % 30_000);
    let later = simulation.now().after(short);
    match simulation.random() % 6 {
        0 => {
            simulation.partition(SERVER, client);
            simulation.at(later, move |simulation| simulation.heal(SERVER, client));
        }
        1 => simulation.freeze(client, short),
        2 => simulation.freeze(SERVER, short / 10),
        3 => {
            // The power fails, and comes back with a network that knows nothing.
            simulation.crash(client);
            networks[nth] = simulation.network(client).limits(limits.clone()).start()?;
        }
        4 => {
            let sockets = simulation.census().sockets / 2;
            simulation.set_descriptors(SERVER, sockets);
            simulation.at(later, |simulation| {
                simulation.set_descriptors(SERVER, usize::MAX);
            });
        }
        _ => {
            let (conditions, _) = at_first();
            let conditions = conditions
                .with_loss((simulation.random() % 15) as f64 / 100.0)
                .with_latency(Duration::from_millis(simulation.random() % 200));
            simulation.set_path(client, SERVER, conditions.clone())?;
            simulation.set_path(SERVER, client, conditions)?;
        }
    }
    Ok(())
}

/// Nothing goes wrong any more.
pub(crate) fn clear(simulation: &Simulation, hosts: usize) {
    simulation.set_descriptors(SERVER, usize::MAX);
    for client in (0..hosts).map(host) {
        simulation.heal(SERVER, client);
        for (from, to) in [(SERVER, client), (client, SERVER)] {
            // The default makes sense, so it is not refused.
            let _ = simulation.set_path(from, to, Conditions::default());
        }
    }
    let _ = simulation.set_faults(Faults::default());
}
