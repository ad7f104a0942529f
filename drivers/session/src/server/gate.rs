//! The handler of a connection by which a client reaches its session.

use super::carrier::Carrier;
use super::live::{Coming, Greeted, Live, Refused};
use super::{Node, RETRY};
use crate::wire::{self, Refusal, ToServer, WireError};
use cubenet_core::{CloseReason, Handler, Link, Message};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The handler of a connection by which a client logs in, or goes on with its session. See
/// [`Sessions::gate`](super::Sessions::gate).
pub struct Gate {
    node: Arc<Node>,
    shared: Arc<GateShared>,
}

/// What a gate shares with the job that looks after its login or resume.
struct GateShared {
    carrier: Arc<dyn Carrier>,
    stage: Mutex<Stage>,
}

enum Stage {
    /// The client has said nothing.
    New,
    /// Its login or resume is being looked at.
    Waiting,
    /// It has its session.
    Attached(Arc<Live>),
    /// The connection is over, or is being closed.
    Over,
}

impl GateShared {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate {
    pub(super) fn new(node: Arc<Node>, carrier: Arc<dyn Carrier>) -> Self {
        Gate {
            node,
            shared: Arc::new(GateShared {
                carrier,
                stage: Mutex::new(Stage::New),
            }),
        }
    }

    /// The session of this connection, once it has one.
    fn live(&self) -> Option<Arc<Live>> {
        match &*self.shared.stage() {
            Stage::Attached(live) => Some(Arc::clone(live)),
            Stage::New | Stage::Waiting | Stage::Over => None,
        }
    }

    /// Hands a login or a resume to the node, the first time.
    fn begin(&self) -> Option<Answer> {
        let mut stage = self.shared.stage();
        if !matches!(*stage, Stage::New) {
            return None;
        }
        *stage = Stage::Waiting;
        Some(Answer(Some(Arc::clone(&self.shared))))
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl Handler for Gate {
    fn received(&mut self, link: &mut dyn Link, message: Message<'_>) {
        let packet = match ToServer::decode(&message) {
            Ok(packet) => packet,
            Err(WireError::Version(_)) => {
                let _ = link.send(&wire::refused(Refusal::Version, Duration::ZERO));
                return link.close();
            }
            Err(_) => return link.abort(),
        };
        match packet {
            ToServer::Login { credentials } => {
                if let Some(answer) = self.begin() {
                    self.node.login(credentials, answer);
                }
            }
            ToServer::Resume {
                token,
                attempt,
                received,
            } => {
                if let Some(answer) = self.begin() {
                    let coming = Coming {
                        token,
                        attempt,
                        received,
                    };
                    self.node.resume(coming, answer);
                }
            }
            packet => {
                let Some(live) = self.live() else {
                    // Of a session that it had not been given; unless it has overtaken its login.
                    if link.transport().is_reliable() {
                        link.abort();
                    }
                    return;
                };
                let went_well = match packet {
                    ToServer::Message(message) => live.received(&self.node, link, message),
                    ToServer::Ack(number) => live.acknowledged(&self.node, link.id(), number),
                    _ => live.left(&self.node, link),
                };
                if !went_well {
                    link.abort();
                }
            }
        }
    }

    fn writable(&mut self, _link: &mut dyn Link) {
        if let Some(live) = self.live() {
            live.pump_soon(&self.node);
        }
    }

    fn closed(&mut self, link: &mut dyn Link, _reason: CloseReason) {
        let before = std::mem::replace(&mut *self.shared.stage(), Stage::Over);
        if let Stage::Attached(live) = before {
            live.detach(&self.node, link.id());
        }
    }
}

/// The answer that a login or a resume is owed. Dropped without one, it says that it failed.
pub(super) struct Answer(Option<Arc<GateShared>>);

impl Answer {
    fn carrier(&self) -> Option<&dyn Carrier> {
        Some(&*self.0.as_ref()?.carrier)
    }

    pub(super) fn client_addr(&self) -> SocketAddr {
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        self.carrier().map_or(unknown, Carrier::client_addr)
    }

    /// Gives the connection its session, and the client its answer.
    pub(super) fn attach(mut self, node: &Arc<Node>, greeted: Greeted) {
        let Some(gate) = self.0.take() else {
            return;
        };
        let live = Arc::clone(&greeted.live);
        let mut stage = gate.stage();
        if matches!(*stage, Stage::Over) {
            drop(stage);
            live.never_came(node, greeted.fence);
        } else {
            *stage = Stage::Attached(Arc::clone(&live));
            drop(stage);
            live.attach(node, &gate.carrier, greeted);
            // It may have closed meanwhile, before the session knew of it.
            if matches!(*gate.stage(), Stage::Over) {
                live.detach(node, gate.carrier.id());
            }
        }
        live.begin(node);
    }

    pub(super) fn refuse(mut self, refused: Refused) {
        self.refuse_once(refused);
    }

    fn refuse_once(&mut self, (reason, retry_after): Refused) {
        if let Some(gate) = self.0.take() {
            *gate.stage() = Stage::Over;
            let _ = gate.carrier.send(&wire::refused(reason, retry_after));
            gate.carrier.close();
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.refuse_once((Refusal::StoreAway, RETRY));
    }
}
