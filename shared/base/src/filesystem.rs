//! What is known of filesystems by the type that `statfs` gives.

/// Those that report a hole only where a file has none of its bytes: ext4 (and ext2, ext3), XFS, and tmpfs. Others have
/// reported data as holes that had been written a moment before, or may ask a server that does.
const REPORT_HOLES: [i64; 3] = [0xEF53, 0x5846_5342, 0x0102_1994];

/// Whether a filesystem of that type is known to tell the truth about the holes of a file (`SEEK_HOLE`, `SEEK_DATA`).
pub fn reports_holes(kind: i64) -> bool {
    REPORT_HOLES.contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_believed_where_they_are_known_to_be_true() {
        assert!([0xEF53, 0x5846_5342, 0x0102_1994].into_iter().all(reports_holes));
        // ZFS, Btrfs, overlayfs, NFS, FUSE, and one that is not known.
        let others = [0x2FC1_2FC1, 0x9123_683E, 0x794C_7630, 0x6969, 0x6573_5546, 1];
        assert!(!others.into_iter().any(reports_holes));
    }
}
