//! Running code of the application's: callbacks, closures, and the destructors of what it gave.
//!
//! Such code may panic, block, and use any connection or network. So it never runs while a lock
//! or a borrow of the library's is held, and a panic in it ends here.

use std::any::Any;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `code`. A panic in it ends here.
pub(crate) fn catch_panic<R>(code: impl FnOnce() -> R) -> Result<R, PanicPayload> {
    catch_unwind(AssertUnwindSafe(code)).map_err(|panic| PanicPayload(UserValue::new(panic)))
}

/// What a panic was called with. It is a value of the application's, which may panic again when
/// it is dropped.
pub(crate) struct PanicPayload(UserValue<Box<dyn Any + Send>>);

impl PanicPayload {
    /// Its text, if it is one.
    pub(crate) fn text(&self) -> &str {
        let payload: &(dyn Any + Send) = &**self.0;
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        text.unwrap_or("not a text")
    }
}

/// Drops a value of the application's. What a destructor panics with, again and again, is let
/// go after the first time.
pub(crate) fn drop_user<T>(value: T) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(value))) {
        std::mem::forget(panic);
    }
}

/// A value of the application's whose destructor may do anything.
pub(crate) struct UserValue<T>(Option<T>);

impl<T> UserValue<T> {
    pub(crate) fn new(value: T) -> Self {
        UserValue(Some(value))
    }

    /// The value, whose destructor is the caller's from here on.
    pub(crate) fn into_inner(mut self) -> T {
        self.0.take().expect("it is there until it is dropped")
    }
}

impl<T> Deref for UserValue<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is there until it is dropped")
    }
}

impl<T> DerefMut for UserValue<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("it is there until it is dropped")
    }
}

impl<T> Drop for UserValue<T> {
    fn drop(&mut self) {
        drop_user(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::panic_any;

    /// Panics when it is dropped, with another of its kind.
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic_any(Bomb);
        }
    }

    #[test]
    fn neither_a_payload_nor_a_value_that_panics_as_it_is_dropped_gets_further() {
        let Err(panic) = catch_panic(|| panic_any(Bomb));
        assert_eq!(panic.text(), "not a text");
        drop(panic);
        drop(UserValue::new(Bomb));
        drop_user(Bomb);
    }

    #[test]
    fn the_text_of_a_panic_is_found() {
        let panic = catch_panic(|| panic!("at {}", 7)).err().unwrap();
        assert_eq!(panic.text(), "at 7");
        let panic = catch_panic(|| panic!("plain")).err().unwrap();
        assert_eq!(panic.text(), "plain");
    }
}
