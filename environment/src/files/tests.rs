//! One suite, run on every file system.

use super::*;

fn conforms(files: &dyn FileSystem, root: &Path) {
    let folder = root.join("a/b");
    files.create_dir_all(&folder).unwrap();
    let path = folder.join("one");
    create_durable(files, &path, b"hello", 1).unwrap();
    let again = create_durable(files, &path, b"other", 2).unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(read_file(files, &path).unwrap(), "hello");
    assert_eq!(files.list_files(&folder).unwrap(), ["one"]);
    assert_eq!(files.open(&path).unwrap().read_at(4, 2).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    files.rename(&path, &folder.join("two")).unwrap();
    assert_eq!(files.open(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    let lock = files.lock(&root.join("LOCK")).unwrap();
    assert_eq!(files.lock(&root.join("LOCK")).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    drop(lock);
    files.lock(&root.join("LOCK")).unwrap();
    files.remove_dir_all(&root.join("a")).unwrap();
    assert!(files.list_files(&folder).is_err());
}

#[test]
fn system_files_conform() {
    let folder = tempfile::tempdir().unwrap();
    conforms(&SystemFiles, folder.path());
}

#[test]
fn memory_files_conform() {
    let files = MemoryFiles::default();
    files.create_dir_all(Path::new("/root")).unwrap();
    conforms(&files, Path::new("/root"));
}

#[test]
fn a_full_disk_leaves_no_file() {
    let files = FaultyFiles::new(Arc::new(MemoryFiles::default()));
    let folder = Path::new("/data");
    files.create_dir_all(folder).unwrap();
    files.set(FileFault::DiskFull);
    let error = create_durable(&files, &folder.join("one"), b"hello", 1).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert!(files.list_files(folder).unwrap().is_empty());
}

#[test]
fn a_read_only_folder_stays_as_it_is() {
    let files = FaultyFiles::new(Arc::new(MemoryFiles::default()));
    let (folder, file) = (Path::new("/data"), Path::new("/data/one"));
    files.create_dir_all(folder).unwrap();
    create_durable(&files, file, b"hello", 1).unwrap();
    files.set(FileFault::ReadOnly);
    files.create_dir_all(folder).unwrap();
    for denied in [
        files.create_new(&folder.join("two")).map(drop),
        files.hard_link(file, &folder.join("two")),
        files.rename(file, &folder.join("two")),
        files.remove_file(file),
        files.remove_dir_all(folder),
        files.create_dir_all(Path::new("/data/other")),
    ] {
        assert_eq!(denied.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
    let error = files.create_new(Path::new("/nowhere/one")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    assert_eq!(files.list_files(folder).unwrap(), ["one"]);
    assert_eq!(read_file(&files, file).unwrap(), "hello");
}

#[test]
fn a_file_is_replaced_whole_or_not_at_all() {
    let files = FaultyFiles::new(Arc::new(MemoryFiles::default()));
    let folder = Path::new("/folder");
    files.create_dir_all(folder).unwrap();
    let path = folder.join("file.json");
    for (unique, bytes) in [(1, b"first".as_slice()), (2, b"second")] {
        replace_durable(&files, &path, bytes, unique).unwrap();
        assert_eq!(read_file(&files, &path).unwrap(), bytes);
    }
    for fault in [FileFault::DiskFull, FileFault::SyncFails] {
        files.set(fault);
        replace_durable(&files, &path, b"third", 3).unwrap_err();
        assert_eq!(read_file(&files, &path).unwrap(), b"second".as_slice());
        assert_eq!(files.list_files(folder).unwrap(), ["file.json"]);
    }
}
