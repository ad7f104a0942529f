//! A layer for tests, with everything that TLS has of what concerns a driver: a greeting both ways,
//! records, an alert, an end.

use cubenet_core::{Ends, Identity, Instant, Layer, LayerError, LayerState, MakeLayer};
use std::time::Duration;

const END: u16 = 0;
const ALERT: u16 = u16::MAX;

/// Makes layers that flip every bit. Both sides must greet with the same word.
#[derive(Clone)]
pub struct Flipped {
    greeting: &'static [u8],
    patience: Duration,
}

impl Flipped {
    /// Layers that greet with this word.
    pub const fn new(greeting: &'static [u8]) -> Self {
        Flipped {
            greeting,
            patience: Duration::MAX,
        }
    }

    /// Layers that wait for the peer's greeting for this long.
    #[must_use]
    pub const fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

impl MakeLayer for Flipped {
    fn make_layer(&self, _ends: Ends) -> Box<dyn Layer> {
        Box::new(Flip {
            kind: self.clone(),
            held: Vec::new(),
            deadline: Instant::NEVER,
            greeted: false,
            ended: false,
            error: None,
        })
    }
}

/// A record with this payload, as it is on the wire.
pub fn record(payload: &[u8]) -> Vec<u8> {
    let mut record = (payload.len() as u16).to_be_bytes().to_vec();
    record.extend(payload.iter().map(|byte| !byte));
    record
}

/// The record that ends a direction.
pub fn end() -> Vec<u8> {
    END.to_be_bytes().to_vec()
}

struct Flip {
    kind: Flipped,
    held: Vec<u8>,
    deadline: Instant,
    greeted: bool,
    ended: bool,
    error: Option<LayerError>,
}

impl Flip {
    fn fail(&mut self, message: String, wire: &mut Vec<u8>) {
        self.error = Some(LayerError::new(message));
        wire.extend(ALERT.to_be_bytes());
    }
}

impl Layer for Flip {
    fn begin(&mut self, now: Instant, wire: &mut Vec<u8>) {
        self.deadline = now.after(self.kind.patience);
        wire.extend(self.kind.greeting);
    }

    fn handle_input(&mut self, input: &mut [u8], stream: &mut Vec<u8>, wire: &mut Vec<u8>) {
        assert!(!input.ends_with(b"panic"), "on purpose");
        self.held.extend_from_slice(input);
        let held = std::mem::take(&mut self.held);
        let mut rest = &held[..];
        while self.error.is_none() && !self.ended {
            if !self.greeted {
                let greeting = self.kind.greeting;
                let Some(theirs) = rest.get(..greeting.len()) else {
                    break;
                };
                if theirs != greeting {
                    let theirs = String::from_utf8_lossy(theirs).into_owned();
                    self.fail(format!("the peer greets with {theirs:?}"), wire);
                    break;
                }
                self.greeted = true;
                rest = &rest[greeting.len()..];
            }
            let Some((len, payload)) = rest.split_first_chunk() else {
                break;
            };
            match u16::from_be_bytes(*len) {
                END => self.ended = true,
                ALERT => self.error = Some(LayerError::new("the peer refuses")),
                len => {
                    let Some(record) = payload.get(..usize::from(len)) else {
                        break;
                    };
                    stream.extend(record.iter().map(|byte| !byte));
                    rest = &payload[usize::from(len)..];
                }
            }
        }
        self.held = rest.to_vec();
    }

    fn handle_output(&mut self, stream: &[&[u8]], wire: &mut Vec<u8>) {
        for payload in stream.concat().chunks(10_000) {
            wire.extend(record(payload));
        }
    }

    fn handle_close(&mut self, wire: &mut Vec<u8>) {
        wire.extend(end());
    }

    fn is_established(&self) -> bool {
        self.greeted
    }

    fn state(&self) -> LayerState<'_> {
        match &self.error {
            Some(error) => LayerState::Failed(error),
            None if self.ended => LayerState::Ended,
            None if self.greeted => LayerState::Open,
            None => LayerState::Handshaking,
        }
    }

    fn held(&self) -> usize {
        self.held.capacity()
    }

    fn poll_timeout(&self) -> Instant {
        self.deadline
    }

    fn handle_timeout(&mut self, now: Instant) {
        if now >= self.deadline {
            self.error = Some(LayerError::new("the peer does not greet"));
        }
    }

    fn identify(&self, identity: &mut Identity) {
        identity.set_protocol("flipped");
    }
}
