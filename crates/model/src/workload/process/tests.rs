use super::*;

#[test]
fn what_is_absent_is_not_written() {
    assert_eq!(serde_json::to_string(&ProcessSpec::default()).unwrap(), "{}");
    assert_eq!(serde_json::from_str::<ProcessSpec>("{}").unwrap(), ProcessSpec::default());
    assert!(serde_json::from_str::<ProcessSpec>(r#"{"colour":1}"#).is_err());
}

#[test]
fn everything_round_trips() {
    let spec = ProcessSpec {
        user: Some("web:33".parse().unwrap()),
        groups: vec!["audio".parse().unwrap()],
        cap_add: vec!["cap_net_admin".parse().unwrap()],
        cap_drop: vec!["all".parse().unwrap()],
        seccomp: Seccomp::Unconfined,
        allow_new_privileges: true,
        read_only: true,
        tmpfs: vec!["/run:size=64m,mode=755,exec".parse().unwrap()],
        ulimits: BTreeMap::from([Ulimit::parse_named("nofile=1024:unlimited").unwrap()]),
        sysctls: BTreeMap::from([("net.core.somaxconn".into(), "1024".into())]),
        shm_size_bytes: Some(1 << 30),
        hostname: Some("box.lan".into()),
        extra_hosts: vec!["nas:192.168.1.5".parse().unwrap(), "node:host-gateway".parse().unwrap()],
        init: true,
        stop_signal: Some("SIGRTMIN+3".parse().unwrap()),
        devices: vec!["/dev/ttyUSB0:/dev/modem:rw".parse().unwrap()],
        privileged: true,
        stdin: true,
        tty: true,
        foreground: true,
        isolation: Some("runsc".parse().unwrap()),
    };
    spec.validate(NetworkMode::Bridge).unwrap();
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<ProcessSpec>(&text).unwrap(), spec);
}

#[test]
fn breaches_name_their_field() {
    let check = |field: &str, change: &dyn Fn(&mut ProcessSpec)| {
        let mut spec = ProcessSpec::default();
        change(&mut spec);
        let error = spec.validate(NetworkMode::Host).unwrap_err();
        assert_eq!(error.field, field, "{error}");
        assert!(!error.hint.is_empty());
    };
    let tmpfs = |path: &str| TmpfsMount { path: path.into(), ..TmpfsMount::default() };
    let device = |host: &str| DeviceMapping { host: host.into(), inside: None, access: None };
    check("groups[0]", &|s| s.groups = vec!["a:b".parse().unwrap()]);
    check("groups", &|s| s.groups = vec!["a".parse().unwrap(); 65]);
    check("cap_add", &|s| s.cap_add = vec!["ALL".parse().unwrap(); 65]);
    check("shm_size_bytes", &|s| s.shm_size_bytes = Some(0));
    check("hostname", &|s| s.hostname = Some("a b".into()));
    check("hostname", &|s| s.hostname = Some("x".repeat(300)));
    check("extra_hosts[0].name", &|s| {
        s.extra_hosts = vec![HostEntry { name: "a\n1.2.3.4 b".into(), address: HostAddress::Gateway }];
    });
    check("extra_hosts", &|s| s.extra_hosts = vec!["a:1.2.3.4".parse().unwrap(); 257]);
    check("sysctls", &|s| drop(s.sysctls.insert("kernel.panic".into(), "1".into())));
    check("sysctls", &|s| drop(s.sysctls.insert("net.core.somaxconn".into(), "1".into())));
    check("sysctls", &|s| drop(s.sysctls.insert("fs.mqueue./../x".into(), "1".into())));
    check("sysctls", &|s| drop(s.sysctls.insert("kernel.sem".into(), "1\n2".into())));
    check("ulimits.nofile.soft", &|s| {
        s.ulimits.insert("nofile".parse().unwrap(), Ulimit { soft: 2, hard: 1 });
    });
    check("ulimits.core.hard", &|s| {
        s.ulimits.insert("core".parse().unwrap(), Ulimit { soft: 0, hard: -2 });
    });
    check("tmpfs[0].path", &|s| s.tmpfs = vec![tmpfs("run")]);
    check("tmpfs[0].path", &|s| s.tmpfs = vec![tmpfs("/")]);
    check("tmpfs[0].path", &|s| s.tmpfs = vec![tmpfs("/proc/x")]);
    check("tmpfs[0].path", &|s| s.tmpfs = vec![tmpfs("/a/../proc")]);
    check("tmpfs[1].path", &|s| s.tmpfs = vec![tmpfs("/run"), tmpfs("//run/")]);
    check("tmpfs[0].mode", &|s| s.tmpfs = vec![TmpfsMount { mode: Some("7,size=1".into()), ..tmpfs("/run") }]);
    check("devices[0].host", &|s| s.devices = vec![device("/etc/shadow")]);
    check("devices[0].host", &|s| s.devices = vec![device("/dev/../etc")]);
    check("devices[0].host", &|s| s.devices = vec![device("/dev/")]);
    check("devices[0].access", &|s| {
        s.devices = vec![DeviceMapping { access: Some("rr".into()), ..device("/dev/fuse") }];
    });
}

#[test]
fn hostile_texts_are_refused() {
    for bad in ["", ":", "a:", "a:b:c", "-a", "a b", "4294967296", "root\n", &"x".repeat(65)] {
        assert!(bad.parse::<UserName>().is_err(), "{bad}");
    }
    for bad in ["", "CAP_", "NET", "all,chown", &"A".repeat(1 << 20)] {
        assert!(bad.parse::<CapabilityName>().is_err());
    }
    for bad in ["", "0", "65", "-1", "SIG", "SIGNOPE", "RTMIN+99", "RTMIN-1", "1 "] {
        assert!(bad.parse::<StopSignal>().is_err(), "{bad}");
    }
    for bad in ["", "/run:size=much", "/run:ro", "/run:mode=9", "/run:uid=-1", "run"] {
        assert!(bad.parse::<TmpfsMount>().is_err(), "{bad}");
    }
    for bad in ["nofile", "nofile=", "nofile=a", "nope=1", "nofile=2:1", "nofile=1:2:3", "nofile=-2"] {
        assert!(Ulimit::parse_named(bad).is_err(), "{bad}");
    }
    for bad in ["", "nas", "nas:", "nas:1.2.3", ":1.2.3.4", "a b:1.2.3.4", "nas:gateway"] {
        assert!(bad.parse::<HostEntry>().is_err(), "{bad}");
    }
    for bad in ["", "/dev", "/etc/passwd", "/dev/a:/b", "/dev/a:/dev/b:x", "/dev/a:/dev/b:r:w"] {
        assert!(bad.parse::<DeviceMapping>().is_err(), "{bad}");
    }
    for bad in ["", "RUNC", "a/b", "../runc", "-x", "io.containerd.runc.v2"] {
        assert!(bad.parse::<Isolation>().is_err(), "{bad}");
    }
}

#[test]
fn texts_are_read_as_docker_reads_them() {
    assert_eq!("quit".parse::<StopSignal>().unwrap().number(), 3);
    assert_eq!("SIGRTMAX-1".parse::<StopSignal>().unwrap().number(), 63);
    assert_eq!("15".parse::<StopSignal>().unwrap().number(), 15);
    assert_eq!("cap_chown".parse::<CapabilityName>().unwrap().as_str(), "CHOWN");
    assert_eq!(Ulimit::parse_named("core=0").unwrap(), ("core".parse().unwrap(), Ulimit { soft: 0, hard: 0 }));
    let entry: HostEntry = "six:[fd00::1]".parse().unwrap();
    assert_eq!(entry.address.to_string(), "fd00::1");
    let device: DeviceMapping = "/dev/fuse:r".parse().unwrap();
    assert_eq!((device.inside(), device.access()), ("/dev/fuse", "r"));
    let mount: TmpfsMount = "/tmp:rw,noexec,size=1m,uid=5".parse().unwrap();
    assert_eq!(mount.options(), ["nosuid", "nodev", "noexec", "mode=1777", "size=1048576", "uid=5"]);
}

#[test]
fn only_what_can_be_attached_to_runs_in_the_foreground() {
    let alone = ProcessSpec { foreground: true, ..ProcessSpec::default() };
    assert_eq!(alone.validate(NetworkMode::None).unwrap_err().field, "foreground");
    for spec in [ProcessSpec { tty: true, ..alone.clone() }, ProcessSpec { stdin: true, ..alone }] {
        spec.validate(NetworkMode::None).unwrap();
    }
    ProcessSpec { tty: true, ..ProcessSpec::default() }.validate(NetworkMode::None).unwrap();
}
