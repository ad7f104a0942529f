use cubenet_core::connection::{handle_fin, handle_timeout, poll_timeout, reading};
use cubenet_core::{
    Action, Backlog, CloseReason, ConnectionId, Decoder, Growing, Handler, Instant, Limits, Link,
    Reading, RecvHalf, SendError, SendHalf, SendQueue, State, Transport,
};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// The sending side of a connection, as its callbacks see it.
struct Sending<'a> {
    half: SendHalf,
    queue: SendQueue,
    paused: bool,
    addresses: [SocketAddr; 2],
    limits: &'a Limits,
    now: Instant,
}

impl Sending<'_> {
    fn backlog(&self) -> Backlog {
        Backlog::growing(self.queue.len(), self.queue.len())
    }
}

#[rustfmt::skip]
impl Link for Sending<'_> {
    fn send(&mut self, message: &[u8]) -> Result<(), SendError> {
        let header = self.half.admit(message.len(), self.backlog(), self.limits)?;
        self.queue.push(&header);
        self.queue.push(message);
        self.half.handle_queued(false, self.backlog(), self.now, self.limits);
        Ok(())
    }
    fn close(&mut self) { self.half.close(self.now); }
    fn abort(&mut self) { self.half.abort(CloseReason::Local); }
    fn is_closed(&self) -> bool { !self.half.state().accepts_messages() }
    fn transport(&self) -> Transport { Transport::Tcp }
    fn peer_addr(&self) -> SocketAddr { self.addresses[0] }
    fn local_addr(&self) -> SocketAddr { self.addresses[1] }
    fn id(&self) -> ConnectionId { ConnectionId::from_u64(0) }
    fn queued(&self) -> usize { self.queue.len() }
    fn pause(&mut self) { self.paused = true; }
    fn resume(&mut self) { self.paused = false; }
    fn now(&self) -> Instant { self.now }
}

/// Serves one accepted connection on this thread until it has closed.
#[rustfmt::skip]
pub(crate) fn serve(mut stream: TcpStream, handler: &mut dyn Handler, limits: &Limits) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let addresses = [stream.peer_addr()?, stream.local_addr()?];
    let (start, now) = (std::time::Instant::now(), Instant::ZERO);
    let mut recv = RecvHalf::accepted(Decoder::new(Growing::new(), limits.max_message()), now);
    let (half, queue) = (SendHalf::accepted(), SendQueue::new());
    let send = &mut Sending { half, queue, paused: false, addresses, limits, now };
    // What has been read and not delivered: a paused connection keeps it.
    let (mut buffer, mut unread) = ([0; 4_096], 0..0);
    loop {
        send.now = Instant::from_micros(start.elapsed().as_micros() as u64);
        if reading(send.half.state(), send.paused) != Reading::Hold && unread.is_empty() {
            match stream.read(&mut buffer) {
                Ok(0) => handle_fin(&recv, &mut send.half, send.now),
                Ok(len) => unread = 0..len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => send.half.abort(CloseReason::Reset),
            }
        }
        let mut input = &buffer[unread.clone()];
        while reading(send.half.state(), send.paused) == Reading::Deliver {
            match recv.handle_input(&mut input, send.now) {
                Ok(Some(message)) => handler.received(send, message),
                Ok(None) => break,
                Err(error) => send.half.handle_violation(error, send.now),
            }
        }
        let holds = reading(send.half.state(), send.paused) == Reading::Hold;
        unread.start = unread.end - if holds { input.len() } else { 0 };
        recv.set_paused(send.paused, send.now);

        while send.half.state() != State::Closed && !send.queue.is_empty() {
            match stream.write(send.queue.front()) {
                Ok(written) => send.queue.advance(written),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => send.half.abort(CloseReason::Reset),
            }
            send.half.handle_written(true, send.queue.len(), send.now);
        }
        if send.half.poll_writable(send.backlog(), limits) {
            handler.writable(send);
        }
        handle_timeout(&recv, &mut send.half, !unread.is_empty(), send.now, limits);
        let (reason, reset) = match send.half.poll_action(send.queue.len()) {
            Action::Wait => {
                let deadline = poll_timeout(&recv, &send.half, !unread.is_empty(), limits);
                std::thread::sleep(deadline.since(send.now).min(Duration::from_millis(1)));
                continue;
            }
            Action::SendFin => {
                stream.shutdown(Shutdown::Write)?;
                send.half.handle_fin_sent();
                continue;
            }
            Action::Close(reason) => (reason, None),
            Action::Reset(reason) => (reason, Some(Duration::ZERO)),
        };
        handler.closed(send, reason);
        return socket2::SockRef::from(&stream).set_linger(reset);
    }
}
