//! The allocator of the process.

use std::convert::Infallible;
use std::ffi::c_long;
use std::time::Duration;

use aubade_engine::Engine;
use aubade_environment::{Clock, tasks};
use libmimalloc_sys::{mi_collect, mi_option_get, mi_option_set, mi_option_t};
use mimalloc::MiMalloc;

use crate::machine;

/// Batches and their buffers come and go by the megabyte on every thread, and are often freed on another one.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// `mi_option_purge_delay` of mimalloc 3, which the crate does not name: milliseconds after which freed memory goes back
/// to the operating system.
const PURGE_DELAY: mi_option_t = 15;

/// How long freed memory is kept while there is room, milliseconds. After a second, which is the default, the pages that
/// the next query writes to have to be zeroed again.
const KEPT_MILLIS: c_long = 60_000;

/// How often it is seen whether there is room.
const LOOK: Duration = Duration::from_secs(1);

/// Whether freed memory is kept for longer while so much is resident, `of_pool` of it in the buffer pool, of a process
/// whose queries may take `for_queries`; bytes. What is kept has some lead, so that it is not given back and kept by turns.
fn has_room(keeps: bool, resident: u64, of_pool: usize, for_queries: usize) -> bool {
    let eighths = if keeps { 4 } else { 3 };
    resident.saturating_sub(of_pool as u64) < (for_queries / 8).saturating_mul(eighths) as u64
}

#[expect(unsafe_code, reason = "the allocator has no safe interface for its options")]
fn purge_delay() -> c_long {
    // SAFETY: it compares the number of the option with how many there are, and reads a number.
    unsafe { mi_option_get(PURGE_DELAY) }
}

#[expect(unsafe_code, reason = "the allocator has no safe interface for its options")]
fn set_purge_delay(millis: c_long) {
    // SAFETY: it compares the number of the option with how many there are, and sets a number of one word, which other
    // threads read.
    unsafe { mi_option_set(PURGE_DELAY, millis) }
}

#[expect(unsafe_code, reason = "the allocator has no safe interface for it")]
fn give_back() {
    // SAFETY: any thread may call it at any time; what is in use stays.
    unsafe { mi_collect(true) }
}

/// Has freed memory kept for a minute instead of a second for as long as less is resident beside the buffer pool than
/// half of what queries may take. `MIMALLOC_PURGE_DELAY` in the environment says what holds otherwise, and where that is
/// no time at all, or for ever, it holds always.
pub(crate) async fn keep_freed_memory(engine: &Engine, clock: &dyn Clock) -> Infallible {
    let (usual, for_queries) = (purge_delay(), engine.options().memory_limit_bytes());
    if usual <= 0 {
        return std::future::pending().await;
    }
    let mut keeps = false;
    loop {
        let resident = machine::resident_bytes();
        let has_room = resident.is_some_and(|bytes| has_room(keeps, bytes, engine.buffer_pool_bytes(), for_queries));
        if has_room != std::mem::replace(&mut keeps, has_room) {
            set_purge_delay(if has_room { usual.max(KEPT_MILLIS) } else { usual });
            if !has_room {
                // It can take a while. What does not run any more is what the process is ending with.
                let _ = tasks::run_blocking(give_back).await;
            }
        }
        clock.sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_one_that_is_meant() {
        // Told apart from other options by its default, if the next release numbers them in another way.
        assert_eq!(purge_delay(), 1_000);
        set_purge_delay(KEPT_MILLIS);
        assert_eq!(purge_delay(), KEPT_MILLIS);
        set_purge_delay(1_000);
        give_back();
    }

    #[test]
    fn there_is_room_up_to_half_of_what_queries_may_take() {
        assert!(has_room(false, 0, 1 << 30, 2 << 30) && has_room(true, (5 << 30) - 1, 4 << 30, 2 << 30));
        assert!(!has_room(false, (5 << 30) - 1, 4 << 30, 2 << 30) && !has_room(true, 5 << 30, 4 << 30, 2 << 30));
        assert!(!has_room(true, 0, 0, 0) && !has_room(true, u64::MAX, 0, usize::MAX));
    }
}
