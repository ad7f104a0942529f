//! An allocator that counts, for tests that assert what is allocated.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed};

/// The system's allocator, counted. Make it the `#[global_allocator]` of a test.
pub struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);
static LIVE_BYTES: AtomicIsize = AtomicIsize::new(0);

/// How often memory was asked for, on all threads.
pub fn calls() -> usize {
    CALLS.load(Relaxed)
}

/// Bytes that were asked for and not given back.
pub fn live_bytes() -> isize {
    LIVE_BYTES.load(Relaxed)
}

fn count(bytes: usize) {
    CALLS.fetch_add(1, Relaxed);
    LIVE_BYTES.fetch_add(bytes.cast_signed(), Relaxed);
}

// SAFETY: every call is passed on to the system's allocator as it came, and what that
// returns is returned; counting does not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the client's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the client's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        LIVE_BYTES.fetch_sub(layout.size().cast_signed(), Relaxed);
        // SAFETY: the client's promise is passed on.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size().cast_signed(), Relaxed);
        // SAFETY: the client's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}
