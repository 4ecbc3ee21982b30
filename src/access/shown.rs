//! What somebody shows to prove who they are.

use axum::http::{HeaderMap, header};
use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use zeroize::Zeroizing;

/// Name of a session's cookie over TLS.
pub const COOKIE: &str = "__Host-toft";
/// Longest headers that are looked at, in bytes.
const LONGEST: usize = 4_096;

/// RFC 4648, padded or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What was shown.
pub(super) enum Shown {
    /// The cookie of a session.
    Cookie(Zeroizing<String>),
    /// A bearer token.
    Token(Zeroizing<String>),
    /// Name and password.
    Password(String, Zeroizing<String>),
    /// Something that can prove nothing.
    Nonsense,
}

/// Reads what was shown. Who names a way of proving it in `Authorization` means that, whatever cookies there are.
pub(super) fn read(headers: &HeaderMap, cookie: &str) -> Option<Shown> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        return Some(
            value.to_str().ok().filter(|text| text.len() <= LONGEST).and_then(authorization).unwrap_or(Shown::Nonsense),
        );
    }
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.filter(|text| text.len() <= 4 * LONGEST).flat_map(|text| text.split(';'));
    pairs.find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == cookie && value.len() <= LONGEST).then(|| Shown::Cookie(Zeroizing::new(value.to_owned())))
    })
}

fn authorization(text: &str) -> Option<Shown> {
    let (scheme, rest) = text.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Shown::Token(Zeroizing::new(rest.to_owned())));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = Zeroizing::new(BASE64.decode(rest).ok()?);
    let (name, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(Shown::Password(name.to_owned(), Zeroizing::new(password.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(headers: &[(&str, &str)]) -> String {
        let map = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        match read(&map.collect::<HeaderMap>(), COOKIE) {
            None => "nothing".into(),
            Some(Shown::Cookie(value)) => format!("cookie {}", *value),
            Some(Shown::Token(text)) => format!("token {}", *text),
            Some(Shown::Password(name, password)) => format!("{name} {}", *password),
            Some(Shown::Nonsense) => "nonsense".into(),
        }
    }

    #[test]
    fn what_is_shown_is_read() {
        assert_eq!(told(&[]), "nothing");
        assert_eq!(told(&[("authorization", "Basic YWRtaW46czNjcmV0")]), "admin s3cret");
        assert_eq!(told(&[("authorization", "basic YWRtaW46YTpi")]), "admin a:b");
        assert_eq!(told(&[("authorization", "Bearer toft_x_y")]), "token toft_x_y");
        assert_eq!(told(&[("cookie", "a=b; __Host-toft=id.secret; c=d")]), "cookie id.secret");
        assert_eq!(told(&[("cookie", "a=__Host-toft=x; __host-toft=y")]), "nothing");
        assert_eq!(told(&[("cookie", "__Host-toft=x"), ("authorization", "Bearer t")]), "token t");
        let long = format!("Basic {}", "A".repeat(10_000));
        for bad in ["", "Basic", "Basic !!!", "Digest x", "Basic YWRtaW4=", "Basic /w==", &long] {
            assert_eq!(told(&[("authorization", bad)]), "nonsense", "{bad}");
        }
        let long = format!("__Host-toft={}", "a".repeat(100_000));
        assert_eq!(told(&[("cookie", &long)]), "nothing");
    }
}
