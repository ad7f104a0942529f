//! Two hosts of a simulation.

use crate::{Path, World, limits};
use cubenet_core::Transport;
use cubenet_sim::{Conditions, Network, Simulation};
use cubenet_tests::harness::{Accept, Connected, Connection, Driven, Net};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 3, 1));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 3, 2));

pub(crate) struct Simulated {
    simulation: Simulation,
    server: Driven<Network>,
    client: Driven<Network>,
}

impl Simulated {
    pub(crate) fn new(path: Path, buffer: Option<usize>) -> Self {
        let conditions = Conditions::new()
            .with_latency(path.delay)
            .with_loss(path.loss)
            .with_bandwidth(path.bandwidth)
            .with_queue(path.queue);
        let simulation = Simulation::builder().seed(1).conditions(conditions);
        let simulation = simulation.build().expect("the conditions make sense");
        let [server, client] = [SERVER, CLIENT].map(|host| {
            let mut builder = simulation.network(host).limits(limits());
            if let Some(bytes) = buffer {
                builder = builder.stream_buffer(bytes);
            }
            let network = builder.start().expect("the host is free");
            Driven::new(network, (host, 0).into())
        });
        Simulated {
            simulation,
            server,
            client,
        }
    }
}

impl World for Simulated {
    fn listen(&self, transport: Transport, accept: Accept) -> SocketAddr {
        let any = (SERVER, 0).into();
        let listener = Net::listen(&self.server, transport, Some(any), accept);
        listener.expect("a free port").local_addr()
    }

    fn connect(
        &self,
        transport: Transport,
        to: SocketAddr,
        connected: Connected,
    ) -> Arc<dyn Connection> {
        let connection = Net::connect(&self.client, transport, to, connected);
        connection.expect("it can be connected to")
    }

    fn unused(&self) -> SocketAddr {
        (SERVER, 9).into()
    }

    fn cut(&self) {
        self.simulation.partition(SERVER, CLIENT);
    }

    fn pass(&self, time: Duration) {
        self.simulation.run_for(time);
    }

    fn until(&self, longest: Duration, done: &mut dyn FnMut() -> bool) -> bool {
        self.simulation.run_while(longest, || !done())
    }

    fn now(&self) -> Duration {
        Duration::from_micros(self.simulation.now().as_micros())
    }
}
