//! What a door knows of a request before it is known who asks.

use std::net::IpAddr;

/// As an extension of requests that come over TCP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visitor {
    /// Where it comes from.
    pub from: Option<IpAddr>,
    /// What the cookie of a session is called at this door.
    pub cookie: String,
    /// Whether it came over TLS.
    pub secure: bool,
}

impl Visitor {
    /// The header that gives a browser its cookie, or takes it away when `value` is empty.
    pub fn set_cookie(&self, value: &str) -> String {
        let secure = if self.secure { "; Secure" } else { "" };
        let age = if value.is_empty() { "; Max-Age=0" } else { "" };
        format!("{}={value}; Path=/; HttpOnly; SameSite=Lax{secure}{age}", self.cookie)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_are_as_narrow_as_the_door_allows() {
        let tls = Visitor { from: None, cookie: "__Host-toft".into(), secure: true };
        assert_eq!(tls.set_cookie("a.b"), "__Host-toft=a.b; Path=/; HttpOnly; SameSite=Lax; Secure");
        let plain = Visitor { from: None, cookie: "toft-7443".into(), secure: false };
        assert_eq!(plain.set_cookie(""), "toft-7443=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0");
    }
}
