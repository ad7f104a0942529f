//! Work takes time, iterations are bounded, and callbacks of different workers interleave.

use super::*;
use cubenet_sim::{Budgets, Costs};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

const COSTS: Costs = Costs::new()
    .with_callback(Duration::from_micros(100))
    .with_byte(Duration::ZERO)
    .with_system_call(Duration::ZERO);

/// Writes down which client is served, and answers.
#[derive(Clone, Default)]
struct Order(Arc<Mutex<Vec<u8>>>);

impl Handler for Order {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        self.0.lock().unwrap().push(message[0]);
        let _ = link.send(&message);
    }
}

/// A server with these limits and costs, and two clients whose messages all wait for it.
fn two_waiting(
    transport: Transport,
    budgets: Budgets,
    costs: Costs,
    counts: [u8; 2],
) -> (Simulation, Order, [Client; 2]) {
    let simulation = Simulation::new(1);
    let builder = simulation.network(SERVER).budgets(budgets).costs(costs);
    let server = builder.start().unwrap();
    let order = Order::default();
    let handler = order.clone();
    server
        .listen(transport, (SERVER, 7_000), move |_| Some(handler.clone()))
        .unwrap();
    let network = simulation.network(CLIENT).start().unwrap();
    let clients = [Client::default(), Client::default()];
    let connect = |client: &Client| client.connect(&network, transport, "10.0.0.1:7000");
    let connections = clients.each_ref().map(connect);
    for connection in &connections {
        connection.send([0]).unwrap();
    }
    simulation.run_for(Duration::from_secs(1));
    order.0.lock().unwrap().clear();
    simulation.freeze(SERVER, Duration::from_secs(1));
    for (nth, connection) in connections.iter().enumerate() {
        for _ in 0..counts[nth] {
            connection.send([nth as u8 + 1]).unwrap();
        }
    }
    simulation.run_for(Duration::from_millis(999));
    for client in &clients {
        client.0.lock().unwrap().messages.clear();
    }
    simulation.run_for(Duration::from_millis(1));
    (simulation, order, clients)
}

#[test]
fn an_iteration_ends_after_as_many_messages_as_the_limits_say() {
    let budgets = Budgets::new().with_messages(2);
    let free = Costs::default();
    let (simulation, order, _) = two_waiting(Transport::Tcp, budgets, free, [5, 3]);
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(*order.0.lock().unwrap(), [1, 1, 2, 2, 1, 1, 2, 1]);
}

#[test]
fn an_iteration_ends_when_its_time_is_over() {
    let budgets = Budgets::new().with_time(Duration::from_micros(300));
    let (simulation, order, _) = two_waiting(Transport::Tcp, budgets, COSTS, [5, 4]);
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(*order.0.lock().unwrap(), [1, 1, 1, 2, 2, 2, 1, 1, 2]);
}

#[test]
fn each_answer_leaves_when_its_callback_is_done() {
    for transport in [Transport::Tcp, Transport::Udp] {
        let budgets = Budgets::new();
        let (simulation, _, [client, other]) = two_waiting(transport, budgets, COSTS, [200, 1]);
        // Both paths take 100 us.
        let counts = || [client.messages().len(), other.messages().len()];
        simulation.run_for(Duration::from_micros(1_050 + 100));
        assert_eq!(counts(), [10, 0], "{transport}");
        simulation.run_for(Duration::from_millis(1));
        let expected = match transport {
            // An iteration is a millisecond; then the other is served.
            Transport::Tcp => [19, 1],
            // They share a socket, and the socket has the iterations.
            _ => [20, 0],
        };
        assert_eq!(counts(), expected, "{transport}");
        simulation.run_for(Duration::from_millis(19));
        assert_eq!(counts(), [200, 1], "{transport}");
    }
}

struct Computes(Network);

impl Handler for Computes {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        self.0.spend(Duration::from_micros(50));
        let _ = link.send(&message);
    }
}

#[test]
fn bytes_system_calls_and_computing_cost_what_was_said() {
    let costs = Costs::new()
        .with_callback(Duration::from_micros(1))
        .with_byte(Duration::from_nanos(10))
        .with_system_call(Duration::from_micros(5));
    let simulation = Simulation::new(2);
    let server = simulation.network(SERVER).costs(costs).start().unwrap();
    let computes = server.clone();
    server
        .listen(Transport::Tcp, (SERVER, 7_000), move |_| {
            Some(Computes(computes.clone()))
        })
        .unwrap();
    let network = simulation.network(CLIENT).start().unwrap();
    let client = Client::default();
    let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
    simulation.run_for(Duration::from_secs(1));
    let before = server.busy();
    assert_eq!(before, Duration::from_micros(5 + 1), "accept, `accepted`");
    connection.send([0; 998]).unwrap();
    simulation.run_for(Duration::from_secs(1));
    // A read and a write of a thousand bytes, a callback, and what it computes.
    let expected = Duration::from_micros(2 * (5 + 10) + 1 + 50);
    assert_eq!(server.busy(), before + expected);
    assert_eq!(client.messages().len(), 1);
}

#[test]
fn a_worker_that_is_busy_answers_late_and_a_second_one_helps() {
    let last_answer = |threads| {
        let simulation = Simulation::new(3);
        let builder = simulation.network(SERVER).costs(COSTS).threads(threads);
        let server = builder.start().unwrap();
        server
            .listen(Transport::Tcp, (SERVER, 7_000), |_| Some(Echo))
            .unwrap();
        let network = simulation.network(CLIENT).start().unwrap();
        let client = Client::default();
        let connections: Vec<_> = (0..100)
            .map(|_| client.connect(&network, Transport::Tcp, "10.0.0.1:7000"))
            .collect();
        simulation.run_for(Duration::from_secs(1));
        let begun = simulation.now();
        for connection in &connections {
            for _ in 0..10 {
                connection.send([0; 10]).unwrap();
            }
        }
        assert!(simulation.run_while(Duration::from_secs(1), || client.messages().len() < 1_000));
        simulation.now().since(begun).as_millis()
    };
    assert_eq!(last_answer(1), 100);
    assert_eq!(last_answer(2), 50);
}

/// Adds what arrives to a sum that all connections share: right, or with a race.
struct Adds {
    sum: Arc<Mutex<usize>>,
    races: bool,
}

impl Handler for Adds {
    fn received(&mut self, link: &mut dyn Link, _message: Message<'_>) {
        if self.races {
            let seen = *self.sum.lock().unwrap();
            // Another connection may add before this one does.
            let _ = link.send(b"added");
            *self.sum.lock().unwrap() = seen + 1;
        } else {
            *self.sum.lock().unwrap() += 1;
            let _ = link.send(b"added");
        }
    }
}

/// Ten clients add once each. Returns the sum, and the hash of the run.
fn add(seed: u64, races: bool, interleave: f64) -> (usize, u64) {
    let simulation = Simulation::builder()
        .seed(seed)
        .interleave(interleave)
        .build()
        .unwrap();
    let server = simulation.network(SERVER).threads(4).start().unwrap();
    let sum = Arc::new(Mutex::new(0));
    let shared = Arc::clone(&sum);
    server
        .listen(Transport::Tcp, (SERVER, 7_000), move |_| {
            let sum = Arc::clone(&shared);
            Some(Adds { sum, races })
        })
        .unwrap();
    let network = simulation.network(CLIENT).start().unwrap();
    let client = Client::default();
    for _ in 0..10 {
        let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
        connection.send("add").unwrap();
    }
    simulation.run_for(Duration::from_secs(1));
    assert_eq!(client.messages().len(), 10, "seed {seed}");
    simulation.audit().unwrap();
    let sum = *sum.lock().unwrap();
    (sum, simulation.trace_hash())
}

#[test]
fn a_race_of_two_workers_shows_for_some_seeds_and_again_for_the_same() {
    let mut wrong = 0;
    for seed in 0..20 {
        assert_eq!(add(seed, true, 0.0).0, 10, "nothing is held up");
        assert_eq!(add(seed, false, 0.3).0, 10, "seed {seed}");
        let run = add(seed, true, 0.3);
        assert_eq!(run, add(seed, true, 0.3), "seed {seed}");
        wrong += usize::from(run.0 < 10);
    }
    assert!(wrong > 5, "{wrong} of 20");
}

/// Moves something from one account to another, and locks the two in the given order.
struct Moves {
    accounts: Arc<[Mutex<i64>; 2]>,
    from: usize,
}

impl Handler for Moves {
    fn received(&mut self, link: &mut dyn Link, _message: Message<'_>) {
        let mut from = self.accounts[self.from].lock().unwrap();
        let _ = link.send(b"moving");
        let mut to = self.accounts[1 - self.from].lock().unwrap();
        *from -= 1;
        *to += 1;
    }
}

#[test]
fn two_locks_that_are_taken_in_two_orders_are_a_deadlock_for_some_seed() {
    let run = |seed| {
        let simulation = Simulation::builder()
            .seed(seed)
            .interleave(0.3)
            .build()
            .unwrap();
        let server = simulation.network(SERVER).threads(2).start().unwrap();
        let accounts = Arc::new([Mutex::new(0), Mutex::new(0)]);
        let next = AtomicUsize::new(0);
        server
            .listen(Transport::Tcp, (SERVER, 7_000), move |_| {
                let accounts = Arc::clone(&accounts);
                let from = next.fetch_add(1, Ordering::Relaxed) % 2;
                Some(Moves { accounts, from })
            })
            .unwrap();
        let network = simulation.network(CLIENT).start().unwrap();
        let client = Client::default();
        for _ in 0..4 {
            let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
            connection.send("move").unwrap();
        }
        simulation.run_for(Duration::from_secs(30));
        assert_eq!(client.messages().len(), 4);
    };
    let deadlock = (0..50).find_map(|seed| {
        let panic = catch_unwind(AssertUnwindSafe(|| run(seed))).err()?;
        let message = panic.downcast::<String>().expect("a message");
        Some(*message)
    });
    let message = deadlock.expect("some seed shows it");
    assert!(message.starts_with("deadlock"), "{message}");
    assert!(message.contains("worker 0 of 10.0.0.1"), "{message}");
    assert!(message.contains("worker 1 of 10.0.0.1"), "{message}");
}

#[test]
fn a_thread_of_the_applications_own_ticks_in_virtual_time() {
    for interleave in [0.0, 0.3] {
        let builder = Simulation::builder().seed(4).interleave(interleave);
        let simulation = builder.build().unwrap();
        let (_server, network) = server_and_client(&simulation);
        let client = Client::default();
        let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
        let ticks = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&ticks);
        simulation.spawn("tick", move |thread| {
            while thread.sleep(Duration::from_millis(50)) {
                counted.fetch_add(1, Ordering::Relaxed);
                connection.send("tick").unwrap();
            }
        });
        simulation.run_for(Duration::from_millis(1_020));
        let ticked = ticks.load(Ordering::Relaxed);
        // Where it is held up at `send`, that is a little later each time.
        assert!((19..=20).contains(&ticked), "{ticked}");
        assert_eq!(client.messages().len(), ticked);
        drop(simulation);
    }
}

#[test]
fn a_panic_of_a_thread_panics_the_run_of_the_simulation() {
    let simulation = Simulation::new(5);
    simulation.spawn("fails", |_| panic!("on purpose"));
    let run = catch_unwind(AssertUnwindSafe(|| {
        simulation.run_for(Duration::from_secs(1));
    }));
    let panic = run.unwrap_err();
    assert_eq!(*panic.downcast::<&str>().unwrap(), "on purpose");
}

/// Pauses at the second message.
#[derive(Clone, Default)]
struct Pauses(Arc<Mutex<Vec<Connection>>>, Order);

impl Handler for Pauses {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        self.1.received(link, message);
        if self.1.0.lock().unwrap().len() == 2 {
            link.pause();
        }
    }
}

#[test]
fn a_pause_at_the_end_of_an_iteration_is_only_a_pause() {
    for costs in [Costs::default(), COSTS] {
        let simulation = Simulation::new(6);
        let budgets = Budgets::new().with_messages(2);
        let builder = simulation.network(SERVER).budgets(budgets).costs(costs);
        let server = builder.start().unwrap();
        let handler = Pauses::default();
        let accepted = handler.clone();
        server
            .listen(Transport::Tcp, (SERVER, 7_000), move |connection| {
                accepted.0.lock().unwrap().push(connection.clone());
                Some(accepted.clone())
            })
            .unwrap();
        let network = simulation.network(CLIENT).start().unwrap();
        let client = Client::default();
        let connection = client.connect(&network, Transport::Tcp, "10.0.0.1:7000");
        for _ in 0..7 {
            connection.send([1; 50]).unwrap();
        }
        simulation.run_for(Duration::from_secs(1));
        assert_eq!(client.messages().len(), 2);
        handler.0.lock().unwrap()[0].resume();
        simulation.run_for(Duration::from_secs(1));
        assert_eq!(client.messages().len(), 7);
        assert_eq!(simulation.census().partial_bytes, 0, "nothing is held");
    }
}

#[test]
fn an_admitted_peer_is_closed_once_in_any_order_of_threads() {
    for seed in 0..200 {
        let builder = Simulation::builder().seed(seed).interleave(0.5);
        let simulation = builder.build().unwrap();
        let server = simulation.network(SERVER).threads(3).start().unwrap();
        let ends = Client::default();
        let handler = ends.clone();
        server
            .listen(Transport::Tcp, (SERVER, 7_000), move |connection| {
                let _ = connection.send("welcome");
                Some(handler.clone())
            })
            .unwrap();
        let raw = simulation.raw_connect(CLIENT, (SERVER, 7_000)).unwrap();
        simulation.run_while(Duration::from_secs(1), || !raw.is_connected());
        raw.write(b"\x00\x02hi");
        raw.reset();
        simulation.run_for(Duration::from_secs(1));
        let accepted = server.metrics().accepted as usize;
        assert_eq!(ends.closed().len(), accepted, "seed {seed}");
        simulation.audit().unwrap();
    }
}
