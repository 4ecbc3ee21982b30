//! Pulls through a proxy, by configuration and by the environment; what is near is reached straight.

use std::{collections::HashMap, fs, net::SocketAddr, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use toft::agent::image::{
    Logins, Patience, Proxy as Way, ProxySettings, PullError, PullErrorKind, Pulls, Registries, RegistrySettings,
    Settings, TagWord,
};
use toft::agent::runtime::Runtime;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    harness::{
        appliance::Appliance,
        containerd::{Connected, Lab},
        image::{self, Layout, here},
        machine::Machine,
        proxy::{Manner, Proxy, identity},
        registry::{LOGIN, OwnRegistry, Registry},
    },
    image_pull::{login, nobody},
};

const PASSWORD: &str = "open: s@same/%";

/// What a login looks like on its way.
fn basic(name: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

fn way(address: SocketAddr, credentials: Option<&str>) -> Option<Way> {
    Some(Way { url: format!("http://{address}"), credentials: credentials.map(|text| text.to_owned().into()) })
}

/// Settings that lose no time, with this way out for everything.
fn settings(way: Option<Way>) -> Settings {
    let patience = Patience { tries: 2, first_wait: Duration::from_millis(5), silence: Duration::from_secs(5) };
    let proxies = ProxySettings { http: way.clone(), https: way, ..ProxySettings::default() };
    Settings { patience, proxies, ..Settings::default() }
}

async fn pull(
    runtime: &Connected,
    settings: &Settings,
    logins: Arc<dyn Logins>,
    name: &str,
) -> Result<String, PullError> {
    let (pulls, puller) = Pulls::new(runtime.runtime.clone(), Registries::new(settings.clone(), logins));
    let stop = CancellationToken::new();
    let _stop: DropGuard = stop.clone().drop_guard();
    tokio::spawn(puller.run(stop));
    let image = name.parse().unwrap();
    tokio::time::timeout(Duration::from_secs(60), pulls.pull(&image, TagWord::Registry))
        .await
        .expect("it ends")
        .map(|pulled| pulled.digest)
}

async fn refuses(runtime: &Connected, settings: &Settings, name: &str, kind: PullErrorKind, words: &str) {
    let error = pull(runtime, settings, nobody(), name).await.expect_err(words);
    let text = format!("{error} {}", error.hint.as_deref().unwrap_or_default());
    assert_eq!(error.kind, kind, "{text}");
    assert!(text.contains(words), "`{words}` is not in: {text}");
    assert!(!text.contains("s%40same") && !text.contains(PASSWORD), "the password is told: {text}");
}

fn layout() -> (Layout, serde_json::Value) {
    let mut layout = Layout::new();
    let manifest = layout.image(here(), json!({"Cmd": ["sh"]}));
    (layout, manifest)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_far_away_is_reached_through_the_proxy_and_a_near_one_straight() {
    let lab = Lab::start().await;
    let runtime = lab.connect().await;
    let registry = Registry::with_password();
    let (mut archive, manifest) = layout();
    let digest = manifest["digest"].as_str().unwrap().to_owned();
    let bytes: u64 = archive.blobs.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    archive.name(manifest, image::REF_NAME, "app");
    registry.push(&archive.archive(), "team/app:1");
    // Only the proxy knows this name.
    let far = format!("registry.test:{}", registry.address.port());
    let names = HashMap::from([(far.clone(), registry.address)]);
    let manner = Manner { names, login: Some(basic("me", PASSWORD)), ..Manner::default() };
    let proxy = Proxy::start(manner.clone());
    let credentials = "me:open%3A%20s%40same%2F%25";
    let mut settings = settings(way(proxy.address, Some(credentials)));
    let trusted = RegistrySettings { ca_file: Some(registry.certificate()), ..RegistrySettings::default() };
    settings.registries.insert(far.clone(), trusted.clone());
    let name = format!("{far}/team/app:1");
    assert_eq!(pull(&runtime, &settings, login(LOGIN.1), &name).await.unwrap(), digest);
    let asked = proxy.asked();
    assert!(!asked.is_empty() && asked.iter().all(|asked| *asked == format!("CONNECT {far}")), "{asked:?}");
    assert!(proxy.carried() > bytes, "{} bytes of {bytes} came through it", proxy.carried());
    runtime.runtime.remove_image(&name.parse().unwrap()).await.unwrap();

    // The same registry by its address on this machine.
    let near = registry.address.to_string();
    settings.registries.insert(near.clone(), trusted.clone());
    assert_eq!(pull(&runtime, &settings, login(LOGIN.1), &format!("{near}/team/app:1")).await.unwrap(), digest);
    assert_eq!(proxy.asked(), [] as [String; 0], "this machine is reached straight");
    // As a mirror it is reached straight too, and a mirror far away is not.
    for (mirror, through) in [(&near, false), (&far, true)] {
        let behind = RegistrySettings { mirrors: vec![mirror.clone()], ..RegistrySettings::default() };
        settings.registries.insert("docker.io".to_owned(), behind);
        let pulled = pull(&runtime, &settings, login(LOGIN.1), "team/app:1").await.unwrap();
        assert_eq!((pulled, !proxy.asked().is_empty()), (digest.clone(), through), "{mirror}");
    }
    // What is excepted is asked for straight, where nobody knows the name.
    settings.proxies.exceptions = vec!["test".to_owned()];
    refuses(&runtime, &settings, &name, PullErrorKind::Unreachable, "`registry.test").await;
    assert_eq!(proxy.asked(), [] as [String; 0]);

    // A proxy may speak TLS itself.
    let identity = Some(identity(&registry.certificate(), &registry.key()));
    let proxy = Proxy::start(Manner { identity, ..manner });
    settings.proxies.exceptions.clear();
    let url = format!("https://localhost:{}", proxy.address.port());
    settings.proxies.https = Some(Way { url, credentials: Some(credentials.to_owned().into()) });
    assert_eq!(pull(&runtime, &settings, login(LOGIN.1), &name).await.unwrap(), digest);
    assert!(!proxy.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_tls_is_asked_for_by_its_whole_address() {
    let lab = Lab::start().await;
    let runtime = lab.connect().await;
    let registry = OwnRegistry::start().await;
    let (layout, manifest) = layout();
    registry.put(&layout, &manifest, "1");
    let far = "plain.test:5000".to_owned();
    let names = HashMap::from([(far.clone(), registry.address)]);
    let proxy = Proxy::start(Manner { names, login: Some(basic("me", "word")), ..Manner::default() });
    let mut settings = settings(way(proxy.address, None));
    settings.registries.insert(far, RegistrySettings { plain_http: Some(true), ..RegistrySettings::default() });
    let name = "plain.test:5000/app:1";
    refuses(&runtime, &settings, name, PullErrorKind::Denied, "proxy_password_file").await;
    proxy.asked();
    let file = lab.dir.join("proxy-password");
    settings.proxies.login = Some(("me".to_owned(), file.clone()));
    refuses(&runtime, &settings, name, PullErrorKind::Denied, "cannot be had from").await;
    fs::write(&file, "word\n").unwrap();
    assert_eq!(pull(&runtime, &settings, nobody(), name).await.unwrap(), manifest["digest"].as_str().unwrap());
    let asked = proxy.asked();
    assert_eq!(asked.len(), 3, "a manifest, a config and a layer: {asked:?}");
    assert!(asked.iter().all(|asked| asked.starts_with("GET http://plain.test:5000/v2/app/")), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_fails_is_told_as_such() {
    let lab = Lab::start().await;
    let runtime = lab.connect().await;
    let (name, credentials) = ("registry.test/app:1", Some("me:s%40same"));
    let proxy = Proxy::start(Manner { login: Some("Basic other".to_owned()), ..Manner::default() });
    let wants = format!("the proxy `{}` wants a login", proxy.address);
    refuses(&runtime, &settings(way(proxy.address, credentials)), name, PullErrorKind::Denied, &wants).await;
    let unknown = Proxy::start(Manner { login: Some(basic("me", "s@same")), ..Manner::default() });
    let words = "it lets nobody through, or does not reach it";
    refuses(&runtime, &settings(way(unknown.address, credentials)), name, PullErrorKind::Unreachable, words).await;
    assert!(unknown.asked().iter().all(|asked| asked == "CONNECT registry.test:443"));
    for says in [&b"SSH-2.0-OpenSSH_9.2\r\n\r\n"[..], b"", &[b'x'; 100_000], b"HTTP/1.1 200 OK\r\n\r\nthis is no TLS"] {
        let proxy = Proxy::start(Manner { says: Some(says.to_vec()), ..Manner::default() });
        let settings = settings(way(proxy.address, credentials));
        let error = pull(&runtime, &settings, nobody(), name).await.unwrap_err();
        assert!([PullErrorKind::Unreachable, PullErrorKind::Denied].contains(&error.kind), "{error}");
        assert!(error.to_string().contains("registry.test") && !error.to_string().contains("s%40same"), "{error}");
    }
    let nobody_there = settings(way("127.0.0.1:1".parse().unwrap(), credentials));
    refuses(&runtime, &nobody_there, name, PullErrorKind::Unreachable, "through the proxy `127.0.0.1:1`").await;
    assert_eq!(runtime.runtime.images().await.unwrap(), []);
}

/// An appliance on a machine whose only way out is a proxy, which wants a login.
fn behind_a_proxy() -> (Appliance, Proxy, (OwnRegistry, DropGuard)) {
    let machine = Machine::new();
    let toft = Appliance::prepare(&machine, "d");
    let registry = OwnRegistry::start_on(&machine);
    let (layout, manifest) = layout();
    registry.0.put(&layout, &manifest, "1");
    let names = HashMap::from([("plain.test:5000".to_owned(), registry.0.address)]);
    let manner = Manner { names, login: Some(basic("me", PASSWORD)), ..Manner::default() };
    let proxy = Proxy::start_on(&machine, manner);
    (toft, proxy, registry)
}

const PLAIN: &str = "[registries]\n\"plain.test:5000\" = { plain_http = true }\n";

#[test]
fn the_configuration_names_the_proxy() {
    let (mut toft, proxy, (registry, _guard)) = behind_a_proxy();
    let password = toft.machine.dir.join("password");
    fs::write(&password, format!("{PASSWORD}\n")).unwrap();
    let images = format!(
        "[images]\nhttp_proxy = \"http://{}\"\nproxy_username = \"me\"\nproxy_password_file = \"{}\"\n",
        proxy.address,
        password.display()
    );
    fs::write(toft.data.join("toft.toml"), format!("{images}{PLAIN}")).unwrap();
    toft.up();
    toft.good("run -n far --network none plain.test:5000/app:1 -- sleep 1000");
    assert_eq!(proxy.asked().len(), 3);
    toft.good(&format!("run -n near --network none {}/app:1 -- sleep 1000", registry.address));
    assert_eq!(proxy.asked(), [] as [String; 0]);
    assert_eq!(toft.stop(), 0);
    fs::write(toft.data.join("toft.toml"), "[images]\nhttps_proxy = \"http://me:sesame@proxy\"\n").unwrap();
    let error = toft.up_refuses().bad(2);
    assert!(error.contains("images.https_proxy") && error.contains("proxy_password_file"), "{error}");
    assert!(!error.contains("sesame"), "{error}");
    fs::write(toft.data.join("toft.toml"), format!("{images}no_proxy = [\"plain.test\"]\n{PLAIN}")).unwrap();
    toft.up();
    let error = toft.toft(&["image", "pull", "plain.test:5000/app:2"]).bad(1);
    assert!(error.contains("cannot be reached") && !error.contains("proxy"), "{error}");
    assert_eq!(proxy.asked(), [] as [String; 0]);
    assert!(!toft.log().contains(PASSWORD), "{}", toft.log());
}

#[test]
fn the_environment_names_the_proxy_and_its_password_is_never_told() {
    let (mut toft, proxy, _registry) = behind_a_proxy();
    fs::write(toft.data.join("toft.toml"), PLAIN).unwrap();
    let address = |password: &str| format!("http://me:{password}@{}", proxy.address);
    toft.set_variables(&[("HTTP_PROXY", &address("wrong-s%40same"))]);
    toft.up();
    let error = toft.toft(&["image", "pull", "plain.test:5000/app:1"]).bad(1);
    assert!(error.contains("wants a login"), "{error}");
    assert_eq!(toft.stop(), 0);
    toft.set_variables(&[("http_proxy", &address("open%3A%20s%40same%2F%25")), ("NO_PROXY", "nas.lan, .home:5000")]);
    toft.up();
    toft.good("image pull plain.test:5000/app:1");
    assert!(proxy.asked().len() >= 3);
    for told in [&error, &toft.log()] {
        assert!(!told.contains("s%40same") && !told.contains("s@same"), "{told}");
    }
}
