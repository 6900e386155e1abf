//! Names of the manifest's objects. Newer ones sort first, so that a store that lists in order
//! shows them on its first page.

use aubade_proto::Version;

/// The folder of version objects.
pub(super) const VERSIONS: &str = "m";
/// The folder of checkpoints.
pub(super) const CHECKPOINTS: &str = "c";

/// The name of a version object.
pub(super) fn version(version: Version) -> String {
    name(VERSIONS, version)
}

/// The name of a checkpoint.
pub(super) fn checkpoint(version: Version) -> String {
    name(CHECKPOINTS, version)
}

fn name(folder: &str, version: Version) -> String {
    format!("{folder}/{:020}", u64::MAX - version.0)
}

/// The version in a name of either folder; `None` for names that are none of ours.
pub(super) fn parse(name: &str) -> Option<Version> {
    let (_, digits) = name.split_once('/')?;
    if digits.len() != 20 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok().map(|inverted| Version(u64::MAX - inverted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_names_sort_first_and_come_back() {
        assert_eq!(version(Version(1)), "m/18446744073709551614");
        assert!(version(Version(2)) < version(Version(1)));
        assert_eq!(parse(&checkpoint(Version(64))), Some(Version(64)));
        assert_eq!(parse("m/.18446744073709551614.tmp"), None);
        assert_eq!(parse("m/99999999999999999999"), None);
    }
}
