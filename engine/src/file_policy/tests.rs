//! The policy by itself; its effect on statements is tested with the statements.

use std::fs;

use super::*;

fn code(result: Result<()>) -> Option<ErrorCode> {
    result.err().map(|error| error.code())
}

#[test]
fn nothing_is_allowed_by_default() {
    let error = FileAccess::default().check("/etc/passwd").unwrap_err();
    assert_eq!(error.code(), ErrorCode::PermissionDenied);
    assert!(error.hint_text().unwrap().contains("serve --allow-local-files DIR"));
    for url in ["file:///etc/passwd", "s3://bucket/key", "http://host/x"] {
        let store = PolicyObjectStores::new(FileAccess::Deny).get_store(&Url::parse(url).unwrap());
        assert_eq!(Error::from_datafusion(store.unwrap_err()).code(), ErrorCode::PermissionDenied, "{url}");
    }
}

#[test]
fn a_folder_allows_what_is_below_it_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let access = FileAccess::Folder(folder.path().to_owned());
    let at = |name: &str| folder.path().join(name).display().to_string();
    fs::write(folder.path().join("a.csv"), "x\n1\n").unwrap();
    assert_eq!(code(access.check(&at("a.csv"))), None);
    assert_eq!(code(access.check(&at("new/folder/b.csv"))), None);
    assert_eq!(code(access.check(&at("*.csv"))), None);
    let around = [at("../x.csv"), format!("file://{}", at("%2e%2e/x.csv"))];
    let elsewhere = ["/etc/passwd", "s3://bucket/key", "a.csv", "/"].map(str::to_owned);
    for refused in around.iter().chain(&elsewhere) {
        assert_eq!(code(access.check(refused)), Some(ErrorCode::PermissionDenied), "{refused}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn links_do_not_lead_out_of_the_folder() {
    use futures::TryStreamExt;
    use object_store::{ObjectStoreExt, path::Path};

    let (folder, secret) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(secret.path().join("secret.csv"), "x\n1\n").unwrap();
    fs::write(folder.path().join("own.csv"), "x\n1\n").unwrap();
    std::os::unix::fs::symlink(secret.path(), folder.path().join("way-out")).unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", folder.path().join("dangling.csv")).unwrap();

    let stores = PolicyObjectStores::new(FileAccess::Folder(folder.path().to_owned()));
    let store = stores.get_store(&Url::parse("file:///").unwrap()).unwrap();
    let at = |name: &str| Path::from_absolute_path(folder.path().join(name)).unwrap();
    assert!(store.get(&at("own.csv")).await.is_ok());
    assert!(store.put(&at("written.csv"), "x".into()).await.is_ok());
    for refused in ["way-out/secret.csv", "way-out/new.csv", "dangling.csv"] {
        assert!(store.get(&at(refused)).await.is_err(), "{refused}");
        assert!(store.put(&at(refused), "x".into()).await.is_err(), "{refused}");
        assert!(store.copy(&at("own.csv"), &at(refused)).await.is_err(), "{refused}");
    }
    let top = Path::from_absolute_path(folder.path()).unwrap();
    let listed: Vec<_> = store.list(Some(&top)).try_collect().await.unwrap();
    let names: Vec<_> = listed.iter().filter_map(|meta| meta.location.filename()).collect();
    assert!(names.contains(&"own.csv") && !names.contains(&"secret.csv"), "{names:?}");
    assert!(store.list(None).try_collect::<Vec<_>>().await.is_err());
}
