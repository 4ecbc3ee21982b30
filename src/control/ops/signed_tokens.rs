//! Operations on short-lived tokens for services, and on the keys that sign them.
//!
//! A token is in no table: whoever has the keys can tell that it is one of ours. It ends by time, with its user, or with the keys.

use std::net::IpAddr;

use toft_model::{
    identity::{Rights, UserName},
    signing::{KNOWN_BEFORE_MS, MAX_SIGNED_TTL_MS, MIN_SIGNED_TTL_MS, NewSigningKey, SIGNS_MS},
    state::{ApiTokenRow, Command, SigningKeyRow, UserRow},
};
use zeroize::Zeroizing;

use super::{Noted, Ops, now_ms, users::no_user};
use crate::{
    control::{
        ControlError, ErrorKind,
        actor::{self, Actor, Way},
    },
    identity::{Claims, Jwk, Jwks, OWN_AUDIENCE, SigningKey, key_of, new_token_id, opens},
    seal::Place,
};

/// What a private key in the state is sealed as.
const KIND: &str = "signing-key";
/// Longest name of whom a token is for, in bytes.
const LONGEST_AUDIENCE: usize = 200;

/// What somebody wants of a signed token.
pub struct SignedTokenWish {
    /// Whom it speaks of; whoever asks when absent. Only root may name another.
    pub user: Option<UserName>,
    /// To whom; this cluster's own doors when absent.
    pub audience: Option<String>,
    /// What it may.
    pub rights: Rights,
    /// How long it is valid, in milliseconds.
    pub ttl_ms: u64,
}

/// A token that was signed just now.
pub struct SignedToken {
    /// What it says.
    pub claims: Claims,
    /// The whole of it.
    pub text: Zeroizing<String>,
}

fn internal(error: impl ToString) -> ControlError {
    ControlError::new(ErrorKind::Internal, error.to_string())
}

fn no_key() -> ControlError {
    ControlError::new(ErrorKind::Unavailable, "there is no key yet that signs tokens")
        .hint("the leader makes one within a minute; try again")
}

/// The key that signs now: the newest that has been known for a while, else the newest.
fn signs(rows: &[SigningKeyRow], now_ms: i64) -> Option<&SigningKeyRow> {
    rows.iter().find(|row| now_ms.saturating_sub(row.created_at_ms) >= KNOWN_BEFORE_MS).or(rows.first())
}

/// Whether it is time for another key.
fn is_time(rows: &[SigningKeyRow], now_ms: i64) -> bool {
    rows.first().is_none_or(|newest| now_ms.saturating_sub(newest.created_at_ms) >= SIGNS_MS)
}

impl Ops {
    /// What tokens call this cluster.
    fn issuer(&self) -> String {
        format!("toft:{}", self.state.status().identity.cluster_id)
    }

    fn opened_key(&self, row: &SigningKeyRow) -> Result<SigningKey, ControlError> {
        let place = Place { kind: KIND, name: row.key.id.as_str(), version: 1 };
        let opened = self.sealing_key()?.open(place, row.key.sealed.as_bytes()).map_err(internal)?;
        SigningKey::from_bytes(opened.as_bytes()).ok_or_else(|| internal("a signing key is damaged"))
    }

    /// Signs a token. It may at most what its user may, and what whoever asks may, and ends no later than what they came with.
    pub async fn sign_token(&self, wish: SignedTokenWish) -> Result<SignedToken, ControlError> {
        let asks = actor::current();
        let user = match (asks.as_ref().and_then(|asks| asks.user.clone()), wish.user) {
            (Some(own), None) => own,
            (Some(own), Some(named)) if own == named => own,
            (Some(_), Some(_)) => {
                return Err(ControlError::new(ErrorKind::Forbidden, "a token speaks of whoever asks for it")
                    .hint("root on a node can sign one for another user")
                    .field("user"));
            }
            (None, Some(named)) => named,
            (None, None) => return Err(no_user().field("user")),
        };
        if asks.as_ref().is_some_and(|asks| !wish.rights.within(&asks.rights)) {
            return Err(ControlError::new(
                ErrorKind::Forbidden,
                "the token would be allowed more than who asks for it",
            )
            .hint("give it at most your own role and grants")
            .field("role"));
        }
        let ttl_ms = i64::try_from(wish.ttl_ms).unwrap_or(i64::MAX);
        if !(MIN_SIGNED_TTL_MS..=MAX_SIGNED_TTL_MS).contains(&ttl_ms) {
            return Err(ControlError::new(ErrorKind::Invalid, "the time is out of range")
                .hint("use 1s to 1h; what lives longer is an API token")
                .field("ttl"));
        }
        let audience = wish.audience.unwrap_or_else(|| OWN_AUDIENCE.to_owned());
        if audience.is_empty()
            || audience.len() > LONGEST_AUDIENCE
            || !audience.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\'))
        {
            return Err(ControlError::new(ErrorKind::Invalid, "this names nobody whom a token can be for")
                .hint(format!("use 1 to {LONGEST_AUDIENCE} visible characters, such as `https://grafana.lan`"))
                .field("audience"));
        }
        wish.rights.check()?;
        let (now_ms, way) = (now_ms(), asks.as_ref().map(|asks| asks.way.clone()));
        let named = user.clone();
        let read = self.state.read(move |connection| {
            let ends = match way {
                Some(Way::Token(id)) => ApiTokenRow::by_id(connection, &id)?.map(|row| row.token.expires_at_ms),
                _ => None,
            };
            Ok((UserRow::named(connection, &named)?, SigningKeyRow::all(connection)?, ends))
        });
        let (row, keys, ends) = read.await?;
        if matches!(asks.as_ref().map(|asks| &asks.way), Some(Way::Signed { .. })) {
            return Err(ControlError::new(ErrorKind::Forbidden, "a signed token cannot have others signed")
                .hint("show an API token, or sign in"));
        }
        let row = row.ok_or_else(|| {
            ControlError::new(ErrorKind::NotFound, format!("there is no user `{user}`"))
                .hint("`toft user ls` shows the users there are; `admin` is one once it has a password of its own")
        })?;
        if row.disabled || !wish.rights.within(&row.rights) {
            return Err(ControlError::new(ErrorKind::Invalid, format!("the token may more than `{user}`"))
                .hint("give it at most the role and the grants of its user")
                .field("role"));
        }
        let key = signs(&keys, now_ms).ok_or_else(no_key)?;
        let until_ms = now_ms.saturating_add(ttl_ms).min(ends.unwrap_or(i64::MAX));
        let claims = Claims {
            iss: self.issuer(),
            sub: user.clone(),
            aud: audience,
            iat: now_ms / 1_000,
            exp: until_ms / 1_000,
            jti: new_token_id().map_err(internal)?,
            role: wish.rights.role,
            grants: wish.rights.grants,
        };
        let text = self.opened_key(key)?.sign(&key.key.id, &claims);
        let subject = format!("user/{user} signed-token/{} for {}", claims.jti, claims.aud);
        self.note(Noted { action: "sign_token", subject }).await;
        Ok(SignedToken { claims, text })
    }

    /// Of whom a signed token speaks; nobody when it is none of ours, is not meant for us, or is over.
    pub(super) async fn identify_signed(
        &self,
        text: &str,
        from: Option<IpAddr>,
    ) -> Result<Option<Actor>, ControlError> {
        let Some(id) = key_of(text) else { return Ok(None) };
        let asked = id.clone();
        let Some(key) = self.state.read(move |connection| SigningKeyRow::by_id(connection, &asked)).await? else {
            return Ok(None);
        };
        let Some(claims) = opens(text, &key.key.public, &self.issuer(), now_ms()) else { return Ok(None) };
        let (rights, name) = (claims.rights(), claims.sub);
        let user = self.state.read(move |connection| UserRow::named(connection, &name)).await?;
        let Some(user) = user.filter(|user| !user.disabled) else { return Ok(None) };
        // They may have less now than when it was signed.
        let rights = rights.and(&user.rights);
        let way = Way::Signed { id: claims.jti, key: id, until_ms: claims.exp.saturating_mul(1_000) };
        Ok(Some(Actor { user: Some(user.name), rights, way, from, is_first: false, lacks_factor: false }))
    }

    /// The keys by which others tell that a token is one of ours.
    pub async fn published_keys(&self) -> Result<Jwks, ControlError> {
        let rows = self.state.read(SigningKeyRow::all).await?;
        Ok(Jwks { keys: rows.iter().map(|row| Jwk::of_ed25519(row.key.id.as_str(), &row.key.public)).collect() })
    }

    /// Makes another key. Alone, it ends all tokens that were signed before, at once.
    pub async fn rotate_signing_keys(&self, alone: bool) -> Result<(), ControlError> {
        let key = SigningKey::make().map_err(internal)?;
        let id = new_token_id().map_err(internal)?;
        let place = Place { kind: KIND, name: id.as_str(), version: 1 };
        let sealed = self.sealing_key()?.seal(place, &key.as_bytes().to_vec().into()).map_err(internal)?;
        let key = NewSigningKey { id, public: key.public(), sealed: sealed.into() };
        self.submit(Command::PutSigningKey { key: Box::new(key), alone, at_ms: now_ms() }).await?;
        Ok(())
    }

    /// Makes a key when it is time, if this node leads. Keys that another cluster has sealed are replaced.
    pub async fn keep_signing_keys(&self) -> Result<(), ControlError> {
        if !self.state.leads() {
            return Ok(());
        }
        let rows = self.state.read(SigningKeyRow::all).await?;
        let sealed_elsewhere = rows.first().is_some_and(|newest| self.opened_key(newest).is_err());
        if sealed_elsewhere || is_time(&rows, now_ms()) {
            self.rotate_signing_keys(sealed_elsewhere).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use toft_model::token::TokenId;

    use super::*;

    fn row(number: u8, created_at_ms: i64) -> SigningKeyRow {
        let key = NewSigningKey { id: TokenId::of([number; 10]), public: vec![number; 32], sealed: vec![1].into() };
        SigningKeyRow { key, created_at_ms }
    }

    #[test]
    fn a_key_is_known_before_it_signs_and_followed_after_a_day() {
        assert!(is_time(&[], 0) && signs(&[], 0).is_none());
        let first = [row(1, 1_000)];
        assert_eq!(signs(&first, 1_000).map(|row| row.key.public[0]), Some(1), "the first signs at once");
        assert!(!is_time(&first, SIGNS_MS) && is_time(&first, SIGNS_MS + 1_000));
        let both = [row(2, SIGNS_MS), row(1, 0)];
        let at = |now_ms| signs(&both, now_ms).map(|row| row.key.public[0]);
        assert_eq!(
            (at(SIGNS_MS), at(SIGNS_MS + KNOWN_BEFORE_MS - 1), at(SIGNS_MS + KNOWN_BEFORE_MS)),
            (Some(1), Some(1), Some(2))
        );
        assert!(!is_time(&[row(1, 5_000)], i64::MIN), "a clock that went back makes no keys");
    }
}
