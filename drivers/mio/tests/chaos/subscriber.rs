//! A `tracing` subscriber that does things, as any code of the application's may.

use crate::user::Actor;
use crate::world::{World, lock};
use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex, Weak};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// The run that is on, and the seed of what is done in it.
static RUN: Mutex<Option<(Weak<World>, u64)>> = Mutex::new(None);

thread_local! {
    static ACTOR: RefCell<Option<(Weak<World>, Actor)>> = const { RefCell::new(None) };
    /// What it does may be an event again, which it is not to answer.
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

struct Acts;

/// Is outside again when it is dropped.
struct Outside;

impl Drop for Outside {
    fn drop(&mut self) {
        IS_INSIDE.set(false);
    }
}

/// Has the subscriber called for all events of this process.
pub(crate) fn install() {
    tracing::subscriber::set_global_default(Acts).expect("there is no other");
}

/// From here on it acts in this run.
pub(crate) fn listen(world: &Arc<World>, seed: u64) {
    *lock(&RUN) = Some((Arc::downgrade(world), seed));
}

impl Subscriber for Acts {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("cubenet")
    }

    fn new_span(&self, _attributes: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, _event: &Event<'_>) {
        let run = lock(&RUN).clone();
        let Some((world, seed)) = run.and_then(|(world, seed)| Some((world.upgrade()?, seed)))
        else {
            return;
        };
        if IS_INSIDE.get() || !world.may_act() {
            return;
        }
        // It may be of another run.
        let kept = ACTOR.take();
        let mut actor = match kept {
            Some((of, actor)) if of.ptr_eq(&Arc::downgrade(&world)) => actor,
            _ => Actor::new(&world, seed),
        };
        IS_INSIDE.set(true);
        let outside = Outside;
        // It may panic; then the next event begins anew.
        actor.act_alone();
        drop(outside);
        ACTOR.set(Some((Arc::downgrade(&world), actor)));
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}
