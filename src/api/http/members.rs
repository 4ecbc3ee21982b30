//! `/tokens`, and joining and leaving a cluster.

use axum::{Json, extract::State, http::StatusCode};
use serde::Deserialize;
use toft_model::{name::Name, token::TokenId, units::parse_span_ms};
use utoipa::IntoParams;
use zeroize::Zeroizing;

use super::{
    ApiError, ApiState,
    error::{Asked, Body, Parsed},
    query::ListQuery,
};
use crate::{
    api::types::{JoinRequest, JoinedCluster, MadeToken, Page, Token, TokenRequest},
    control::{ControlError, ErrorKind, belonging::JoinWish, ops::members::TokenWish},
};

/// How long a token is valid when nobody says.
const USUAL_TTL: &str = "24h";
/// How long one is valid that a PIN stands for: as long as the PIN.
const TTL_OF_PIN: &str = "5m";
/// Where members listen when nobody says.
const USUAL_PORT: u16 = 7444;

/// How a node goes.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub struct ForceQuery {
    /// Whether its instances are ended and its volumes given up.
    #[serde(default)]
    force: bool,
}

/// Every token that lets machines join, the newest first; secrets are never told.
#[utoipa::path(get, path = "/tokens", tag = "cluster", params(ListQuery), responses((status = 200, body = Page<Token>)))]
pub async fn list(State(api): State<ApiState>, Asked(query): Asked<ListQuery>) -> Result<Json<Page<Token>>, ApiError> {
    let tokens = api.ops.tokens().await?.into_iter().map(Token::from).collect();
    Ok(Json(query.page(tokens, |token: &Token| token.id.clone())?))
}

/// Makes a token that lets machines join. From then on this node listens for members.
#[utoipa::path(post, path = "/tokens", tag = "cluster", request_body = TokenRequest, responses((status = 201, body = MadeToken), (status = 400, body = crate::api::types::ErrorEnvelope)))]
pub async fn create(
    State(api): State<ApiState>,
    Body(asked): Body<TokenRequest>,
) -> Result<(StatusCode, Json<MadeToken>), ApiError> {
    if asked.pin && (asked.ttl.is_some() || asked.uses.is_some_and(|uses| uses != 1)) {
        let field = if asked.ttl.is_some() { "ttl" } else { "uses" };
        let error = ControlError::new(ErrorKind::Invalid, "a PIN is valid for five minutes and one use");
        return Err(error.hint("leave it out, or make a token without a PIN").field(field).into());
    }
    let usual = if asked.pin { TTL_OF_PIN } else { USUAL_TTL };
    let ttl_ms = parse_span_ms(asked.ttl.as_deref().unwrap_or(usual)).map_err(|invalid| invalid.at("ttl"));
    let wish = TokenWish {
        ttl_ms: ttl_ms.map_err(ControlError::from)?,
        uses: asked.uses.unwrap_or(1),
        role: asked.role.unwrap_or_default(),
        name: asked.name,
        labels: asked.labels,
        pin: asked.pin,
    };
    let made = api.ops.create_token(wish).await?;
    let made = MadeToken {
        about: made.view.into(),
        token: made.text.to_string(),
        addresses: made.addresses,
        pin: made.pin.map(|pin| pin.to_string()),
    };
    Ok((StatusCode::CREATED, Json(made)))
}

/// Takes a token back; who joined with it stays.
#[utoipa::path(delete, path = "/tokens/{id}", tag = "cluster", params(("id" = String, Path)), responses((status = 204), (status = 404, body = crate::api::types::ErrorEnvelope)))]
pub async fn revoke(State(api): State<ApiState>, Parsed(id): Parsed<TokenId>) -> Result<StatusCode, ApiError> {
    api.ops.revoke_token(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes this node a member of another cluster. What it has is refused unless it is to be put aside. The node starts again at once.
#[utoipa::path(post, path = "/cluster/join", tag = "cluster", request_body = JoinRequest, responses((status = 200, body = JoinedCluster), (status = 400, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn join(
    State(api): State<ApiState>,
    Body(asked): Body<JoinRequest>,
) -> Result<Json<JoinedCluster>, ApiError> {
    let wish = JoinWish {
        address: member_address(&asked.address)?,
        token: Zeroizing::new(asked.token),
        name: asked.name,
        role: asked.role,
        labels: asked.labels,
        discard: asked.discard,
    };
    Ok(Json(api.ops.join_cluster(wish).await?.into()))
}

/// Takes this node out of its cluster, and makes it an empty appliance of its own. It starts again at once.
#[utoipa::path(post, path = "/cluster/leave", tag = "cluster", params(ForceQuery), responses((status = 204), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn leave(State(api): State<ApiState>, Asked(query): Asked<ForceQuery>) -> Result<StatusCode, ApiError> {
    api.ops.leave_cluster(query.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes another node, of which nothing stays. It is refused while the node answers and runs something, and when the members
/// that are left would have no majority.
#[utoipa::path(delete, path = "/nodes/{name}", tag = "nodes", params(("name" = String, Path), ForceQuery), responses((status = 204), (status = 404, body = crate::api::types::ErrorEnvelope), (status = 409, body = crate::api::types::ErrorEnvelope)))]
pub async fn remove_node(
    State(api): State<ApiState>,
    Parsed(name): Parsed<Name>,
    Asked(query): Asked<ForceQuery>,
) -> Result<StatusCode, ApiError> {
    api.ops.remove_node(&name, query.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `HOST:PORT` of what people write.
pub fn member_address(text: &str) -> Result<String, ControlError> {
    let wrong = || {
        let shown: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
        ControlError::new(ErrorKind::Invalid, format!("`{shown}` is no address of a member"))
            .hint("write it like `192.168.1.10`, `box.lan:7444` or `https://[fd00::1]:7444`")
            .field("address")
    };
    let rest = text.strip_prefix("https://").unwrap_or(text);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let plain = |host: &str| {
        !host.is_empty() && host.len() <= 253 && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
    };
    if let Ok(address) = rest.trim_matches(['[', ']']).parse::<std::net::Ipv6Addr>() {
        return Ok(format!("[{address}]:{USUAL_PORT}"));
    }
    if let Ok(address) = rest.parse::<std::net::SocketAddrV6>() {
        return Ok(address.to_string());
    }
    match rest.split_once(':') {
        None if plain(rest) => Ok(format!("{rest}:{USUAL_PORT}")),
        Some((host, port)) if plain(host) && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(rest.to_owned()),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::member_address;

    #[test]
    fn addresses_of_members_are_read_as_people_write_them() {
        for (text, address) in [
            ("192.168.1.10", "192.168.1.10:7444"),
            ("192.168.1.10:99", "192.168.1.10:99"),
            ("https://box.lan", "box.lan:7444"),
            ("https://box.lan:7444/", "box.lan:7444"),
            ("fd00::1", "[fd00::1]:7444"),
            ("[fd00::1]", "[fd00::1]:7444"),
            ("https://[fd00::1]:99", "[fd00::1]:99"),
        ] {
            assert_eq!(member_address(text).unwrap(), address, "{text}");
        }
        for bad in
            ["", "http://box", "box:", "box:0", "box:70000", "box/path", "a b", "toft1.aa@box", "https://", ":7444"]
        {
            assert!(member_address(bad).is_err(), "{bad}");
        }
    }
}
