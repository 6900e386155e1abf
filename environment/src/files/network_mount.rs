//! Which file systems keep their files on another machine, or on a host that several machines share.

use std::path::Path;

/// The kind of the network file system that `path` is on; `None` for local ones, and where it cannot
/// be told: so far it is known on Linux only.
pub(super) fn network_kind(path: &Path) -> Option<String> {
    let existing = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."));
    kind_of(existing)
}

#[cfg(not(target_os = "linux"))]
fn kind_of(_existing: &Path) -> Option<String> {
    None
}

#[cfg(target_os = "linux")]
fn kind_of(existing: &Path) -> Option<String> {
    let found = rustix::fs::statfs(existing).ok()?;
    // The numbers have 32 bits, in a field that is wider or signed on some machines.
    let magic = found.f_type as u32;
    if magic != FUSE {
        return network_magic(magic).map(str::to_owned);
    }
    let device = rustix::fs::stat(existing).ok()?.st_dev;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let kind = mounted_kind(&mounts, rustix::fs::major(device), rustix::fs::minor(device)).unwrap_or("fuse");
    (!LOCAL_FUSE.contains(&kind)).then(|| kind.to_owned())
}

/// The number of every file system in user space, local ones and network ones.
#[cfg(target_os = "linux")]
const FUSE: u32 = 0x6573_5546;

/// File systems in user space whose files are on a disk of this machine. Those that are not listed
/// count as network ones: most are.
#[cfg(target_os = "linux")]
const LOCAL_FUSE: [&str; 10] = [
    "fuseblk",
    "fuse.fuse-overlayfs",
    "fuse.bindfs",
    "fuse.encfs",
    "fuse.exfat",
    "fuse.gocryptfs",
    "fuse.mergerfs",
    "fuse.ntfs-3g",
    "fuse.unionfs",
    "fuse.zfs",
];

/// `statfs` numbers, from the kernel's `magic.h` and, for file systems outside of its tree, from what
/// `stat` of GNU coreutils knows.
#[cfg(target_os = "linux")]
fn network_magic(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x0000_6969 => "nfs",
        0x0000_517B => "smb",
        0xFE53_4D42 => "smb2",
        0xFF53_4D42 => "cifs",
        0x0102_1997 => "9p",
        0x00C3_6400 => "ceph",
        0x5346_414F | 0x6B41_4653 => "afs",
        0x7375_7245 => "coda",
        0x0000_564C => "ncpfs",
        0x0BD0_0BD0 => "lustre",
        0x4750_4653 => "gpfs",
        0x1983_0326 => "beegfs",
        0x2003_0528 => "orangefs",
        0x0116_1970 => "gfs2",
        0x7461_636F => "ocfs2",
        0x6163_6673 => "acfs",
        0xAAD7_AAEA => "panfs",
        0xBEEF_DEAD => "snfs",
        0x0131_11A8 => "ibrix",
        0x786F_4256 => "vboxsf",
        0xBACB_ACBC => "vmhgfs",
        0x7C7C_6673 => "prl_fs",
        _ => return None,
    })
}

/// The type of the mount with that device number, in the text of `/proc/self/mountinfo`.
#[cfg(target_os = "linux")]
fn mounted_kind(mounts: &str, major: u32, minor: u32) -> Option<&str> {
    let device = format!("{major}:{minor}");
    mounts.lines().find_map(|line| {
        // Fields of the mount, " - ", type, source, options.
        let (mount, file_system) = line.split_once(" - ")?;
        let found = mount.split(' ').nth(2)? == device;
        found.then(|| file_system.split(' ').next())?
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_a_mount_is_found_by_its_device() {
        let mounts = "36 35 98:0 / / rw,noatime shared:1 - ext4 /dev/root rw,errors=continue\n\
                      41 36 0:52 / /mnt/far\\040away rw,nosuid shared:9 - fuse.sshfs me@host:/ rw,user_id=0\n\
                      garbage\n42 36 8:17 / /media/stick rw - fuseblk /dev/sdb1 rw\n";
        assert_eq!(mounted_kind(mounts, 0, 52), Some("fuse.sshfs"));
        assert_eq!(mounted_kind(mounts, 8, 17), Some("fuseblk"));
        assert_eq!(mounted_kind(mounts, 0, 5), None);
        assert!(LOCAL_FUSE.contains(&"fuseblk") && !LOCAL_FUSE.contains(&"fuse.sshfs"));
    }

    #[test]
    fn network_file_systems_have_names_and_local_ones_have_none() {
        for (magic, name) in [(0x6969, "nfs"), (0xFE53_4D42, "smb2"), (0x0102_1997, "9p"), (0x00C3_6400, "ceph")] {
            assert_eq!(network_magic(magic), Some(name));
        }
        // ext4, xfs, btrfs, tmpfs, overlayfs, zfs.
        for magic in [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0x794C_7630, 0x2FC1_2FC1] {
            assert_eq!(network_magic(magic), None);
        }
    }

    /// A mount that every Linux machine has, and a folder in it that does not exist.
    #[test]
    fn a_missing_folder_is_on_the_file_system_of_the_nearest_one_that_exists() {
        assert_eq!(network_kind(Path::new("/proc/self/no/such/folder")), None);
        assert_eq!(network_kind(Path::new("no/such/folder")), network_kind(Path::new(".")));
    }
}
