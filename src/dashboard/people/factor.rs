//! One's own second factor: turning it on, with a picture for the authenticator, and off. Works without JavaScript.

use askama::Template;
use axum::{
    Form,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use qrcodegen::{QrCode, QrCodeEcc};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    super::{Dashboard, Frame, error::PageError, forms::Mistake, show},
    mistake,
};
use crate::control::{ControlError, ErrorKind, ops::FactorOffer};

/// Modules of white around a QR code, as its standard asks for.
const MARGIN: i32 = 4;

#[derive(Template)]
#[template(path = "people/factor.html")]
struct FactorPage {
    frame: Frame,
    missing: bool,
    on: bool,
    /// Recovery codes that were not used.
    left: usize,
    /// What can be turned on.
    offer: Option<Picture>,
    /// Recovery codes that were made just now; they are shown once.
    codes: Option<Vec<Zeroizing<String>>>,
    wrong: Option<Mistake>,
}

/// An offer as it is shown.
struct Picture {
    secret: Zeroizing<String>,
    offer: String,
    /// Width and height of the picture, in modules.
    size: i32,
    /// Its black modules, as an SVG path.
    path: Zeroizing<String>,
}

impl Picture {
    fn of(offer: FactorOffer) -> Result<Self, PageError> {
        let code = QrCode::encode_text(&offer.address, QrCodeEcc::Medium).map_err(|_| PageError::internal())?;
        let mut path = Zeroizing::new(String::with_capacity(32 << 10));
        for y in 0..code.size() {
            for x in (0..code.size()).filter(|x| code.get_module(*x, y)) {
                path.push_str(&format!("M{} {}h1v1h-1z", x + MARGIN, y + MARGIN));
            }
        }
        let groups: Vec<&str> =
            offer.secret.as_bytes().chunks(4).map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
        let secret = Zeroizing::new(groups.join(" "));
        Ok(Self { secret, offer: offer.offer, size: code.size() + 2 * MARGIN, path })
    }
}

/// The form as typed.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(in crate::dashboard) struct FactorForm {
    offer: String,
    password: Zeroizing<String>,
    code: Zeroizing<String>,
}

async fn show_with(
    dashboard: &Dashboard,
    offered: Option<&str>,
    wrong: Option<ControlError>,
) -> Result<Response, PageError> {
    let view = dashboard.ops.second_factor().await?;
    let offer = match offered {
        _ if view.on || !view.possible => None,
        // Whoever mistyped goes on with what their authenticator holds by now.
        Some(offered) => Some(match dashboard.ops.offered_second_factor(offered).await {
            Ok(offer) => offer,
            Err(_) => dashboard.ops.offer_second_factor().await?,
        }),
        None => Some(dashboard.ops.offer_second_factor().await?),
    };
    let status = match wrong.as_ref().map(|error| error.kind) {
        None => StatusCode::OK,
        Some(ErrorKind::Throttled) => StatusCode::TOO_MANY_REQUESTS,
        Some(_) => StatusCode::UNPROCESSABLE_ENTITY,
    };
    let mut page = show(&FactorPage {
        frame: Frame::at("account"),
        missing: view.missing,
        on: view.on,
        left: view.recovery_codes,
        offer: offer.map(Picture::of).transpose()?,
        codes: None,
        wrong: wrong.map(mistake),
    })?;
    *page.status_mut() = status;
    Ok(page)
}

pub(in crate::dashboard) async fn page(State(dashboard): State<Dashboard>) -> Result<Response, PageError> {
    show_with(&dashboard, None, None).await
}

/// The page itself shows the recovery codes: an address must not hold them, and nothing keeps them.
pub(in crate::dashboard) async fn turn_on(
    State(dashboard): State<Dashboard>,
    Form(form): Form<FactorForm>,
) -> Result<Response, PageError> {
    match dashboard.ops.turn_on_second_factor(form.password, &form.offer, &form.code).await {
        Ok(codes) => show(&FactorPage {
            frame: Frame::at("account"),
            missing: false,
            on: true,
            left: codes.len(),
            offer: None,
            codes: Some(codes),
            wrong: None,
        }),
        Err(error) => show_with(&dashboard, Some(&form.offer), Some(error)).await,
    }
}

pub(in crate::dashboard) async fn turn_off(
    State(dashboard): State<Dashboard>,
    Form(form): Form<FactorForm>,
) -> Result<Response, PageError> {
    match dashboard.ops.turn_off_second_factor(form.password, &form.code).await {
        Ok(()) => Ok(Redirect::to("/account").into_response()),
        Err(error) => show_with(&dashboard, None, Some(error)).await,
    }
}
