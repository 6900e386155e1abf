//! What stands around the payload of every object: magic, format number, SHA-256.

use aubade_proto::{Error, ErrorCode, Result};
use bytes::{BufMut, Bytes, BytesMut};
use ring::digest::{SHA256, digest};

/// The format that this build writes and reads.
const FORMAT: u32 = 1;
const MAGIC_BYTES: usize = 8;
const HEADER_BYTES: usize = MAGIC_BYTES + 4 + 32;

/// Which object it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Version,
    Checkpoint,
}

impl Kind {
    fn magic(self) -> &'static [u8; MAGIC_BYTES] {
        match self {
            Self::Version => b"AUBADEMV",
            Self::Checkpoint => b"AUBADEMC",
        }
    }
}

/// A payload and its checksum, by which children name their parent.
#[derive(Debug)]
pub(super) struct Framed {
    pub(super) payload: Bytes,
    pub(super) sha256: [u8; 32],
}

/// SHA-256 of `bytes`.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut result = [0; 32];
    result.copy_from_slice(digest(&SHA256, bytes).as_ref());
    result
}

/// The object for a payload, and the payload's checksum.
pub(super) fn wrap(kind: Kind, payload: &[u8]) -> (Bytes, [u8; 32]) {
    let sha256 = sha256(payload);
    let mut object = BytesMut::with_capacity(HEADER_BYTES + payload.len());
    object.put_slice(kind.magic());
    object.put_u32_le(FORMAT);
    object.put_slice(&sha256);
    object.put_slice(payload);
    (object.freeze(), sha256)
}

/// The payload of an object.
///
/// # Errors
/// `ManifestCorrupt`, or `UnsupportedVersion` for a newer format.
pub(super) fn unwrap(kind: Kind, object: &Bytes) -> Result<Framed> {
    let corrupt = |what: String| Error::new(ErrorCode::ManifestCorrupt, what);
    let Some((header, _)) = object.split_at_checked(HEADER_BYTES) else {
        return Err(corrupt(format!("it has {} bytes, fewer than its header", object.len())));
    };
    let (magic, rest) = header.split_at(MAGIC_BYTES);
    let (format, expected) = rest.split_at(4);
    if magic != kind.magic() {
        return Err(corrupt("it does not begin like one of ours".to_owned()));
    }
    let format = format.iter().rev().fold(0_u32, |number, byte| (number << 8) | u32::from(*byte));
    if format != FORMAT {
        let message = format!("it has format {format}, and this build knows format {FORMAT}");
        return Err(
            Error::new(ErrorCode::UnsupportedVersion, message).hint("use the build that wrote it, or a newer one")
        );
    }
    let payload = object.slice(HEADER_BYTES..);
    let sha256 = sha256(&payload);
    if sha256 != expected {
        return Err(corrupt("its checksum is wrong".to_owned()));
    }
    Ok(Framed { payload, sha256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_is_found() {
        let (object, sha256) = wrap(Kind::Version, b"payload");
        let framed = unwrap(Kind::Version, &object).unwrap();
        assert_eq!((framed.payload.as_ref(), framed.sha256), (&b"payload"[..], sha256));
        for bit in 0..object.len() * 8 {
            let mut flipped = object.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(unwrap(Kind::Version, &flipped.into()).is_err(), "bit {bit}");
        }
        assert!(unwrap(Kind::Version, &object.slice(..20)).is_err());
        assert!(unwrap(Kind::Checkpoint, &object).is_err());
    }

    #[test]
    fn a_newer_format_is_told_apart_from_corruption() {
        let (object, _) = wrap(Kind::Version, b"payload");
        let mut newer = object.to_vec();
        newer[MAGIC_BYTES] = 2;
        assert_eq!(unwrap(Kind::Version, &newer.into()).unwrap_err().code(), ErrorCode::UnsupportedVersion);
    }
}
