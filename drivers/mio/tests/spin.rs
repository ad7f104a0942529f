//! Workers that ask for events for a while before they sleep.

use cubenet_mio::{Network, Transport};
use cubenet_tests::system::own_processor_time;
use cubenet_tests::{RawClient, Reports, echo};
use std::thread;
use std::time::Duration;

// One test, so that nothing else takes the processor's time meanwhile.
#[test]
fn a_worker_that_spins_answers_and_sleeps_once_nothing_has_come_for_long_enough() {
    let builder = Network::builder().workers(2).spin(Duration::from_millis(5));
    let network = builder.start().unwrap();
    let address = Reports::default().listen(&network, Transport::Tcp, echo);
    let mut client = RawClient::connect(address);
    for pause in [0, 1, 20] {
        for _ in 0..20 {
            client.send(b"hello");
            assert_eq!(client.receive(), b"hello");
            thread::sleep(Duration::from_millis(pause));
        }
    }
    let Some(before) = own_processor_time() else {
        return;
    };
    thread::sleep(Duration::from_millis(400));
    let used = own_processor_time().unwrap().saturating_sub(before);
    assert!(used < Duration::from_millis(100), "{used:?} of 400 ms");
    client.send(b"awake");
    assert_eq!(client.receive(), b"awake");
    network.stop(Duration::ZERO);
}
