//! A pointer that keeps the compiler from looking into large types.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A shared value whose type is hidden from the search whether something can be sent between threads.
///
/// The trees of DataFusion's plans and of its parser contain each other, so that nothing about them is remembered
/// during that search, and it is made anew wherever a future that holds one is boxed: `docs/decisions/0008-opaque-sessions.md`
/// has the figures.
pub struct Opaque<T>(Arc<dyn Hold<T>>);

trait Hold<T>: Send + Sync {
    fn held(&self) -> &T;
}

impl<T: Send + Sync> Hold<T> for T {
    fn held(&self) -> &T {
        self
    }
}

impl<T: Send + Sync + 'static> Opaque<T> {
    /// Shares `value`.
    pub fn new(value: T) -> Self {
        Self(Arc::new(value))
    }
}

impl<T> Clone for Opaque<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Opaque<T> {
    type Target = T;

    fn deref(&self) -> &T {
        (*self.0).held()
    }
}

impl<T> AsRef<T> for Opaque<T> {
    fn as_ref(&self) -> &T {
        (*self.0).held()
    }
}

impl<T: fmt::Debug> fmt::Debug for Opaque<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        T::fmt(self, f)
    }
}
