//! GPUs as their drivers show them. NVIDIA's is a real library, loaded and called as the real one is.

use std::{collections::BTreeMap, time::Duration};

use toft::agent::gpu::{
    Card, Driver, DriverError, GpuWatch, Handle, Mig, Sight, Watcher, fake::FakeDriver, nvml::NvmlDriver,
};
use toft_model::gpu::{GpuMeasured, GpuVendor};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::harness::nvml::NvmlStub;

const ONE: &str = "card uuid=GPU-1 name=NVIDIA_GeForce_RTX_4090 minor=0 pci=00000000:01:00.0 total=24564 reserved=340 \
    used=2000 busy=37 temp=61 slowdown=93 power=320400 limit=450000 sm=2520 mem=10501 fan=55 ce=3 ue=0 link=00000000:02:00.0\n";
const TWO: &str = "card uuid=GPU-2 name=NVIDIA_GeForce_RTX_3090 minor=1 pci=00000000:02:00.0 total=24576 reserved=300 \
    used=0 temp=40 slowdown=93 link=00000000:01:00.0\n";
const BEGIN: &str = "driver 570.86.10\ncuda 12080\nepoch 1\n";

fn told(lines: &[&str]) -> String {
    BEGIN.to_owned() + &lines.concat()
}

fn names(cards: &[Card]) -> Vec<&str> {
    cards.iter().map(|card| card.id.as_str()).collect()
}

#[test]
fn a_card_is_read_with_all_that_it_measures() {
    let stub = NvmlStub::new(&told(&[
        ONE,
        "process pid=77 mib=1500 kind=c\nprocess pid=77 mib=1500 kind=g\nprocess pid=78 mib=300 kind=g\nprocess pid=79 mib=200 kind=m\n",
        TWO,
    ]));
    let cards = NvmlDriver::new(&stub.library()).look().unwrap();
    assert_eq!(names(&cards), ["GPU-1", "GPU-2"]);
    let card = &cards[0];
    assert_eq!((card.model.as_str(), card.memory_mib), ("NVIDIA GeForce RTX 4090", 24_564));
    assert_eq!((card.driver.as_deref(), card.cuda.as_deref()), (Some("570.86.10"), Some("12.8")));
    let handle = Handle { index: 0, minor: Some(0), pci: Some("0000:01:00.0".into()), mig: None };
    assert_eq!(card.handle, handle);
    let measured = GpuMeasured {
        memory_used_mib: Some(2_000),
        memory_reserved_mib: Some(340),
        busy_percent: Some(37),
        memory_busy_percent: Some(18),
        temperature_celsius: Some(61),
        slowdown_celsius: Some(93),
        power_watts: Some(320.4),
        power_limit_watts: Some(450.0),
        clock_mhz: Some(2_520),
        memory_clock_mhz: Some(10_501),
        fan_percent: Some(55),
        ecc_corrected: Some(3),
        ecc_uncorrected: Some(0),
        xid: None,
    };
    assert_eq!(card.measured, measured);
    let held: BTreeMap<u32, u64> = card.processes.iter().map(|p| (p.pid, p.memory_bytes.unwrap() >> 20)).collect();
    assert_eq!(held, BTreeMap::from([(77, 1_500), (78, 300), (79, 200)]), "twice in the lists is once in memory");
    assert_eq!((card.links[0].to.as_str(), card.links[0].way.as_str()), ("GPU-2", "NV2"));
    assert_eq!(cards[1].measured.fan_percent, None, "not every card has a fan");
    stub.tell(&told(&[&TWO.replace("link=", "x="), &ONE.replace("link=", "x=")]));
    let cards = NvmlDriver::new(&stub.library()).look().unwrap();
    assert_eq!(cards[0].links[0].way, "PHB");
}

#[test]
fn mig_devices_are_cards_of_a_card() {
    let card =
        "card uuid=GPU-9 name=NVIDIA_A100 minor=3 pci=00000000:0A:00.0 total=40960 reserved=600 used=100 mig=1\n";
    let parts = "mig uuid=MIG-a name=NVIDIA_A100_MIG_3g.20gb gi=1 ci=0 total=19968 used=5000\nprocess pid=5 mib=4900\n\
        mig uuid=MIG-b name=NVIDIA_A100_MIG_1g.5gb gi=7 ci=2 total=4864 used=0\n";
    let stub = NvmlStub::new(&told(&[card, parts]));
    let mut driver = NvmlDriver::new(&stub.library());
    let cards = driver.look().unwrap();
    assert_eq!(names(&cards), ["GPU-9", "MIG-a", "MIG-b"]);
    assert_eq!((cards[0].parent.as_ref(), cards[0].fault.as_ref()), (None, None));
    assert_eq!(cards[2].parent.as_ref().unwrap().as_str(), "GPU-9");
    assert_eq!(cards[2].handle.mig, Some(Mig { index: 1, gpu_instance: 7, compute_instance: 2 }));
    assert_eq!((cards[2].handle.minor, cards[1].memory_mib), (Some(3), 19_968));
    assert_eq!(cards[1].processes[0].pid, 5);
    stub.tell(&told(&[card]));
    let cards = driver.look().unwrap();
    assert_eq!(cards[0].fault.as_deref(), Some("MIG is switched on and there are no MIG devices"));
}

#[test]
fn a_card_that_falls_off_is_told_and_the_others_go_on() {
    let stub = NvmlStub::new(&told(&[ONE, TWO]));
    let mut driver = NvmlDriver::new(&stub.library());
    driver.look().unwrap();
    stub.tell(&told(&[&ONE.replace("fan=", "lost=1 fan="), TWO]));
    let cards = driver.look().unwrap();
    assert_eq!(names(&cards), ["GPU-1", "GPU-2"]);
    assert_eq!(cards[0].fault.as_deref(), Some("it has fallen off the bus"));
    assert_eq!((cards[0].measured.clone(), cards[1].fault.as_ref()), (GpuMeasured::default(), None));
    stub.tell(&told(&[ONE, TWO]));
    assert!(driver.look().unwrap().iter().all(|card| card.fault.is_none()));
    stub.tell(&told(&[TWO]));
    assert_eq!(names(&driver.look().unwrap()), ["GPU-2"], "one that was taken out is gone");
}

#[test]
fn a_driver_that_was_loaded_anew_is_initialised_again() {
    let stub = NvmlStub::new(&told(&[ONE]));
    let mut driver = NvmlDriver::new(&stub.library());
    driver.look().unwrap();
    let newer = told(&[ONE, TWO]).replace("epoch 1", "epoch 2").replace("570.86.10", "575.51");
    stub.tell(&newer);
    let cards = driver.look().unwrap();
    assert_eq!((names(&cards), cards[0].driver.as_deref()), (vec!["GPU-1", "GPU-2"], Some("575.51")));
    // Its module is unloaded, and loaded again.
    let away = |code: u32, words: &str, driver: &mut NvmlDriver| {
        stub.tell(&format!("driver 575.51\nepoch 3{code}\ninit {code}\n"));
        assert_eq!(driver.look(), Err(DriverError::Away(words.into())));
    };
    away(9, "the driver's kernel module is not loaded", &mut driver);
    away(18, "library and kernel module are of different versions", &mut driver);
    stub.tell(&newer);
    assert_eq!(names(&driver.look().unwrap()), ["GPU-1", "GPU-2"]);
}

#[test]
fn faults_that_the_driver_tells_by_events_are_heard() {
    let stub = NvmlStub::new(&told(&[ONE, TWO]));
    let mut driver = NvmlDriver::new(&stub.library());
    driver.look().unwrap();
    stub.tell(&told(&[ONE, &TWO.replace("used=0", "used=0 xid=79 xids=1")]));
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let xid = loop {
        let cards = driver.look().unwrap();
        assert_eq!(cards[0].measured.xid, None);
        match cards[1].measured.xid {
            Some(xid) => break xid,
            None => assert!(std::time::Instant::now() < deadline, "the fault was not heard"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(xid.code == 79 && xid.at_ms > 0);
}

async fn seen(watch: &mut GpuWatch, what: impl Fn(&Sight) -> bool) -> std::sync::Arc<Sight> {
    let seen = watch.wait_for(|sight| sight.as_ref().is_some_and(|sight| what(sight)));
    tokio::time::timeout(Duration::from_secs(30), seen).await.expect("it is seen in time").unwrap().clone().unwrap()
}

/// Every driver is watched in the same way: cards come and go, fall ill and get well, and one that hangs is told.
async fn what_a_driver_shows_is_told(
    driver: Box<dyn Driver>,
    show: impl Fn(&[(&str, bool)], bool),
    hang: impl Fn(&str),
) {
    show(&[("GPU-1", true)], true);
    let drivers = vec![driver, Box::new(FakeDriver::new(GpuVendor::Amd, Vec::new())) as Box<dyn Driver>];
    let (watcher, mut watch, _offences) = Watcher::new(drivers, "/proc".as_ref(), "toft").unwrap();
    let watcher = watcher.with_pace(Duration::from_millis(20), Duration::from_millis(500));
    let (_orders, orders) = watch::channel(None);
    let cancel = CancellationToken::new();
    let running = tokio::spawn(watcher.run(orders, cancel.clone()));
    let sight = seen(&mut watch, |sight| sight.gpus.len() == 1).await;
    assert_eq!((sight.gpus[0].facts.gpu.id.as_str(), &sight.away), ("GPU-1", &Vec::new()));
    show(&[("GPU-1", true), ("GPU-2", true)], true);
    seen(&mut watch, |sight| sight.inventory().len() == 2 && sight.inventory().iter().all(|gpu| gpu.sick.is_none()))
        .await;
    show(&[("GPU-1", true), ("GPU-2", false)], true);
    let sight = seen(&mut watch, |sight| sight.inventory().iter().any(|gpu| gpu.sick.is_some())).await;
    let sick: Vec<_> = sight.inventory().iter().map(|gpu| gpu.sick.is_some()).collect();
    assert_eq!(sick, [false, true], "one sick card is one sick card");
    hang("begin");
    let away = |sight: &Sight| sight.away.iter().any(|(_, why)| why == "the driver is away: it does not answer");
    let sight = seen(&mut watch, away).await;
    assert!(sight.inventory().iter().all(|gpu| gpu.sick.is_some()) && sight.gpus.len() == 2);
    hang("end");
    seen(&mut watch, |sight| sight.away.is_empty()).await;
    show(&[("GPU-2", true)], true);
    seen(&mut watch, |sight| sight.gpus.len() == 1 && sight.gpus[0].facts.gpu.id.as_str() == "GPU-2").await;
    show(&[], false);
    let sight = seen(&mut watch, |sight| !sight.away.is_empty()).await;
    assert_eq!(sight.gpus.len(), 1, "its card is known still");
    cancel.cancel();
    running.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nvidias_library_is_watched() {
    let stub = NvmlStub::new("init 9\n");
    let driver = Box::new(NvmlDriver::new(&stub.library()));
    let text = std::sync::Mutex::new(String::new());
    let show = |cards: &[(&str, bool)], there: bool| {
        let lines = cards.iter().map(|(id, well)| {
            let one = ONE.replace("GPU-1", id);
            if *well { one } else { one.replace("fan=", "lost=1 fan=") }
        });
        let epoch = if there { "" } else { "init 9\nepoch 2\n" };
        let told = told(&[&lines.collect::<String>(), epoch]);
        stub.tell(&told);
        *text.lock().unwrap() = told;
    };
    let hang = |what: &str| {
        let told = text.lock().unwrap().clone();
        stub.tell(&if what == "begin" { format!("{told}hang\n") } else { told });
    };
    what_a_driver_shows_is_told(driver, show, hang).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fake_driver_is_watched() {
    let fake = FakeDriver::new(GpuVendor::Nvidia, Vec::new());
    let driver = Box::new(fake.clone());
    let show = |cards: &[(&str, bool)], there: bool| {
        let card = |(id, well): &(&str, bool)| Card {
            fault: (!well).then(|| "lost".into()),
            ..toft::agent::gpu::fake::card(&id.parse().unwrap(), 24_564)
        };
        fake.show(if there { Ok(cards.iter().map(card).collect()) } else { Err(DriverError::Away("unloaded".into())) });
    };
    let (ask, asked) = std::sync::mpsc::channel::<()>();
    let asked = std::sync::Mutex::new(Some(asked));
    let ask = std::sync::Mutex::new(Some(ask));
    let hang = |what: &str| {
        if what != "begin" {
            drop(ask.lock().unwrap().take());
            return;
        }
        let (held, asked) = (fake.clone(), asked.lock().unwrap().take().unwrap());
        std::thread::spawn(move || {
            let _shown = held.shown();
            let _ = asked.recv();
        });
    };
    what_a_driver_shows_is_told(driver, show, hang).await;
}
