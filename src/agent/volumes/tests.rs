use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
};

use toft_model::{
    ids::WorkloadId,
    instance::{ContainerOrder, Desired, NetworkOrder},
    volume::VolumeOptions,
    workload::WorkloadSpec,
};
use uuid::Uuid;

use super::*;

/// Volumes of their own, and folders of a host.
struct Lab {
    volumes: Volumes,
    dir: tempfile::TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        let at = |name: &str| self.dir.path().join(name);
        if let Err(error) = Volumes::unmount_all(&at("volumes"), &at("pins")) {
            eprintln!("something stays mounted: {error}");
        }
    }
}

impl Lab {
    fn new(bind_roots: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("srv/media")).unwrap();
        let config = VolumesConfig {
            dir: dir.path().join("volumes"),
            pins: dir.path().join("pins"),
            bind_roots: bind_roots.iter().map(|root| dir.path().join(root)).collect(),
            node: "box".parse().unwrap(),
            key: ClusterKey::from_bytes([7; 32]),
        };
        Self { volumes: Volumes::open(config).unwrap(), dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mounts(&self) -> usize {
        mountinfo::below(self.dir.path()).unwrap().len()
    }

    /// Prepares one container with these mounts; volumes are those of `options`, or plain.
    async fn prepare(&self, mounts: Vec<Mount>, options: &VolumeOptions) -> Result<Prepared, VolumeError> {
        let order =
            |mount: &Mount| Some((mount.volume()?.name.clone(), VolumeOrder { born: 3, options: options.clone() }));
        let volumes = mounts.iter().filter_map(order).collect();
        let mut spec = WorkloadSpec::new("web".parse().unwrap(), "demo".parse().unwrap());
        spec.mounts = mounts;
        let assignment = Assignment {
            instance_id: InstanceId(Uuid::from_u128(9)),
            workload_id: WorkloadId(Uuid::nil()),
            workload: spec.name.clone(),
            ordinal: 0,
            desired: Desired::Running,
            epoch: 1,
            container: ContainerOrder::of(&spec, NetworkOrder::None),
            volumes,
        };
        self.volumes.prepare(&assignment, &BTreeMap::new()).await
    }

    async fn plain(&self, mounts: &[&str]) -> Result<Prepared, VolumeError> {
        self.prepare(mounts.iter().map(|mount| mount.parse().unwrap()).collect(), &VolumeOptions::default()).await
    }
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn part(subpath: &str) -> Vec<Mount> {
    let mut mount: Mount = "data:/data".parse().unwrap();
    if let Mount::Volume(volume) = &mut mount {
        volume.subpath = Some(subpath.to_owned());
    }
    vec![mount]
}

fn options(pairs: &[(&str, &str)]) -> VolumeOptions {
    VolumeOptions::from_pairs(&pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()).unwrap()
}

async fn told(outcome: Result<Prepared, VolumeError>) -> String {
    crate::observe::chain(&outcome.err().expect("it is refused"))
}

#[tokio::test]
async fn a_volume_is_a_folder_that_gets_what_the_image_has_once() {
    let lab = Lab::new(&[]);
    let image = lab.at("image");
    fs::create_dir_all(image.join("var/lib")).unwrap();
    fs::create_dir(image.join("data")).unwrap();
    fs::write(image.join("data/seed"), "seed").unwrap();
    chown(image.join("data"), Some(1000), Some(1001)).unwrap();
    chown(image.join("data/seed"), Some(7), Some(8)).unwrap();
    fs::set_permissions(image.join("data"), fs::Permissions::from_mode(0o750)).unwrap();
    // A link in an image leads inside the image, wherever it points.
    symlink("/data", image.join("var/lib/link")).unwrap();
    let root = || -> OwnedFd { fs::File::open(&image).unwrap().into() };

    let prepared = lab.plain(&["data:/var/lib/link", "other:/absent", "none:/data:nocopy"]).await.unwrap();
    assert_eq!(lab.mounts(), 0, "nothing has to be held fast");
    assert_eq!(prepared.empty.iter().map(|empty| empty.name.as_str()).collect::<Vec<_>>(), ["data", "other"]);
    let data = prepared.mounts[0].source.clone();
    assert_eq!(data, lab.at("volumes/data/_data"));
    lab.volumes.fill(prepared.empty, root()).await.unwrap();
    let meta = fs::metadata(&data).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o750, 1000, 1001));
    assert_eq!(fs::metadata(data.join("seed")).unwrap().uid(), 7);
    for untouched in ["other", "none"] {
        let meta = fs::metadata(lab.at("volumes").join(untouched).join("_data")).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid()), (0o755, 0));
    }
    assert_eq!(fs::metadata(lab.at("volumes")).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(lab.at("volumes/data")).unwrap().mode() & 0o777, 0o700);

    fs::write(data.join("seed"), "changed").unwrap();
    let again = lab.plain(&["data:/data"]).await.unwrap();
    assert_eq!(again.empty.len(), 0);
    // Whoever thought it empty and comes late changes nothing.
    let late = vec![Empty { name: name("data"), target: "/data".into() }];
    lab.volumes.fill(late, root()).await.unwrap();
    assert_eq!(fs::read_to_string(data.join("seed")).unwrap(), "changed");
}

#[tokio::test]
async fn what_was_left_half_done_is_ended() {
    let lab = Lab::new(&[]);
    drop(lab.plain(&["data:/data"]).await.unwrap());
    let folder = lab.at("volumes/data");
    // A fill that was cut off leaves nothing; one that was whole is moved in.
    fs::create_dir_all(folder.join("filling/half")).unwrap();
    drop(lab.plain(&["data:/data"]).await.unwrap());
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    fs::create_dir_all(folder.join("filled/whole")).unwrap();
    fs::set_permissions(folder.join("filled"), fs::Permissions::from_mode(0o711)).unwrap();
    drop(lab.plain(&["data:/data"]).await.unwrap());
    assert!(folder.join("_data/whole").exists());
    assert_eq!(fs::metadata(folder.join("_data")).unwrap().mode() & 0o777, 0o711);
    // A restore between its two renames.
    fs::rename(folder.join("_data"), folder.join("old")).unwrap();
    fs::create_dir_all(folder.join("restored/new")).unwrap();
    drop(lab.plain(&["data:/data"]).await.unwrap());
    assert!(folder.join("_data/new").exists() && !folder.join("old").exists() && !folder.join("restored").exists());
}

#[tokio::test]
async fn data_of_another_volume_is_neither_used_nor_deleted() {
    let lab = Lab::new(&[]);
    drop(lab.plain(&["data:/data"]).await.unwrap());
    fs::write(lab.at("volumes/data/_data/precious"), "x").unwrap();
    assert_eq!(lab.volumes.unknown(&[(name("data"), 3)]).unwrap(), Vec::<PathBuf>::new());
    assert_eq!(lab.volumes.unknown(&[(name("data"), 4)]).unwrap(), [lab.at("volumes/data")]);
    lab.volumes.delete(&name("data"), 4).unwrap();
    lab.volumes.delete(&name("absent"), 4).unwrap();
    assert!(lab.at("volumes/data/_data/precious").exists());
    // The name with another volume behind it: the data moves aside.
    fs::write(lab.at("volumes/data/volume.json"), r#"{"born":2}"#).unwrap();
    let prepared = lab.plain(&["data:/data"]).await.unwrap();
    assert_eq!(prepared.empty.len(), 1);
    let aside: Vec<_> = fs::read_dir(lab.at("volumes/.aside")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(aside.len() == 1 && aside[0].join("_data/precious").exists(), "{aside:?}");
    lab.volumes.delete(&name("data"), 3).unwrap();
    assert!(!lab.at("volumes/data").exists() && aside[0].exists());
    // A deletion that was cut off goes on with the next start.
    fs::create_dir_all(lab.at("volumes/.removed-data-3/_data/x")).unwrap();
    Store::open(lab.at("volumes")).unwrap();
    assert!(!lab.at("volumes/.removed-data-3").exists());
}

#[tokio::test]
async fn folders_of_the_node_are_seen_only_below_the_allowed_roots() {
    let lab = Lab::new(&[]);
    let mount = |path: PathBuf| format!("{}:/m:ro", path.display());
    let nothing = told(lab.plain(&[&mount(lab.at("srv"))]).await).await;
    assert!(nothing.contains("`bind_roots`") && nothing.contains("node `box`"), "{nothing}");

    let lab = Lab::new(&["srv", "absent"]);
    fs::create_dir(lab.at("secret")).unwrap();
    fs::write(lab.at("secret/key"), "x").unwrap();
    symlink("../secret", lab.at("srv/out")).unwrap();
    symlink(lab.at("secret/key"), lab.at("srv/file")).unwrap();
    symlink("media", lab.at("srv/in")).unwrap();
    symlink(lab.at("srv/media"), lab.at("alias")).unwrap();
    fs::create_dir(lab.at("srv-other")).unwrap();
    for refused in ["secret", "srv/out", "srv/out/key", "srv/file", "srv-other", "absent", ""] {
        let why = told(lab.plain(&[&mount(lab.at(refused))]).await).await;
        assert!(why.contains("does not let containers see") || refused == "absent", "{refused}: {why}");
    }
    assert!(told(lab.plain(&["/etc/absent:/m"]).await).await.contains("does not let containers see"));
    let missing = told(lab.plain(&[&mount(lab.at("srv/absent"))]).await).await;
    assert!(missing.contains("cannot be opened") && missing.contains("No such file"), "{missing}");
    for allowed in ["srv", "srv/media", "srv/in", "alias"] {
        lab.plain(&[&mount(lab.at(allowed))]).await.unwrap_or_else(|error| panic!("{allowed}: {error}"));
    }
    assert_eq!(lab.mounts(), 0, "nothing stays mounted");
}

#[tokio::test]
async fn what_is_held_fast_is_what_was_opened() {
    let lab = Lab::new(&["srv"]);
    fs::write(lab.at("srv/media/film"), "x").unwrap();
    fs::write(lab.at("srv/one"), "a file").unwrap();
    let mounts = [format!("{}:/m", lab.at("srv/media").display()), format!("{}:/f:ro", lab.at("srv/one").display())];
    let prepared = lab.plain(&mounts.each_ref().map(String::as_str)).await.unwrap();
    // Somebody exchanges the path in the meantime.
    fs::rename(lab.at("srv/media"), lab.at("srv/moved")).unwrap();
    symlink("/etc", lab.at("srv/media")).unwrap();
    let [folder, file] = [0, 1].map(|i| prepared.mounts[i].source.clone());
    assert!(folder.join("film").exists());
    fs::write(folder.join("new"), "").unwrap();
    let read_only = fs::write(&file, "changed").unwrap_err();
    assert_eq!(read_only.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(lab.mounts(), 2);
    drop(prepared);
    assert_eq!(lab.mounts(), 0);
    assert!(lab.at("srv/moved/new").exists() && !lab.at("pins").join(Uuid::from_u128(9).to_string()).exists());
}

#[tokio::test]
async fn a_part_of_a_volume_leads_nowhere_else() {
    let lab = Lab::new(&[]);
    drop(lab.plain(&["data:/data"]).await.unwrap());
    let data = lab.at("volumes/data/_data");
    fs::create_dir_all(data.join("site/assets")).unwrap();
    fs::write(data.join("site/assets/logo"), "x").unwrap();
    symlink("/etc", data.join("out")).unwrap();
    symlink("../../../secret", data.join("site/up")).unwrap();
    symlink("site", data.join("in")).unwrap();
    for good in ["site/assets", "in/assets"] {
        let prepared = lab.prepare(part(good), &VolumeOptions::default()).await.unwrap();
        assert!(prepared.mounts[0].source.join("logo").exists() && prepared.empty.is_empty());
    }
    for bad in ["out", "out/passwd", "site/up", "absent"] {
        let why = told(lab.prepare(part(bad), &VolumeOptions::default()).await).await;
        assert!(why.contains("cannot be opened in volume `data`"), "{bad}: {why}");
    }
    assert_eq!(lab.mounts(), 0);
}

#[tokio::test]
async fn file_systems_are_mounted_once_and_taken_away_when_nobody_uses_them() {
    let lab = Lab::new(&["srv"]);
    let memory = options(&[("type", "tmpfs"), ("o", "size=1m,mode=0700,noexec")]);
    let data: Vec<Mount> = vec!["data:/data".parse().unwrap()];
    let prepared = lab.prepare(data.clone(), &memory).await.unwrap();
    assert_eq!(lab.mounts(), 2, "the volume, and what is held fast");
    fs::write(prepared.mounts[0].source.join("x"), vec![1; 600 << 10]).unwrap();
    let full = fs::write(prepared.mounts[0].source.join("y"), vec![1; 600 << 10]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    drop(prepared);
    let again = lab.prepare(data.clone(), &memory).await.unwrap();
    assert!(again.mounts[0].source.join("x").exists(), "mounted once");
    drop(again);
    lab.volumes.unmount_unused(|name| name.as_str() == "data").unwrap();
    assert_eq!(lab.mounts(), 1);
    lab.volumes.unmount_unused(|_| false).unwrap();
    assert_eq!(lab.mounts(), 0);

    // A folder of the node goes through the same, and past the same door. Deleting the volume leaves it alone.
    let folder =
        |path: &str| options(&[("type", "none"), ("o", "bind,ro"), ("device", lab.at(path).to_str().unwrap())]);
    fs::write(lab.at("srv/media/film"), "x").unwrap();
    lab.volumes.delete(&name("data"), 3).unwrap();
    let prepared = lab.prepare(data.clone(), &folder("srv/media")).await.unwrap();
    assert!(prepared.mounts[0].source.join("film").exists());
    assert!(fs::write(prepared.mounts[0].source.join("new"), "").is_err());
    drop(prepared);
    lab.volumes.delete(&name("data"), 3).unwrap();
    assert!(lab.at("srv/media/film").exists() && lab.mounts() == 0);
    let refused = told(lab.prepare(data.clone(), &folder("volumes")).await).await;
    assert!(refused.contains("does not let containers see"), "{refused}");
}

#[tokio::test]
async fn what_the_kernel_refuses_is_told_without_secrets() {
    let lab = Lab::new(&[]);
    let data: Vec<Mount> = vec!["data:/data".parse().unwrap()];
    let odd = options(&[("type", "tmpfs"), ("o", "size=1m,colour=hunter2")]);
    let why = told(lab.prepare(data.clone(), &odd).await).await;
    assert!(why.contains("does not take its option `colour`") && !why.contains("hunter2"), "{why}");
    let nowhere = options(&[("type", "nfs"), ("device", "nas.invalid:/media")]);
    let why = told(lab.prepare(data.clone(), &nowhere).await).await;
    assert!(why.contains("its server is not found"), "{why}");
    for (kind, device, words) in [
        ("nfs", "127.0.0.1:/x", "nfs-common"),
        ("nfs4", "127.0.0.1:/x", "nfs-common"),
        ("cifs", "//127.0.0.1/x", "cifs-utils"),
    ] {
        let known = fs::read_to_string("/proc/filesystems").unwrap();
        let why = told(lab.prepare(data.clone(), &options(&[("type", kind), ("device", device)])).await).await;
        let has_client = known.lines().any(|line| line.trim_start_matches("nodev").trim() == kind);
        assert!(has_client || (why.contains(words) && why.contains("node `box`")), "{why}");
    }
    assert_eq!(lab.mounts(), 0);
}

#[tokio::test]
async fn a_backup_comes_back_and_never_over_what_is_there_unasked() {
    let lab = Lab::new(&[]);
    let (order, secrets) = (VolumeOrder { born: 3, options: VolumeOptions::default() }, BTreeMap::new());
    let data = name("data");
    let known = Known { name: &data, order: &order, secrets: &secrets };
    drop(lab.plain(&["data:/data"]).await.unwrap());
    let folder = lab.at("volumes/data/_data");
    fs::write(folder.join("file"), "first").unwrap();
    let mut backup = Vec::new();
    assert_eq!(lab.volumes.back_up(&known, &mut backup).unwrap().entries, 2);
    assert_eq!(lab.volumes.size(&data).await, Some(fs::metadata(folder.join("file")).unwrap().blocks() * 512));

    fs::write(folder.join("file"), "second").unwrap();
    assert!(matches!(lab.volumes.restore(&known, backup.as_slice(), false), Err(VolumeError::NotEmpty(_))));
    for damaged in [&backup[..backup.len() / 2], &backup[..backup.len() - 1], b"nothing of the kind", b""] {
        let error = lab.volumes.restore(&known, damaged, true).unwrap_err();
        assert!(matches!(error, VolumeError::Archive(_)), "{error}");
        assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "second", "as it was");
    }
    let mut flipped = backup.clone();
    let middle = flipped.len() - 3;
    flipped[middle] ^= 1;
    assert!(lab.volumes.restore(&known, flipped.as_slice(), true).is_err(), "the checksum holds");
    lab.volumes.restore(&known, backup.as_slice(), true).unwrap();
    assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "first");
    assert_eq!(fs::read_dir(lab.at("volumes/data")).unwrap().count(), 2, "nothing is left of before");
    lab.volumes.delete(&data, 3).unwrap();
    lab.volumes.restore(&known, backup.as_slice(), false).unwrap();
    assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "first");

    // The same where the volume is a file system of its own.
    let order = VolumeOrder { born: 4, options: options(&[("type", "tmpfs")]) };
    let memory = name("memory");
    let known = Known { name: &memory, order: &order, secrets: &secrets };
    lab.volumes.restore(&known, backup.as_slice(), false).unwrap();
    assert!(matches!(lab.volumes.restore(&known, backup.as_slice(), false), Err(VolumeError::NotEmpty(_))));
    lab.volumes.restore(&known, backup.as_slice(), true).unwrap();
    let inside = lab.at("volumes/memory/_data");
    assert_eq!(fs::read_to_string(inside.join("file")).unwrap(), "first");
    fs::write(inside.join("later"), "second").unwrap();
    for damaged in [&backup[..backup.len() / 2], &flipped] {
        assert!(lab.volumes.restore(&known, damaged, true).is_err());
        assert_eq!(fs::read_to_string(inside.join("later")).unwrap(), "second", "as it was");
        assert_eq!(fs::read_dir(&inside).unwrap().count(), 2);
    }
    // There is no room for both.
    fs::write(inside.join("later"), vec![1; 700 << 10]).unwrap();
    let small = VolumeOrder { born: 5, options: options(&[("type", "tmpfs"), ("o", "size=1m")]) };
    let full = name("full");
    let full = Known { name: &full, order: &small, secrets: &secrets };
    let mut large = Vec::new();
    lab.volumes.back_up(&known, &mut large).unwrap();
    lab.volumes.restore(&full, large.as_slice(), false).unwrap();
    let error = lab.volumes.restore(&full, large.as_slice(), true).unwrap_err();
    assert!(error.is_full(), "{error}");
    assert_eq!(fs::metadata(lab.at("volumes/full/_data/later")).unwrap().len(), 700 << 10);
    lab.volumes.restore(&known, backup.as_slice(), true).unwrap();
    assert_eq!(fs::read_dir(&inside).unwrap().count(), 1, "nothing is left of before");
}
