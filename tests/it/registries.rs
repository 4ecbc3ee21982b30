//! Logins at registries as people meet them: pulls use them, and no disk holds a password.

use axum::{
    http::{StatusCode, header},
    response::IntoResponse,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::{
    harness::{
        appliance::Appliance,
        image::{Layout, here},
        registry::OwnRegistry,
        terminal::on_terminal,
    },
    secrets::nowhere,
};

/// From now on the registry answers only who has this login.
fn wants(registry: &OwnRegistry, username: &str, password: &str) {
    let expected = format!("Basic {}", STANDARD.encode(format!("{username}:{password}")));
    registry.misbehave(move |_, headers| {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let wanted = [(header::WWW_AUTHENTICATE, "Basic realm=\"test\"")];
        (given != Some(&expected)).then(|| (StatusCode::UNAUTHORIZED, wanted).into_response())
    });
}

#[test]
fn pulls_use_the_login_of_the_cluster_and_no_disk_holds_its_password() {
    let mut toft = Appliance::start();
    let (registry, _guard) = OwnRegistry::start_on(&toft.machine);
    let mut layout = Layout::new();
    let manifest = layout.image(here(), json!({"Cmd": ["sleep", "600"]}));
    registry.put(&layout, &manifest, "1");
    let host = registry.address.to_string();
    let image = format!("{host}/app:1");
    let (first, second) = (format!("first-{}", uuid::Uuid::new_v4()), format!("second-{}", uuid::Uuid::new_v4()));
    wants(&registry, "jo", &second);

    let refused = toft.toft(&["image", "pull", &image]).bad(1);
    assert!(refused.contains("wants a login") && refused.contains(&format!("toft registry login {host}")), "{refused}");
    let told = toft.reading(&["registry", "login", &host, "-u", "jo"], &format!("{first}\n")).good();
    assert_eq!(told.trim(), format!("{host} as jo"));
    let refused = toft.toft(&["image", "pull", &image]).bad(1);
    assert!(refused.contains("refuses the login of `jo`") && !refused.contains(&first), "{refused}");
    toft.reading(&["registry", "login", &host, "-u", "jo"], &second).good();
    toft.good(&format!("image pull {image}"));
    let list = toft.json("registry ls --json");
    assert_eq!((&list[0]["registry"], &list[0]["username"]), (&json!(host), &json!("jo")), "{list}");
    assert_eq!(list[0].as_object().unwrap().len(), 4, "{list}");
    assert!(toft.good("registry ls").contains("jo"));
    nowhere(&toft, &[&first, &second], "while it is in use");

    // It outlives the daemon.
    assert_eq!(toft.stop(), 0);
    toft.up();
    toft.good(&format!("image rm {image}"));
    toft.good(&format!("image pull {image}"));
    nowhere(&toft, &[&first, &second], "after a restart");

    assert_eq!(toft.good(&format!("registry logout {host}")).trim(), host);
    toft.good(&format!("image rm {image}"));
    toft.toft(&["image", "pull", &image]).bad(1);
    let gone = toft.toft(&["registry", "logout", &host]).bad(1);
    assert!(gone.contains("there is no login"), "{gone}");

    // From Docker's file.
    let file = toft.machine.dir.join("config.json");
    let auth = STANDARD.encode(format!("jo:{second}"));
    let content = json!({"auths": {&host: {"auth": auth}, "ghcr.io": {}}, "credsStore": "secretservice"});
    std::fs::write(&file, content.to_string()).unwrap();
    let ran = toft.toft(&["registry", "import", file.to_str().unwrap()]);
    assert_eq!((ran.code, ran.out.trim()), (1, format!("{host} as jo").as_str()));
    assert!(ran.err.contains("docker-credential-secretservice") && !ran.err.contains(&second), "{}", ran.err);
    toft.good(&format!("image pull {image}"));
    let events = toft.good("events");
    assert!(events.contains("login as `jo`") && events.contains("login removed"), "{events}");
}

#[test]
fn passwords_are_asked_for_and_what_cannot_be_is_refused_with_its_field() {
    let toft = Appliance::start();
    let answers = [("user name", "jo\n"), ("password", "open sesame\n")];
    let (code, out) = on_terminal(toft.client(&["registry", "login", "ghcr.io"]), &answers);
    assert!(code == 0 && out.contains("ghcr.io as jo") && !out.contains("open sesame"), "{out}");
    for (arguments, input, words) in [
        (&["registry", "login", "ghcr.io"][..], "x", "no user name"),
        (&["registry", "login", "ghcr.io", "-u", "a:b"], "x", "colon"),
        (&["registry", "login", "ghcr.io", "-u", "jo"], "\n", "empty or too long"),
        (&["registry", "login", "ghcr.io", "-u", "jo"], &"x".repeat(20_000), "empty or too long"),
        (&["registry", "login", "ghcr.io", "-u", "jo"], "a\nb", "control characters"),
        (&["registry", "login", "nowhere", "-u", "jo"], "x", "is no registry"),
        (&["registry", "import", "/dev/null"], "", "no configuration of Docker"),
        (&["registry", "import", "/absent"], "", "cannot be read"),
    ] {
        let ran = toft.reading(arguments, input);
        assert!(ran.code != 0 && ran.err.contains(words), "{arguments:?}: {} {}", ran.code, ran.err);
    }
    let answer = |method: &str, path: &str, body: &[u8]| {
        let answer = toft.request(method, path, &[], body);
        (answer.status, answer.json())
    };
    for (path, body, field) in [
        ("/api/v1/registries/ghcr.io?username=jo", &b""[..], "password"),
        ("/api/v1/registries/ghcr.io?username=jo", b"\xff\xfe", "password"),
        ("/api/v1/registries/ghcr.io?username=jo", b"a\0b", "password"),
        ("/api/v1/registries/ghcr.io?username=a%3Ab", b"x", "username"),
        ("/api/v1/registries/ghcr.io?username=", b"x", "username"),
    ] {
        let (status, said) = answer("PUT", path, body);
        assert_eq!((status, &said["error"]["field"]), (400, &json!(field)), "{path}: {said}");
        assert!(said["error"]["hint"].is_string(), "{said}");
    }
    assert_eq!(answer("PUT", "/api/v1/registries/..%2Fetc?username=jo", b"x").0, 400);
    assert_eq!(answer("PUT", "/api/v1/registries/ghcr.io", b"x").0, 400);
    assert_eq!(answer("DELETE", "/api/v1/registries/quay.io", b"").0, 404);
}
