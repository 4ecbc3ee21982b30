//! Operations on API tokens, which programs show instead of a password.

use toft_model::{
    identity::{NewApiToken, Rights, UserName},
    state::{ApiTokenRow, Command},
    token::TokenId,
};
use zeroize::Zeroizing;

use super::{Ops, now_ms, users::no_user};
use crate::{
    control::{
        ControlError, ErrorKind,
        actor::{self, Way},
    },
    identity::Bearer,
};

/// What somebody wants of an API token.
pub struct ApiTokenWish {
    /// Whose it is to be; whoever asks when absent. Only root may name another.
    pub user: Option<UserName>,
    /// What it is for.
    pub label: String,
    /// What it may.
    pub rights: Rights,
    /// How long it is valid, in milliseconds.
    pub ttl_ms: u64,
}

/// An API token that was made just now.
pub struct MadeApiToken {
    /// The token.
    pub row: ApiTokenRow,
    /// The whole of it; nobody can read it again.
    pub text: Zeroizing<String>,
}

fn not_found(id: &TokenId) -> ControlError {
    ControlError::new(ErrorKind::NotFound, format!("there is no API token `{id}`"))
        .hint("`toft user token list` shows the tokens there are")
}

impl Ops {
    /// Makes an API token. It may at most what its owner may, and what whoever asks may.
    pub async fn create_api_token(&self, wish: ApiTokenWish) -> Result<MadeApiToken, ControlError> {
        let asks = actor::current();
        let own = asks.as_ref().and_then(|asks| asks.user.clone());
        if asks.as_ref().is_some_and(|asks| matches!(asks.way, Way::Signed { .. })) {
            return Err(ControlError::new(ErrorKind::Forbidden, "a signed token cannot make what outlives it")
                .hint("show an API token, or sign in"));
        }
        let user = match (own, wish.user) {
            (Some(own), None) => own,
            (Some(own), Some(named)) if own == named => own,
            (Some(_), Some(_)) => {
                return Err(ControlError::new(ErrorKind::Forbidden, "a token belongs to whoever makes it")
                    .hint("root on a node can make one for another user")
                    .field("user"));
            }
            (None, Some(named)) => named,
            (None, None) => return Err(no_user().field("user")),
        };
        if asks.is_some_and(|asks| !wish.rights.within(&asks.rights)) {
            return Err(ControlError::new(ErrorKind::Forbidden, "the token would be allowed more than who makes it")
                .hint("give it at most your own role and grants")
                .field("role"));
        }
        let bearer = Bearer::make().map_err(|error| ControlError::new(ErrorKind::Internal, error.to_string()))?;
        let at_ms = now_ms();
        let token = NewApiToken {
            id: bearer.id.clone(),
            secret: bearer.digest(),
            user,
            label: wish.label,
            rights: wish.rights,
            expires_at_ms: at_ms.saturating_add_unsigned(wish.ttl_ms),
        };
        token.check(at_ms)?;
        let row = ApiTokenRow { token: token.clone(), created_at_ms: at_ms, used_at_ms: None };
        self.submit(Command::CreateApiToken { token: Box::new(token), at_ms }).await?;
        Ok(MadeApiToken { row, text: bearer.api_token() })
    }

    /// API tokens, the newest first: all of them for admins, for others their own.
    pub async fn api_tokens(&self) -> Result<Vec<ApiTokenRow>, ControlError> {
        let asks = actor::current();
        let own = asks.filter(|asks| !asks.is_admin()).map(|asks| asks.user.clone());
        let read = self.state.read(move |connection| match own {
            None => ApiTokenRow::all(connection),
            Some(Some(own)) => ApiTokenRow::of(connection, &own),
            Some(None) => Ok(Vec::new()),
        });
        Ok(read.await?)
    }

    /// Takes an API token back: one of one's own, or as an admin anybody's.
    pub async fn revoke_api_token(&self, token_id: TokenId) -> Result<(), ControlError> {
        if !self.api_tokens().await?.iter().any(|row| row.token.id == token_id) {
            return Err(not_found(&token_id));
        }
        self.submit(Command::RevokeApiToken { token_id, at_ms: now_ms() }).await?;
        Ok(())
    }
}
