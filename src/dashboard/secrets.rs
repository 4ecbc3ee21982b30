//! Secrets: who uses them, and forms that write values. No page ever holds one, not even one that was just typed.

use askama::Template;
use axum::{
    extract::{Multipart, Path, State, multipart::Field},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use toft_model::{
    name::Name,
    secret::MAX_VALUE_BYTES,
    state::{PutMode, SecretView},
    units::format_bytes,
};

use super::{Dashboard, Frame, error::PageError, forms::Mistakes, present::Moment, show};
use crate::{
    control::{ControlError, ErrorKind, ops::now_ms},
    seal::Plain,
};

#[derive(Template)]
#[template(path = "secrets/index.html")]
struct Page {
    frame: Frame,
    secrets: Vec<Line>,
}

impl Page {
    /// Whether something runs with an older value.
    fn outdated(&self) -> bool {
        self.secrets.iter().flat_map(|secret| &secret.users).any(|user| user.outdated)
    }
}

#[derive(Template)]
#[template(path = "secrets/form.html")]
struct FormPage {
    frame: Frame,
    /// The secret whose value is changed; none for a new one.
    known: Option<Line>,
    name: String,
    wrong: Mistakes,
}

#[derive(Template)]
#[template(path = "secrets/remove.html")]
struct RemovalPage {
    frame: Frame,
    name: String,
    users: Vec<User>,
}

struct Line {
    name: String,
    version: u64,
    size: String,
    created: Moment,
    changed: Moment,
    users: Vec<User>,
}

struct User {
    name: String,
    outdated: bool,
}

impl Line {
    fn of(secret: &SecretView, now_ms: i64) -> Self {
        let row = &secret.row;
        Self {
            name: row.name.to_string(),
            version: row.version,
            size: format_bytes(row.size_bytes),
            created: Moment::age(row.created_at_ms, now_ms),
            changed: Moment::age(row.updated_at_ms, now_ms),
            users: users(secret),
        }
    }
}

fn users(secret: &SecretView) -> Vec<User> {
    let user = |user: &toft_model::state::SecretUser| User { name: user.workload.to_string(), outdated: user.outdated };
    secret.users.iter().map(user).collect()
}

fn frame() -> Frame {
    Frame::at("secrets")
}

pub(super) async fn page(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    let now_ms = now_ms();
    let secrets = dashboard.ops.secrets().await?;
    show(&Page { frame: frame(), secrets: secrets.iter().map(|secret| Line::of(secret, now_ms)).collect() })
}

fn named(text: &str) -> Result<Name, PageError> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        ControlError::new(ErrorKind::NotFound, format!("there is no secret `{shown}`"))
            .hint("it may have been removed; Secrets lists those there are")
            .into()
    })
}

/// What a form carries.
#[derive(Default)]
struct Sent {
    name: String,
    /// Version that was there when the form was made.
    version: Option<u64>,
    text: Vec<u8>,
    file: Vec<u8>,
}

impl Sent {
    /// Reads a form to its end; what is wrong with it is noted at its field.
    async fn read(mut form: Multipart, wrong: &mut Mistakes) -> Self {
        let mut sent = Self::default();
        loop {
            let field = match form.next_field().await {
                Ok(Some(field)) => field,
                Ok(None) => return sent,
                Err(_) => {
                    *wrong = Mistakes::refused(ControlError::new(ErrorKind::Invalid, "the form could not be read"));
                    return sent;
                }
            };
            let name = field.name().unwrap_or_default().to_owned();
            let bytes = match bounded(field).await {
                Ok(bytes) => bytes,
                Err(refusal) => {
                    *wrong = Mistakes::refused(refusal.field("value"));
                    return sent;
                }
            };
            let text = || String::from_utf8_lossy(&bytes).trim().to_owned();
            match name.as_str() {
                "name" => sent.name = text(),
                "version" => sent.version = text().parse().ok(),
                // Browsers send every end of a line as two bytes; what was typed has one.
                "text" => sent.text = String::from_utf8_lossy(&bytes).replace("\r\n", "\n").into_bytes(),
                "file" => sent.file = bytes,
                _ => {}
            }
        }
    }

    fn value(&mut self) -> Result<Plain, ControlError> {
        let (text, file) = (std::mem::take(&mut self.text), std::mem::take(&mut self.file));
        if !text.is_empty() && !file.is_empty() {
            return Err(ControlError::new(ErrorKind::Invalid, "there are a text and a file")
                .field("value")
                .hint("give one of the two"));
        }
        Ok(if file.is_empty() { text.into() } else { file.into() })
    }
}

/// The bytes of a field, which are refused as soon as they are too many.
async fn bounded(mut field: Field<'_>) -> Result<Vec<u8>, ControlError> {
    let unreadable = |_| ControlError::new(ErrorKind::Invalid, "the form could not be read");
    let mut bytes = Vec::new();
    while let Some(chunk) = field.chunk().await.map_err(unreadable)? {
        if bytes.len() + chunk.len() > MAX_VALUE_BYTES {
            return Err(ControlError::new(
                ErrorKind::TooLarge,
                format!("the value has more than {MAX_VALUE_BYTES} bytes"),
            )
            .hint("keep large data elsewhere, encrypted, and its key as a secret"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn form_page(known: Option<Line>, name: String, wrong: Mistakes) -> Result<Response, PageError> {
    let mended = wrong.is_empty();
    let mut page = show(&FormPage { frame: frame(), known, name, wrong })?;
    if !mended {
        *page.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
    }
    Ok(page)
}

pub(super) async fn creation() -> Result<Response, PageError> {
    form_page(None, String::new(), Mistakes::default())
}

pub(super) async fn create(State(dashboard): State<Dashboard>, form: Multipart) -> Result<Response, PageError> {
    let mut wrong = Mistakes::default();
    let mut sent = Sent::read(form, &mut wrong).await;
    if wrong.is_empty() {
        let name = sent.name.parse::<Name>().map_err(|invalid| ControlError::from(invalid.at("name")));
        let created = match (name, sent.value()) {
            (Ok(name), Ok(value)) => dashboard.ops.put_secret(name, value, PutMode::Create).await,
            (Err(error), _) | (_, Err(error)) => Err(error),
        };
        match created {
            Ok(_) => return Ok(Redirect::to("/secrets").into_response()),
            Err(error) => wrong = Mistakes::refused(error),
        }
    }
    form_page(None, sent.name, wrong)
}

pub(super) async fn change(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
) -> Result<Response, PageError> {
    let secret = dashboard.ops.secret(&named(&name)?).await?;
    form_page(Some(Line::of(&secret, now_ms())), name, Mistakes::default())
}

pub(super) async fn update(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
    form: Multipart,
) -> Result<Response, PageError> {
    let named = named(&name)?;
    let mut wrong = Mistakes::default();
    let mut sent = Sent::read(form, &mut wrong).await;
    if wrong.is_empty() {
        let secret = dashboard.ops.secret(&named).await?;
        let seen = sent.version.unwrap_or(secret.row.version);
        let changed = match sent.value() {
            Ok(value) => {
                let mode = PutMode::Replace { if_generation: Some(seen) };
                dashboard.ops.put_secret(named.clone(), value, mode).await
            }
            Err(error) => Err(error),
        };
        match changed {
            Ok(_) => return Ok(Redirect::to("/secrets").into_response()),
            Err(error) => wrong = Mistakes::refused(error),
        }
    }
    let secret = dashboard.ops.secret(&named).await?;
    form_page(Some(Line::of(&secret, now_ms())), name, wrong)
}

pub(super) async fn confirm_removal(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
) -> Result<Response, PageError> {
    let secret = dashboard.ops.secret(&named(&name)?).await?;
    show(&RemovalPage { frame: frame(), name, users: users(&secret) })
}

pub(super) async fn remove(
    State(dashboard): State<Dashboard>,
    Path(name): Path<String>,
) -> Result<Redirect, PageError> {
    dashboard.ops.remove_secret(named(&name)?).await?;
    Ok(Redirect::to("/secrets"))
}
