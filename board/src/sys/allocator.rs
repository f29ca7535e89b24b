//! The allocator of the binary: mimalloc, set to give memory back at once.
//!
//! musl's own takes one lock for all threads. mimalloc keeps freed pages for a second, which on a board that works in
//! bursts is as good as for ever: measured under full load, giving back at once saves a quarter of the anonymous memory
//! and costs no rate.
//!
//! The hidden verbs are other processes: single-threaded, and small. mimalloc would cost each shim 300 KB of private
//! memory for its arenas, so they use the C library's. Which it is, is decided once, at the first allocation.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicU8, Ordering},
};

use mimalloc::MiMalloc;

/// First arguments of processes that use the C library's allocator (`container_engine::verb`).
const SMALL: [&[u8]; 2] = [b"shim", b"oci-runtime"];

/// The allocator of the binary.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allocator;

/// 0: not decided yet; else one of the two below.
static CHOICE: AtomicU8 = AtomicU8::new(0);
const LARGE_PROCESS: u8 = 1;
const SMALL_PROCESS: u8 = 2;

/// Whether this is one of the small processes. The same for the whole life of a process, so memory goes back to where it
/// came from; two threads that decide at once decide alike.
#[inline]
fn is_small() -> bool {
    match CHOICE.load(Ordering::Relaxed) {
        0 => decide(),
        choice => choice == SMALL_PROCESS,
    }
}

/// Without an allocation, and without `std::env`, which makes some.
#[cold]
fn decide() -> bool {
    let mut buffer = [0; 4096];
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC;
    let line = rustix::fs::open(c"/proc/self/cmdline", flags, rustix::fs::Mode::empty())
        .and_then(|file| rustix::io::read(file, &mut buffer))
        .map_or(&[][..], |length| &buffer[..length]);
    let small = line.split(|byte| *byte == 0).nth(1).is_some_and(|arg| SMALL.contains(&arg));
    CHOICE.store(if small { SMALL_PROCESS } else { LARGE_PROCESS }, Ordering::Relaxed);
    small
}

// SAFETY: every call goes to one and the same allocator, whose contract is the same as ours.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as our caller promises.
        unsafe { if is_small() { System.alloc(layout) } else { MiMalloc.alloc(layout) } }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as our caller promises.
        unsafe { if is_small() { System.alloc_zeroed(layout) } else { MiMalloc.alloc_zeroed(layout) } }
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as our caller promises; the pointer is from the same allocator, since the choice never changes.
        unsafe { if is_small() { System.dealloc(pointer, layout) } else { MiMalloc.dealloc(pointer, layout) } }
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as for `dealloc`.
        unsafe {
            if is_small() { System.realloc(pointer, layout, size) } else { MiMalloc.realloc(pointer, layout, size) }
        }
    }
}

/// `mi_option_purge_delay` in `mimalloc.h` of version 3, which the bindings have no name for.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Freed pages go back to the kernel at once. For `main`, before anything else.
pub fn give_back_at_once() {
    // SAFETY: sets one integer inside mimalloc, which is the allocator of this process or unused; an option that a later
    // version numbers otherwise is still only an integer.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, 0) }
}
