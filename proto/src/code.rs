//! Stable error codes, in decades by area. A number is never used again for something else.

/// Whether the same request may work when it is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same request gives the same error.
    Never,
    /// The same request may work at another replica at once.
    OtherReplica,
    /// The same request may work after a pause.
    Later,
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal, $grpc:ident, $retry:ident;)*) => {
        /// What went wrong, for programs. The doc of each code says who can mend it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $name = $number,)*
        }

        impl ErrorCode {
            /// Every code, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable number.
            pub fn number(self) -> u32 {
                match self { $(Self::$name => $number,)* }
            }

            /// The stable text, as shown in front of messages.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The code for a number; unknown numbers are [`ErrorCode::Internal`].
            pub fn from_number(number: u32) -> Self {
                match number { $($number => Self::$name,)* _ => Self::Internal }
            }

            /// The gRPC code that carries it.
            pub fn grpc(self) -> tonic::Code {
                match self { $(Self::$name => tonic::Code::$grpc,)* }
            }

            /// Whether to try again.
            pub fn retry(self) -> Retry {
                match self { $(Self::$name => Retry::$retry,)* }
            }
        }
    };
}

error_codes! {
    /// A defect of Aubade, or an error that has no code yet: report it.
    Internal = 100, "INTERNAL", Internal, Never;
    /// The caller gave up, or its connection went away.
    Cancelled = 101, "CANCELLED", Cancelled, Never;
    /// The deadline passed first.
    DeadlineExceeded = 102, "DEADLINE_EXCEEDED", DeadlineExceeded, Never;
    /// The memory limit was reached: raise it, or ask for less.
    OutOfMemory = 103, "OUT_OF_MEMORY", ResourceExhausted, Never;
    /// A limit on size or number was reached.
    LimitExceeded = 104, "LIMIT_EXCEEDED", ResourceExhausted, Never;
    /// Not built yet, or switched off.
    NotSupported = 105, "NOT_SUPPORTED", Unimplemented, Never;
    /// Refused by the settings of the server, or by the rights on a folder or bucket.
    PermissionDenied = 106, "PERMISSION_DENIED", PermissionDenied, Never;
    /// Reading or writing a file failed.
    Io = 107, "IO", Unknown, OtherReplica;
    /// No room on the disk.
    DiskFull = 108, "DISK_FULL", ResourceExhausted, OtherReplica;
    /// An option or argument has a value that cannot be used.
    InvalidArgument = 109, "INVALID_ARGUMENT", InvalidArgument, Never;
    /// A port or folder is in use by somebody else.
    InUse = 110, "IN_USE", FailedPrecondition, Never;

    /// The SQL text does not parse.
    SqlSyntax = 200, "SQL_SYNTAX", InvalidArgument, Never;
    /// The SQL names a table that does not exist.
    TableNotFound = 201, "TABLE_NOT_FOUND", NotFound, Never;
    /// The SQL names a column that does not exist.
    ColumnNotFound = 202, "COLUMN_NOT_FOUND", InvalidArgument, Never;
    /// Types do not fit, or a function is unknown.
    SqlPlan = 203, "SQL_PLAN", InvalidArgument, Never;
    /// The data made an expression fail.
    SqlExecution = 204, "SQL_EXECUTION", InvalidArgument, Never;
    /// Division by zero.
    DivisionByZero = 205, "DIVISION_BY_ZERO", InvalidArgument, Never;
    /// A table, view or schema of that name exists.
    AlreadyExists = 206, "ALREADY_EXISTS", AlreadyExists, Never;
    /// The SQL names a schema that does not exist.
    SchemaNotFound = 207, "SCHEMA_NOT_FOUND", NotFound, Never;
    /// A prepared statement, session or ticket is unknown or has expired.
    HandleNotFound = 208, "HANDLE_NOT_FOUND", NotFound, Never;

    /// A version that somebody else committed first stands in the way.
    Conflict = 300, "CONFLICT", Aborted, Later;
    /// Whether the change was committed is not known.
    CommitUnknown = 301, "COMMIT_UNKNOWN", Unknown, Never;
    /// A newer writer has taken over.
    StaleEpoch = 302, "STALE_EPOCH", FailedPrecondition, Never;
    /// The manifest or a part of it cannot be read.
    ManifestCorrupt = 303, "MANIFEST_CORRUPT", DataLoss, Never;
    /// The store of the manifest does not answer.
    StoreUnavailable = 304, "STORE_UNAVAILABLE", Unavailable, Later;
    /// The store cannot keep a manifest safely.
    StoreUnsafe = 305, "STORE_UNSAFE", FailedPrecondition, Never;
    /// Nothing is there yet: the cluster has to be made first.
    ClusterNotFound = 306, "CLUSTER_NOT_FOUND", NotFound, Never;
    /// A cluster is there already.
    ClusterExists = 307, "CLUSTER_EXISTS", AlreadyExists, Never;
    /// A quorum triple that could lose data.
    QuorumUnsafe = 308, "QUORUM_UNSAFE", InvalidArgument, Never;
    /// The folder, node or caller belongs to another cluster.
    WrongCluster = 309, "WRONG_CLUSTER", FailedPrecondition, Never;

    /// A segment is not on this node.
    SegmentNotFound = 400, "SEGMENT_NOT_FOUND", NotFound, OtherReplica;
    /// The bytes of a segment are not those that were written.
    SegmentCorrupt = 401, "SEGMENT_CORRUPT", DataLoss, OtherReplica;
    /// No replica of a segment can be read.
    SegmentUnavailable = 402, "SEGMENT_UNAVAILABLE", Unavailable, Later;
    /// Fewer nodes are alive, or acknowledged, than the write quorum needs.
    QuorumUnavailable = 403, "QUORUM_UNAVAILABLE", Unavailable, Later;
    /// The node is short of CPU or memory.
    Busy = 404, "BUSY", ResourceExhausted, OtherReplica;
    /// The node does not answer.
    NodeUnavailable = 405, "NODE_UNAVAILABLE", Unavailable, OtherReplica;
    /// The node is shutting down.
    ShuttingDown = 406, "SHUTTING_DOWN", Unavailable, OtherReplica;
    /// No storage node of that id is registered.
    NodeNotFound = 407, "NODE_NOT_FOUND", NotFound, Never;
    /// What was asked would leave too few replicas of a segment.
    TooFewReplicas = 408, "TOO_FEW_REPLICAS", FailedPrecondition, Never;

    /// The node is short of CPU: read the columns from it, and run the fragment yourself.
    PushedBack = 409, "PUSHED_BACK", ResourceExhausted, OtherReplica;

    /// A message lacks a field or has one that cannot be read.
    InvalidMessage = 500, "INVALID_MESSAGE", InvalidArgument, Never;
    /// The two sides speak different versions.
    UnsupportedVersion = 501, "UNSUPPORTED_VERSION", FailedPrecondition, Never;

    /// A file to be loaded cannot be read.
    FileUnreadable = 600, "FILE_UNREADABLE", InvalidArgument, Never;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back_from_its_number() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::from_number(code.number()), *code);
        }
        assert_eq!(ErrorCode::from_number(99_999), ErrorCode::Internal);
    }

    #[test]
    fn numbers_and_texts_are_unique() {
        let numbers: std::collections::BTreeSet<_> = ErrorCode::ALL.iter().map(|code| code.number()).collect();
        let texts: std::collections::BTreeSet<_> = ErrorCode::ALL.iter().map(|code| code.text()).collect();
        assert_eq!(numbers.len(), ErrorCode::ALL.len());
        assert_eq!(texts.len(), ErrorCode::ALL.len());
    }
}
