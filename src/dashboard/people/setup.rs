//! The first run: whoever came in with the first password chooses one of their own.

use askama::Template;
use axum::{
    Form,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    super::{Dashboard, Frame, error::PageError, forms::Mistake, show},
    mistake,
};
use crate::control::actor;

#[derive(Template)]
#[template(path = "people/setup.html")]
struct SetupPage {
    frame: Frame,
    wrong: Option<Mistake>,
}

/// The form as typed.
#[derive(Deserialize, Default)]
#[serde(default)]
pub(in crate::dashboard) struct SetupForm {
    new: Zeroizing<String>,
    again: Zeroizing<String>,
}

fn is_first() -> bool {
    actor::current().is_some_and(|actor| actor.is_first)
}

pub(in crate::dashboard) async fn page() -> Result<Response, PageError> {
    if !is_first() {
        return Ok(Redirect::to("/account").into_response());
    }
    show(&SetupPage { frame: Frame::at(""), wrong: None })
}

pub(in crate::dashboard) async fn submit(
    State(dashboard): State<Dashboard>,
    Form(form): Form<SetupForm>,
) -> Result<Response, PageError> {
    if !is_first() {
        return Ok(Redirect::to("/account").into_response());
    }
    let changed = if *form.new == *form.again {
        dashboard.ops.change_own_password(Zeroizing::default(), form.new).await.map_err(mistake)
    } else {
        Err(not_the_same())
    };
    match changed {
        Ok(()) => Ok(Redirect::to("/").into_response()),
        Err(wrong) => {
            let mut page = show(&SetupPage { frame: Frame::at(""), wrong: Some(wrong) })?;
            *page.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
            Ok(page)
        }
    }
}

pub(super) fn not_the_same() -> Mistake {
    Mistake { message: "the two passwords are not the same".into(), hint: Some("type the new one twice".into()) }
}
