//! How new an answer is: questions about the cluster's state see everything that was acknowledged anywhere before they were
//! asked, unless they say that what this node knows is enough.

use axum::{
    extract::{Request, State},
    http::{HeaderValue, Method, Uri, uri::PathAndQuery},
    middleware::Next,
    response::{IntoResponse, Response},
};
use utoipa::IntoParams;

use super::{ApiError, ApiState};
use crate::control::{ControlError, ErrorKind};

/// Header with the index of the last command that the answer is sure to reflect.
pub const APPLIED_INDEX_HEADER: &str = "toft-applied-index";

/// What every question about the state takes.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it describes what `ensure` reads")]
pub(super) struct ConsistencyQuery {
    /// `linearizable` (the default) sees everything that was acknowledged on any node before; without a majority of the
    /// members it is answered 503 with the code `no_leader`. `local` sees what this node knows, which may be old.
    consistency: Option<String>,
}

/// What a question asks for; every question's extensions hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consistency {
    Linearizable,
    Local,
}

/// Makes sure that reads see what they have to, and tells the position in the log that they see.
pub(super) async fn ensure(State(api): State<ApiState>, mut request: Request, next: Next) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let consistency = match take(request.uri_mut()) {
        Ok(consistency) => consistency,
        Err(error) => return ApiError(error).into_response(),
    };
    if consistency == Consistency::Linearizable
        && let Err(error) = api.ops.catch_up().await
    {
        return ApiError(error).into_response();
    }
    request.extensions_mut().insert(consistency);
    let index = *api.ops.state().watch().borrow();
    let mut response = next.run(request).await;
    response.headers_mut().insert(APPLIED_INDEX_HEADER, HeaderValue::from(index));
    response
}

/// Takes `consistency` out of a query, which knows only what is its own.
fn take(uri: &mut Uri) -> Result<Consistency, ControlError> {
    let Some(query) = uri.query() else { return Ok(Consistency::Linearizable) };
    let (ours, rest): (Vec<&str>, Vec<&str>) =
        query.split('&').partition(|pair| pair.split('=').next() == Some("consistency"));
    let consistency = match ours[..] {
        [] => return Ok(Consistency::Linearizable),
        ["consistency=linearizable"] => Consistency::Linearizable,
        ["consistency=local"] => Consistency::Local,
        _ => {
            let shown: String = ours.join("&").chars().take(60).collect();
            return Err(ControlError::new(ErrorKind::Invalid, format!("`{shown}` is no consistency"))
                .field("consistency")
                .hint("use `linearizable` or `local`, once"));
        }
    };
    let path = uri.path();
    let left = if rest.is_empty() { path.to_owned() } else { format!("{path}?{}", rest.join("&")) };
    let malformed = |_| ControlError::new(ErrorKind::Invalid, "the query is malformed");
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(left).map_err(malformed)?);
    *uri = Uri::from_parts(parts).map_err(|_| ControlError::new(ErrorKind::Invalid, "the query is malformed"))?;
    Ok(consistency)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(uri: &str, expected: Option<(Consistency, &str)>) {
        let mut uri: Uri = uri.parse().unwrap();
        match expected {
            Some((consistency, left)) => {
                assert_eq!(take(&mut uri).unwrap(), consistency);
                assert_eq!(uri.to_string(), left);
            }
            None => assert_eq!(take(&mut uri).unwrap_err().field.as_deref(), Some("consistency")),
        }
    }

    #[test]
    fn the_consistency_is_taken_out_and_the_rest_is_left() {
        use Consistency::{Linearizable, Local};
        check("/workloads", Some((Linearizable, "/workloads")));
        check("/workloads?limit=1", Some((Linearizable, "/workloads?limit=1")));
        check("/workloads?consistency=local", Some((Local, "/workloads")));
        check("/w?limit=1&consistency=local&after=a", Some((Local, "/w?limit=1&after=a")));
        check("http://box:1/w?consistency=linearizable&x=1", Some((Linearizable, "http://box:1/w?x=1")));
    }

    #[test]
    fn what_is_no_consistency_is_refused() {
        for query in [
            "consistency",
            "consistency=",
            "consistency=LOCAL",
            "consistency=local&consistency=local",
            "consistency=local&consistency=linearizable",
            "consistency=%6cocal",
            "consistency=local%00",
            &format!("consistency={}", "x".repeat(5_000)),
        ] {
            check(&format!("/workloads?{query}"), None);
        }
    }
}
