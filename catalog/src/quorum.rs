//! Quorum arithmetic: how many copies, how many must acknowledge a write, how many a read of the
//! log tail asks. Source: Gifford, "Weighted voting for replicated data" (1979); Aurora uses 6/4/3.

use aubade_proto::{Error, ErrorCode, Result};

/// Copies, write quorum and read quorum; safe by construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    copies: u32,
    write: u32,
    read: u32,
}

impl Quorum {
    /// The triple for a number of copies: 1/1/1, 2/2/1, 3/2/2, 4/3/2, 5/3/3, 6/4/3.
    ///
    /// # Errors
    /// As [`Quorum::try_new`].
    pub fn for_copies(copies: u32) -> Result<Self> {
        let write = copies / 2 + 1;
        Self::try_new(copies, write, copies.saturating_add(1).saturating_sub(write))
    }

    /// A triple that satisfies read + write > copies and 2 x write > copies.
    ///
    /// # Errors
    /// [`ErrorCode::QuorumUnsafe`] with the rule that is broken.
    pub fn try_new(copies: u32, write: u32, read: u32) -> Result<Self> {
        let broken = |rule: &str| {
            let message = format!("copies/write/read = {copies}/{write}/{read} is unsafe: {rule}");
            Err(Error::new(ErrorCode::QuorumUnsafe, message).hint("6/4/3, 3/2/2 and 1/1/1 are safe"))
        };
        if copies == 0 || write == 0 || read == 0 {
            return broken("each must be at least 1");
        }
        if copies > 64 {
            return broken("at most 64 copies");
        }
        if write > copies || read > copies {
            return broken("a quorum cannot be larger than the number of copies");
        }
        if read + write <= copies {
            return broken("read + write must be more than copies, or a read could miss a write");
        }
        if 2 * write <= copies {
            return broken("2 x write must be more than copies, or two writers could both succeed");
        }
        Ok(Self { copies, write, read })
    }

    /// Replicas of each segment.
    pub fn copies(self) -> usize {
        self.copies as usize
    }

    /// Acknowledgements that make a write durable.
    pub fn write(self) -> usize {
        self.write as usize
    }

    /// Copies that a read of the log tail asks.
    pub fn read(self) -> usize {
        self.read as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_triples_are_safe() {
        for (copies, write, read) in [(1, 1, 1), (2, 2, 1), (3, 2, 2), (4, 3, 2), (5, 3, 3), (6, 4, 3)] {
            assert_eq!(Quorum::for_copies(copies).unwrap(), Quorum::try_new(copies, write, read).unwrap());
        }
    }

    #[test]
    fn unsafe_triples_are_refused_with_the_rule() {
        for (copies, write, read, rule) in [
            (6, 3, 4, "two writers"),
            (6, 4, 2, "miss a write"),
            (3, 4, 1, "larger"),
            (0, 0, 0, "at least 1"),
            (65, 33, 33, "64"),
        ] {
            let error = Quorum::try_new(copies, write, read).unwrap_err();
            assert_eq!(error.code(), ErrorCode::QuorumUnsafe);
            assert!(error.message().contains(rule), "{error}");
        }
    }
}
