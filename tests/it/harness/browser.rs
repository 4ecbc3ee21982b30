//! A real browser, driven through its WebDriver (W3C WebDriver, `chromedriver`), in the network of the thread that uses
//! it.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    http::{PATIENCE, exchange},
    machine::wait_until,
};

/// Key of an element's reference in WebDriver's answers.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// The browser; it ends when this is dropped.
pub struct Browser {
    driver: Child,
    port: u16,
    session: String,
}

impl Browser {
    /// Starts one whose profile lies in `profile`.
    pub fn start(profile: &Path, scripts: bool) -> Self {
        let free = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .env("HOME", profile)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is installed (package chromium-driver)");
        let mut browser = Self { driver, port, session: String::new() };
        wait_until("the driver answers", || call(port, "GET", "/status", &Value::Null).ok());
        let data = format!("--user-data-dir={}", profile.join("chromium").display());
        let flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--window-size=1440,900",
            data.as_str(),
        ];
        // 2 blocks, 1 allows.
        let preferences = json!({ "profile.managed_default_content_settings.javascript": if scripts { 1 } else { 2 } });
        let options = json!({ "args": flags, "prefs": preferences });
        let wanted = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" } } } });
        browser.session = call(port, "POST", "/session", &wanted).unwrap()["sessionId"].as_str().unwrap().to_owned();
        browser
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        call(self.port, method, &format!("/session/{}{path}", self.session), body)
    }

    /// Opens an address.
    pub fn open(&self, url: &str) {
        self.ask("POST", "/url", &json!({ "url": url })).unwrap();
    }

    /// Signs in as `admin` with the first password, which is not changed.
    pub fn sign_in(&self, url: &str, password: &str) {
        self.open(&format!("{url}/"));
        self.fill("//input[@id='name']", "admin");
        self.fill("//input[@id='password']", password);
        self.follow("//button[normalize-space()='Sign in']");
        self.wait_for_text("//h1", "Choose a password");
        self.follow("//a[normalize-space()='Later']");
    }

    /// The address of the page.
    pub fn url(&self) -> String {
        self.ask("GET", "/url", &Value::Null).unwrap().as_str().unwrap().to_owned()
    }

    /// The page's title.
    pub fn title(&self) -> String {
        self.ask("GET", "/title", &Value::Null).unwrap().as_str().unwrap().to_owned()
    }

    fn find(&self, xpath: &str) -> Option<String> {
        let asked = json!({ "using": "xpath", "value": xpath });
        let found = self.ask("POST", "/element", &asked).ok()?;
        Some(found[ELEMENT].as_str()?.to_owned())
    }

    /// Waits for an element and clicks it. One that is replaced meanwhile is found again.
    pub fn click(&self, xpath: &str) {
        wait_until(xpath, || self.ask("POST", &format!("/element/{}/click", self.find(xpath)?), &json!({})).ok());
    }

    /// Clicks what leads to another page and waits until that page is there: one that is asked for again while a form
    /// is on its way takes the form back.
    pub fn follow(&self, xpath: &str) {
        let old = wait_until("a page", || self.find("/html"));
        self.click(xpath);
        wait_until(xpath, || self.ask("GET", &format!("/element/{old}/name"), &Value::Null).err());
        wait_until("the next page", || self.find("/html"));
    }

    /// Replaces the text of a field.
    pub fn fill(&self, xpath: &str, text: &str) {
        let field = wait_until(xpath, || self.find(xpath));
        self.ask("POST", &format!("/element/{field}/clear"), &json!({})).unwrap();
        self.ask("POST", &format!("/element/{field}/value"), &json!({ "text": text })).unwrap();
    }

    /// What a person reads in an element, if it is there.
    pub fn text(&self, xpath: &str) -> Option<String> {
        let text = self.ask("GET", &format!("/element/{}/text", self.find(xpath)?), &Value::Null).ok()?;
        Some(text.as_str()?.to_owned())
    }

    /// Waits until an element reads like that; the page is not loaded again.
    pub fn wait_for_text(&self, xpath: &str, part: &str) {
        let what = format!("`{part}` in {xpath}");
        wait_until(&what, || self.text(xpath).filter(|text| text.contains(part)));
    }

    /// Waits until an element is gone from the page.
    pub fn wait_for_absence(&self, xpath: &str) {
        wait_until(xpath, || self.find(xpath).is_none().then_some(()));
    }

    /// Loads the page again.
    pub fn reload(&self) {
        self.ask("POST", "/refresh", &json!({})).unwrap();
    }

    /// Goes back to the page before, as the browser's button does.
    pub fn back(&self) {
        self.ask("POST", "/back", &json!({})).unwrap();
    }

    /// Goes forward again.
    pub fn forward(&self) {
        self.ask("POST", "/forward", &json!({})).unwrap();
    }

    /// Opens another tab, which is seen from now on; gives it.
    pub fn new_tab(&self) -> String {
        let made = self.ask("POST", "/window/new", &json!({ "type": "tab" })).unwrap();
        let tab = made["handle"].as_str().unwrap().to_owned();
        self.see_tab(&tab);
        tab
    }

    /// The tab that is seen.
    pub fn tab(&self) -> String {
        self.ask("GET", "/window", &Value::Null).unwrap().as_str().unwrap().to_owned()
    }

    /// Goes to another tab.
    pub fn see_tab(&self, tab: &str) {
        self.ask("POST", "/window", &json!({ "handle": tab })).unwrap();
    }

    /// What a field holds.
    pub fn value(&self, xpath: &str) -> String {
        let field = wait_until(xpath, || self.find(xpath));
        let value = self.ask("GET", &format!("/element/{field}/property/value"), &Value::Null).unwrap();
        value.as_str().unwrap_or_default().to_owned()
    }

    /// Adds to the text of a field.
    pub fn type_into(&self, xpath: &str, text: &str) {
        let field = wait_until(xpath, || self.find(xpath));
        self.ask("POST", &format!("/element/{field}/value"), &json!({ "text": text })).unwrap();
    }

    /// Shows pages at so many pixels, in the light or the dark theme.
    pub fn look_like(&self, (width, height): (u32, u32), dark: bool) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
        let theme = if dark { "dark" } else { "light" };
        let feature = json!({ "name": "prefers-color-scheme", "value": theme });
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": [feature] }));
    }

    /// Forgets what it has of pages that were seen, but not who is signed in.
    pub fn forget(&self) {
        self.devtools("Network.clearBrowserCache", &json!({}));
    }

    /// Gives it what keeps passkeys and verifies its user each time; gives what it is called.
    pub fn add_authenticator(&self) -> String {
        self.devtools("WebAuthn.enable", &json!({}));
        let options = json!({ "protocol": "ctap2", "transport": "internal", "hasResidentKey": true,
            "hasUserVerification": true, "isUserVerified": true, "automaticPresenceSimulation": true });
        let made = self.devtools("WebAuthn.addVirtualAuthenticator", &json!({ "options": options }));
        made["authenticatorId"].as_str().unwrap().to_owned()
    }

    /// How many passkeys an authenticator keeps.
    pub fn credentials(&self, id: &str) -> usize {
        let kept = self.devtools("WebAuthn.getCredentials", &json!({ "authenticatorId": id }));
        kept["credentials"].as_array().unwrap().len()
    }

    fn devtools(&self, command: &str, params: &Value) -> Value {
        self.ask("POST", "/goog/cdp/execute", &json!({ "cmd": command, "params": params })).unwrap()
    }

    /// What a script gives that runs in the page: the body of a function.
    pub fn run(&self, script: &str) -> Value {
        self.ask("POST", "/execute/sync", &json!({ "script": script, "args": [] })).unwrap()
    }

    /// What a script gives later, by calling the last of its arguments.
    pub fn run_later(&self, script: &str) -> Value {
        self.ask("POST", "/execute/async", &json!({ "script": script, "args": [] })).unwrap()
    }

    /// Presses keys, wherever the page has its focus.
    pub fn press(&self, keys: &str) {
        let key = |key: char| {
            let key = key.to_string();
            [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })]
        };
        let steps: Vec<Value> = keys.chars().flat_map(key).collect();
        let actions = json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": steps }] });
        self.ask("POST", "/actions", &actions).unwrap();
    }

    /// Pictures are without scroll bars from now on.
    pub fn hide_scrollbars(&self) {
        self.devtools("Emulation.setScrollbarsHidden", &json!({ "hidden": true }));
    }

    /// The page as a picture: `png` or `webp`.
    pub fn picture(&self, format: &str) -> Vec<u8> {
        let quality = if format == "webp" { json!(70) } else { Value::Null };
        let asked = match quality {
            Value::Null => json!({ "format": format }),
            quality => json!({ "format": format, "quality": quality }),
        };
        let made = self.devtools("Page.captureScreenshot", &asked);
        base64::Engine::decode(&base64::prelude::BASE64_STANDARD, made["data"].as_str().unwrap()).unwrap()
    }

    /// What the console complained about since the last call.
    pub fn complaints(&self) -> Vec<String> {
        let entries = self.ask("POST", "/se/log", &json!({ "type": "browser" })).unwrap();
        let entries = entries.as_array().unwrap().iter();
        entries.filter(|e| e["level"] == "SEVERE").map(|e| e["message"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends the browser; the driver does not do so when it is killed.
        drop(self.ask("DELETE", "", &Value::Null));
        drop(self.driver.kill());
        drop(self.driver.wait());
    }
}

fn call(port: u16, method: &str, path: &str, body: &Value) -> Result<Value, String> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).map_err(|e| e.to_string())?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let answer = exchange(stream, method, path, &[], &body).map_err(|e| e.to_string())?;
    let value = answer.json()["value"].clone();
    match value.get("error") {
        Some(error) => Err(format!("{error}: {}", value["message"])),
        None => Ok(value),
    }
}
