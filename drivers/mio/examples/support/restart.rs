//! Restarts that no client notices: sockets that systemd has opened, or that the process has which this one
//! replaces; and word to systemd.

use super::system::End;
use cubenet_mio::{ListenSockets, Listener, Network, Transport};
use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct RestartOptions {
    /// Takes the sockets over from a process that was started with the same path, and hands them over to one
    /// that comes later. That process serves the connections that it has to their end. Unix only.
    #[arg(long, value_name = "PATH")]
    handover: Option<PathBuf>,
}

/// The sockets that are there already, by their transports.
#[derive(Default)]
pub struct Inherited {
    sockets: Vec<ListenSockets>,
    #[cfg(unix)]
    taken: Option<cubenet_mio::handover::Taken>,
}

impl RestartOptions {
    /// Whether sockets are to be handed over.
    pub fn is_asked(&self) -> bool {
        self.handover.is_some()
    }

    /// What systemd has opened (`LISTEN_FDS`), or the process has that this one replaces.
    #[cfg(unix)]
    pub fn inherit(&self) -> Result<Inherited, Box<dyn Error>> {
        let mut opened = listenfd::ListenFd::from_env();
        let mut inherited = Inherited::default();
        let mut datagrams = Vec::new();
        for nth in 0..opened.len() {
            // It says of each whether it is one.
            if let Ok(Some(socket)) = opened.take_tcp_listener(nth) {
                inherited.sockets.push(socket.into());
            } else if let Ok(Some(socket)) = opened.take_udp_socket(nth) {
                datagrams.push(socket);
            } else {
                return Err("systemd has opened a socket that is none of TCP or UDP".into());
            }
        }
        if !datagrams.is_empty() {
            inherited.sockets.push(ListenSockets::datagrams(datagrams));
        }
        if let Some(path) = &self.handover
            && let Some(mut taken) = cubenet_mio::handover::take(path)?
        {
            inherited.sockets = taken.sockets();
            inherited.taken = Some(taken);
        }
        Ok(inherited)
    }

    #[cfg(not(unix))]
    pub fn inherit(&self) -> Result<Inherited, Box<dyn Error>> {
        match self.handover {
            Some(_) => Err("sockets can be handed over on Unix only".into()),
            None => Ok(Inherited::default()),
        }
    }

    /// From now on another process may take these over. When it has, the end is asked for.
    pub fn offer(&self, listeners: &[Listener], end: &End) -> Result<(), Box<dyn Error>> {
        #[cfg(unix)]
        if let Some(path) = &self.handover {
            let offer = cubenet_mio::handover::Offer::new(path)?;
            let (listeners, end) = (listeners.to_vec(), end.clone());
            std::thread::spawn(move || {
                let listeners: Vec<&Listener> = listeners.iter().collect();
                match offer.wait(&listeners) {
                    Ok(()) => end.hand_over(),
                    Err(error) => complain!("no process can take the sockets over: {error}"),
                }
            });
        }
        let _ = (listeners, end);
        Ok(())
    }
}

impl Inherited {
    /// The sockets of a transport, if there are any.
    pub fn sockets(&mut self, transport: Transport) -> Option<ListenSockets> {
        let is_it = |sockets: &ListenSockets| sockets.transport() == transport;
        let found = self.sockets.iter().position(is_it)?;
        Some(self.sockets.swap_remove(found))
    }

    /// This process listens: the one before may leave, and systemd hears of it.
    #[cfg(unix)]
    pub fn ready(self) -> Result<(), Box<dyn Error>> {
        if let Some(taken) = self.taken {
            taken.ready()?;
        }
        // Where there is no systemd, this does nothing.
        sd_notify::notify(&[sd_notify::NotifyState::Ready])?;
        Ok(())
    }

    #[cfg(not(unix))]
    pub fn ready(self) -> Result<(), Box<dyn Error>> {
        Ok(())
    }
}

/// The end has come. If another process has the sockets now, leaves them to it, and serves the connections
/// that there are until they have closed, for this long at most.
pub fn drain(network: &Network, listeners: Vec<Listener>, end: &End, patience: Duration) {
    #[cfg(unix)]
    {
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        if end.is_handed_over() {
            for listener in listeners {
                listener.leave();
            }
            let until = Instant::now() + patience;
            while network.metrics().open > 0 && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    #[cfg(not(unix))]
    let _ = (network, listeners, end, patience, Instant::now);
}
