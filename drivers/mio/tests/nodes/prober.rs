//! Clients of one connection each, that are told from which address they come, or only whether they are let in.

use cubenet_mio::{CloseReason, ConnectError, Handler, Link, Message, Network, Transport};
use cubenet_session::{Client, Event};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle, sleep};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// Logs in, asks something or nothing, and leaves.
struct Once {
    session: Client<1_024>,
    asks: bool,
    answers: Sender<Result<String, String>>,
}

impl Once {
    fn answer(&mut self, link: &mut dyn Link, answer: Result<String, String>) {
        let _ = self.answers.send(answer);
        self.session.end(link);
        link.close();
    }
}

impl Handler for Once {
    fn connected(&mut self, link: &mut dyn Link) {
        let sent = self.session.connected(link, b"probes/prober");
        sent.expect("there is room for a login");
    }

    fn connect_failed(&mut self, error: ConnectError) {
        let _ = self.answers.send(Err(error.to_string()));
    }

    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        match self.session.received(link, &message) {
            Ok(Event::Opened) if self.asks => {
                let asked = self.session.send(link, b"/whoami");
                asked.expect("there is room for a question");
            }
            Ok(Event::Opened) => self.answer(link, Ok(String::new())),
            Ok(Event::Message([b'n', text @ ..])) => {
                let text = String::from_utf8(text.to_vec()).expect("an address is text");
                self.answer(link, Ok(text));
            }
            Ok(Event::Refused { reason, .. }) => self.answer(link, Err(format!("{reason:?}"))),
            Ok(Event::Ended(reason)) => self.answer(link, Err(format!("{reason:?}"))),
            Ok(_) => {}
            Err(error) => self.answer(link, Err(error.to_string())),
        }
    }

    fn closed(&mut self, _link: &mut dyn Link, reason: CloseReason) {
        // If it has answered, nothing listens.
        let _ = self.answers.send(Err(format!("closed: {reason}")));
    }
}

fn once(
    network: &Network,
    address: SocketAddr,
    asks: bool,
) -> (SocketAddr, Result<String, String>) {
    let (answers, answer) = channel();
    let once = Once {
        session: Client::new(),
        asks,
        answers,
    };
    let connection = network.connect(Transport::Tcp, address, |_| once).unwrap();
    let answer = answer.recv_timeout(PATIENCE);
    let answer = answer.unwrap_or_else(|_| Err("no answer".to_owned()));
    (connection.local_addr(), answer)
}

fn network() -> Network {
    Network::builder().workers(1).start().unwrap()
}

/// Whether a client is let in.
pub(crate) fn login(address: SocketAddr) -> Result<String, String> {
    once(&network(), address, false).1
}

/// Where a client is, and where the node says that it is.
pub(crate) fn who_am_i(address: SocketAddr) -> (SocketAddr, String) {
    let (own, seen) = once(&network(), address, true);
    (own, seen.expect("it is let in"))
}

/// A client that logs in again and again.
pub(crate) struct Prober {
    ends: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Prober {
    pub(crate) fn start(address: SocketAddr) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&ends);
        let thread = thread::spawn(move || {
            let network = network();
            let mut count = 0;
            while !ended.load(Relaxed) {
                let (_, answer) = once(&network, address, false);
                assert_eq!(answer, Ok(String::new()), "probe {count}");
                count += 1;
                sleep(Duration::from_millis(50));
            }
            count
        });
        Prober { ends, thread }
    }

    /// How many logins there were, all of which went well.
    pub(crate) fn stop(self) -> u64 {
        self.ends.store(true, Relaxed);
        self.thread.join().expect("every login goes well")
    }
}
