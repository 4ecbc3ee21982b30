//! Pages for what went wrong: what happened, and the next step.

use askama::Template;
use axum::{
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};

use super::Frame;
use crate::control::{ControlError, ErrorKind, actor};

/// A request that gets no page. [`super::guard::pages`] turns it into a full page or, for a script's request, into a
/// notice.
#[derive(Debug, Clone)]
pub(super) struct PageError {
    status: StatusCode,
    title: &'static str,
    message: String,
    hint: Option<String>,
}

#[derive(Template)]
#[template(path = "error.html")]
struct ErrorPage<'a> {
    frame: Frame,
    status: u16,
    error: &'a PageError,
}

#[derive(Template)]
#[template(path = "_notice.html")]
struct Notice<'a> {
    error: &'a PageError,
}

impl PageError {
    pub(super) fn new(
        status: StatusCode,
        title: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { status, title, message: message.into(), hint: Some(hint.into()) }
    }

    pub(super) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Something failed",
            "this page could not be made",
            "reload it; if that does not help, `journalctl -u toft` tells more",
        )
    }

    pub(super) fn no_workload(name: &str) -> Self {
        let shown: String = name.chars().take(80).collect();
        Self::new(
            StatusCode::NOT_FOUND,
            "Not found",
            format!("there is no workload `{shown}`"),
            "it may have been removed; Workloads lists those there are",
        )
    }

    /// What happened.
    pub(super) fn told(&self) -> &str {
        &self.message
    }

    pub(super) fn is_not_found(&self) -> bool {
        self.status == StatusCode::NOT_FOUND
    }

    /// The whole page.
    pub(super) fn page(&self) -> Response {
        self.page_in(Frame::at(""))
    }

    /// The whole page, for whoever stands at the door: known or not.
    pub(super) fn page_at_the_door(&self) -> Response {
        self.page_in(if actor::current().is_some() { Frame::at("") } else { Frame::outside() })
    }

    fn page_in(&self, frame: Frame) -> Response {
        self.html(&ErrorPage { frame, status: self.status.as_u16(), error: self })
    }

    /// A fragment for the place of notices on the page that asked.
    pub(super) fn notice(&self) -> Response {
        let mut response = self.html(&Notice { error: self });
        for (name, value) in [("hx-retarget", "#notices"), ("hx-reswap", "innerHTML"), ("hx-reselect", "unset")] {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }

    fn html(&self, template: &impl Template) -> Response {
        let body = template.render().unwrap_or_else(|_| self.message.clone());
        (self.status, [(CONTENT_TYPE, "text/html; charset=utf-8")], body).into_response()
    }
}

impl From<ControlError> for PageError {
    fn from(error: ControlError) -> Self {
        let (status, title) = match error.kind {
            ErrorKind::Invalid => (StatusCode::UNPROCESSABLE_ENTITY, "That cannot be done"),
            ErrorKind::Unauthenticated => (StatusCode::UNAUTHORIZED, "Sign in first"),
            ErrorKind::Forbidden => (StatusCode::FORBIDDEN, "Not allowed"),
            ErrorKind::NotFound => (StatusCode::NOT_FOUND, "Not found"),
            ErrorKind::Conflict => (StatusCode::CONFLICT, "That clashes with what is there"),
            ErrorKind::Stale => (StatusCode::CONFLICT, "It has changed meanwhile"),
            ErrorKind::Throttled => (StatusCode::TOO_MANY_REQUESTS, "Too many attempts"),
            ErrorKind::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "Too large"),
            ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "Not available now"),
            ErrorKind::NoLeader => (StatusCode::SERVICE_UNAVAILABLE, "Nothing can be changed now"),
            ErrorKind::Unconfirmed => (StatusCode::GATEWAY_TIMEOUT, "No answer came in time"),
            ErrorKind::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, "The disk is full"),
            ErrorKind::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "Something failed"),
        };
        Self { status, title, message: error.message, hint: error.hint }
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// No page has this address.
pub(super) async fn not_found() -> PageError {
    PageError::new(
        StatusCode::NOT_FOUND,
        "Not found",
        "there is no page with this address",
        "the navigation leads to every page there is",
    )
}

/// The address exists and takes another method.
pub(super) async fn wrong_method() -> PageError {
    PageError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "Not that way",
        "this address does not answer to that kind of request",
        "go back and use the button of the page",
    )
}
