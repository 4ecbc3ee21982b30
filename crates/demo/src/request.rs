//! Reads the head of an HTTP/1 request from bytes. Pure: no network, no clock.

/// A head longer than this is refused.
pub const MAX_HEAD_BYTES: usize = 8 * 1024;

/// What of a request matters here.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// The method as sent: a token, such as `GET`.
    pub method: String,
    /// The path without its query: printable ASCII.
    pub path: String,
    /// Whether the connection may serve another request after this one.
    pub keep_alive: bool,
}

/// Why a head is no request we can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// 400: not HTTP.
    Malformed,
    /// 431: the head does not end within the limit.
    TooLong,
    /// 505: HTTP, but not version 1.
    Version,
}

/// Looks for a whole head at the start of `bytes`. Gives the request and the head's length,
/// or nothing while more bytes are needed.
pub fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, Refusal> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() >= MAX_HEAD_BYTES { Err(Refusal::TooLong) } else { Ok(None) };
    };
    if end + 4 > MAX_HEAD_BYTES {
        return Err(Refusal::TooLong);
    }
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| Refusal::Malformed)?;
    let mut lines = head.split("\r\n");
    let mut request = request_line(lines.next().unwrap_or_default())?;
    let http_1_0 = !request.keep_alive;
    let (mut hosts, mut has_body, mut close, mut stay) = (0, false, false, false);
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(Refusal::Malformed)?;
        if !is_token(name) || value.contains(|c: char| c.is_control() && c != '\t') {
            return Err(Refusal::Malformed);
        }
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "host" => hosts += 1,
            "content-length" => has_body |= value != "0",
            "transfer-encoding" => has_body = true,
            "connection" => {
                let mut options = value.split(',').map(str::trim);
                close |= options.clone().any(|option| option.eq_ignore_ascii_case("close"));
                stay |= options.any(|option| option.eq_ignore_ascii_case("keep-alive"));
            }
            _ => {}
        }
    }
    if hosts > 1 || (hosts == 0 && !http_1_0) {
        return Err(Refusal::Malformed);
    }
    // A body is never read, so what follows it could not be told from it.
    request.keep_alive = !close && !has_body && (!http_1_0 || stay);
    Ok(Some((request, end + 4)))
}

/// `METHOD target HTTP/1.x`; `keep_alive` is the version's default.
fn request_line(line: &str) -> Result<Request, Refusal> {
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refusal::Malformed);
    };
    let keep_alive = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        other if other.starts_with("HTTP/") => return Err(Refusal::Version),
        _ => return Err(Refusal::Malformed),
    };
    if !is_token(method) || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Refusal::Malformed);
    }
    Ok(Request { method: method.to_owned(), path: path_of(target)?.to_owned(), keep_alive })
}

/// The path in a target such as `/a?b`, `http://host/a` or `*`.
fn path_of(target: &str) -> Result<&str, Refusal> {
    let path_and_query = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None if target.starts_with('/') || target == "*" => target,
        None => return Err(Refusal::Malformed),
    };
    Ok(path_and_query.split(['?', '#']).next().unwrap_or("/"))
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &str, expected: Result<(&str, &str, bool), Refusal>) {
        let found = parse(head.as_bytes()).map(|parsed| {
            let (request, length) = parsed.unwrap_or_else(|| panic!("incomplete: {head:?}"));
            assert_eq!(length, head.len(), "{head:?}");
            (request.method, request.path, request.keep_alive)
        });
        let expected = expected.map(|(method, path, keep)| (method.to_owned(), path.to_owned(), keep));
        assert_eq!(found, expected, "{head:?}");
    }

    #[test]
    fn heads_become_requests() {
        check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok(("GET", "/", true)));
        check("GET /json?x=1 HTTP/1.1\r\nHOST:a\r\nConnection: Close\r\n\r\n", Ok(("GET", "/json", false)));
        check("GET http://a/b/c#d HTTP/1.1\r\nhost: a\r\n\r\n", Ok(("GET", "/b/c", true)));
        check("GET http://a HTTP/1.1\r\nhost: a\r\n\r\n", Ok(("GET", "/", true)));
        check("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n", Ok(("OPTIONS", "*", true)));
        check("GET / HTTP/1.0\r\n\r\n", Ok(("GET", "/", false)));
        check("GET / HTTP/1.0\r\nConnection: x, keep-alive\r\n\r\n", Ok(("GET", "/", true)));
    }

    #[test]
    fn a_body_ends_the_connection() {
        check("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", Ok(("POST", "/", false)));
        check("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", Ok(("GET", "/", false)));
        check("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", Ok(("GET", "/", true)));
    }

    #[test]
    fn what_is_not_a_request_is_refused() {
        for head in [
            "\r\n\r\n",
            "GET\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET /\x1b[31m HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET index.html HTTP/1.1\r\nHost: a\r\n\r\n",
            "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / FTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            check(head, Err(Refusal::Malformed));
        }
        check("PRI * HTTP/2.0\r\n\r\n", Err(Refusal::Version));
        assert_eq!(parse(b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n"), Err(Refusal::Malformed));
    }

    #[test]
    fn an_unfinished_head_waits_until_the_limit() {
        assert_eq!(parse(b""), Ok(None));
        assert_eq!(parse(b"GET / HTTP/1.1\r\nHost: a\r\n"), Ok(None));
        assert_eq!(parse(&[b'x'; MAX_HEAD_BYTES - 1]), Ok(None));
        assert_eq!(parse(&[b'x'; MAX_HEAD_BYTES]), Err(Refusal::TooLong));
    }

    #[test]
    fn requests_may_follow_each_other_closely() {
        let two = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n";
        let (first, length) = parse(two).expect("it is valid").expect("it is whole");
        let (second, _) = parse(&two[length..]).expect("it is valid").expect("it is whole");
        assert_eq!((first.path.as_str(), second.path.as_str()), ("/a", "/b"));
    }
}
