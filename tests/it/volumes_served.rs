//! Volumes that lie on servers: a real NFS and a real SMB server. They need a kernel that has both, which not every
//! machine's has, and `tests/lab/vm.sh` runs them on one that does.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Stdio},
    sync::Arc,
};

use crate::harness::{
    appliance::Appliance,
    machine::{Machine, wait_until},
};

/// The kernel's NFS server in the machine's network. It serves version 4 alone, and `/media` of it.
struct Nfs {
    machine: Arc<Machine>,
    export: PathBuf,
}

impl Nfs {
    fn start(machine: &Arc<Machine>) -> Self {
        let export = machine.dir.join("export");
        fs::create_dir_all(export.join("media")).unwrap();
        machine.run("modprobe", &["nfsd"]);
        let nfs = Self { machine: Arc::clone(machine), export };
        nfs.up();
        nfs
    }

    fn up(&self) {
        // Clients of an earlier life may reclaim their files for a while, in which nobody else gets any. There are none.
        let script = "mount -t nfsd nfsd /proc/fs/nfsd
            echo 10 >/proc/fs/nfsd/nfsv4leasetime
            echo 10 >/proc/fs/nfsd/nfsv4gracetime
            exportfs -o rw,no_root_squash,insecure,no_subtree_check,fsid=0 127.0.0.1:\"$1\"
            rpc.mountd --no-nfs-version 3
            rpc.nfsd --no-nfs-version 3 --no-udp --port 2049 2";
        self.machine.run("sh", &["-eu", "-c", script, "sh", self.export.to_str().unwrap()]);
    }

    fn down(&self) {
        let script = "rpc.nfsd 0; exportfs -ua; umount /proc/fs/nfsd; pkill -x rpc.mountd; true";
        self.machine.run("sh", &["-c", script]);
    }
}

impl Drop for Nfs {
    fn drop(&mut self) {
        self.down();
    }
}

/// Samba in the machine's network, with a share `media` for one user.
struct Smb {
    server: Child,
    share: PathBuf,
}

impl Smb {
    const PASSWORD: &str = "between-you-and-me-7";

    fn start(machine: &Arc<Machine>) -> Self {
        let dir = machine.dir.join("samba");
        let share = machine.dir.join("share");
        for made in [&dir, &share] {
            fs::create_dir(made).unwrap();
        }
        let config = dir.join("smb.conf");
        let places =
            ["ncalrpc dir", "private dir", "state directory", "cache directory", "lock directory", "pid directory"];
        let places: String = places.iter().map(|place| format!("{place} = {}\n", dir.display())).collect();
        let text = format!(
            "[global]\nserver role = standalone server\nsmb ports = 445\ndisable netbios = yes\nload printers = no\n\
             log file = {}/log\n{places}[media]\npath = {}\nread only = no\n",
            dir.display(),
            share.display()
        );
        fs::write(&config, text).unwrap();
        let mut writes = machine.command("smbpasswd");
        let mut writes =
            writes.arg("-c").arg(&config).args(["-s", "-a", "root"]).stdin(Stdio::piped()).spawn().unwrap();
        let twice = format!("{0}\n{0}\n", Self::PASSWORD);
        writes.stdin.take().unwrap().write_all(twice.as_bytes()).unwrap();
        assert!(writes.wait().unwrap().success());
        let mut server = machine.command("smbd");
        let server = server.args(["--foreground", "--no-process-group", "--debug-stdout", "--configfile"]).arg(&config);
        let server = server.stdin(Stdio::null()).spawn().unwrap();
        wait_until("the SMB server listens", || {
            machine.run("ss", &["-Hltn", "sport = 445"]).contains(":445").then_some(())
        });
        Self { server, share }
    }
}

impl Drop for Smb {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn appliance() -> Appliance {
    let toft = Appliance::start();
    toft.import_busybox();
    toft
}

fn create(toft: &Appliance, name: &str, options: &[&str]) {
    let options = options.iter().flat_map(|option| ["-o", *option]);
    let words: Vec<&str> = ["volume", "create", name].into_iter().chain(options).collect();
    toft.toft(&words).good();
}

/// What a script says that runs once with a volume at `/m`.
fn says(toft: &Appliance, volume: &str, script: &str) -> String {
    let mount = format!("{volume}:/m");
    let ran = toft.toft(&["run", "--rm", "-v", &mount, "busybox", "--", "sh", "-c", script]);
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.out.trim_end().to_owned()
}

/// Mounts of servers that the appliance made.
fn mounts(toft: &Appliance) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let below = toft.data.display().to_string();
    mounts
        .lines()
        .filter(|line| line.contains(&below) && (line.contains(" nfs") || line.contains(" cifs")))
        .map(str::to_owned)
        .collect()
}

#[test]
#[ignore = "needs a kernel with NFS: tests/lab/vm.sh"]
fn nfs_is_shared_by_workloads_and_outlives_them_and_toft() {
    let mut toft = appliance();
    let nfs = Nfs::start(&toft.machine);
    let file = nfs.export.join("media/file");
    create(&toft, "media", &["type=nfs", "device=127.0.0.1:/media", "o=soft,timeo=30,retrans=2"]);
    assert_eq!(says(&toft, "media", "echo hello >/m/file; stat -f -c %T /m"), "nfs");
    assert_eq!(fs::read_to_string(&file).unwrap(), "hello\n");
    wait_until("nobody uses it any more", || mounts(&toft).is_empty().then_some(()));

    // Two at once see each other's files, and go on while toft is away.
    for name in ["one", "two"] {
        let line = format!("run -n {name} -v media:/m --network none busybox -- sleep 100000");
        toft.good(&line);
    }
    assert_eq!(mounts(&toft).len(), 1, "once for all: {:?}", mounts(&toft));
    toft.kill();
    toft.up();
    toft.toft(&["exec", "one", "--", "sh", "-c", "echo again >/m/file"]).good();
    assert_eq!(toft.good("exec two -- cat /m/file"), "again\n");
    let table = toft.good("volume ls");
    assert!(table.contains("nfs") && table.contains("one, two"), "{table}");
    toft.toft(&["volume", "rm", "media"]).bad(1);

    create(&toft, "look", &["type=nfs", "device=127.0.0.1:/media", "o=ro,vers=4.2,soft"]);
    let looks = says(&toft, "look", "cat /m/file; echo x 2>/dev/null >/m/new && echo written || echo read-only");
    assert_eq!(looks, "again\nread-only");

    toft.good("rm one two");
    wait_until("it is unmounted", || mounts(&toft).is_empty().then_some(()));
    toft.good("volume rm media");
    assert_eq!(fs::read_to_string(&file).unwrap(), "again\n", "what lies on the server is not toft's to remove");
}

#[test]
#[ignore = "needs a kernel with NFS: tests/lab/vm.sh"]
fn a_server_that_is_away_keeps_only_those_waiting_who_need_it() {
    let toft = appliance();
    let nfs = Nfs::start(&toft.machine);
    create(&toft, "nowhere", &["type=nfs", "device=127.0.0.1:/nowhere", "o=vers=4.2,soft"]);
    let why = toft.toft(&["run", "-n", "lost", "-v", "nowhere:/m", "busybox", "--", "sleep", "1"]).bad(125);
    assert!(why.contains("volume `nowhere`"), "{why}");
    toft.good("rm lost");

    create(&toft, "media", &["type=nfs", "device=127.0.0.1:/media", "o=vers=4.2,soft,timeo=20,retrans=1"]);
    nfs.down();
    toft.good("run -n waits -v media:/m --network none --no-wait busybox -- sleep 100000");
    toft.instance_until("waits", "tries", |now| now["state"] != "assigned");
    toft.good("run -n works --network none busybox -- sleep 100000");
    assert_eq!(toft.instance("works")["state"], "running");
    assert_ne!(toft.instance("waits")["state"], "running");
    nfs.up();
    toft.instance_until("waits", "runs when the server is back", |now| now["state"] == "running");
    toft.good("rm waits works");
    wait_until("it is unmounted", || mounts(&toft).is_empty().then_some(()));
}

#[test]
#[ignore = "needs a kernel with SMB: tests/lab/vm.sh"]
fn smb_takes_its_password_from_a_secret_and_tells_it_nobody() {
    let toft = appliance();
    let smb = Smb::start(&toft.machine);
    fs::set_permissions(&smb.share, fs::Permissions::from_mode(0o777)).unwrap();
    let secret = |name: &str, value: &str| {
        assert_eq!(toft.reading(&["secret", "create", name, "-"], value).code, 0);
    };
    secret("nas", &format!("{}\n", Smb::PASSWORD));
    secret("wrong", "not-it-at-all-9");
    let options = ["type=cifs", "device=//127.0.0.1/media", "o=username=root,vers=3.1.1,uid=1000,file_mode=0640"];
    create(&toft, "films", &[&options[..], &["secret=nas"]].concat());
    assert_eq!(says(&toft, "films", "echo hello >/m/file; stat -c '%u %a' /m/file"), "1000 640");
    assert_eq!(fs::read_to_string(smb.share.join("file")).unwrap(), "hello\n");

    create(&toft, "closed", &[&options[..], &["secret=wrong"]].concat());
    let why = toft.toft(&["run", "-n", "shut", "-v", "closed:/m", "busybox", "--", "sleep", "1"]).bad(125);
    assert!(why.contains("volume `closed`"), "{why}");
    toft.good("rm shut");
    wait_until("it is unmounted", || mounts(&toft).is_empty().then_some(()));

    let told = [toft.log(), toft.good("events -n 100"), toft.good("volume ls --json"), why].concat();
    for password in [Smb::PASSWORD, "not-it-at-all-9"] {
        assert!(!told.contains(password), "a password is told");
    }
}
