//! Generated code: `storage` for the storage protocol, `manifest` for the manifest's objects.

/// `aubade.storage.v1`.
#[allow(missing_debug_implementations, unreachable_pub, unused_qualifications, clippy::all, reason = "generated")]
#[allow(clippy::use_self, clippy::disallowed_methods, clippy::allow_attributes_without_reason, reason = "generated")]
pub mod storage {
    tonic::include_proto!("aubade.storage.v1");
}

/// `aubade.manifest.v1`.
#[allow(missing_debug_implementations, unreachable_pub, unused_qualifications, clippy::all, reason = "generated")]
#[allow(clippy::use_self, reason = "generated")]
pub mod manifest {
    tonic::include_proto!("aubade.manifest.v1");
}
