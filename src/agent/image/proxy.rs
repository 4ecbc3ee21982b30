//! The way to a registry: straight, or through a proxy. Which it is says [`Matcher`], by the rules that curl has for
//! `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`; this machine itself is never asked for through a proxy.
//!
//! With TLS the proxy makes a tunnel and sees nothing but names and sizes. Without, it is asked for the whole address, as
//! proxies expect it.

use std::{
    error::Error,
    future::Future,
    io::{self, IoSlice},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper::{
    Uri,
    header::HeaderValue,
    rt::{Read, ReadBufCursor, Write},
};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::{
        legacy::connect::{Connected, Connection, HttpConnector, proxy::Tunnel},
        proxy::matcher::Matcher,
    },
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tower::Service;
use zeroize::Zeroizing;

use super::{
    auth::encoded,
    error::{PullErrorKind, Trouble},
    http::host,
    password,
};

/// What is never asked for through a proxy.
const THIS_MACHINE: &str = "localhost,127.0.0.0/8,::1";

/// What the configuration says of proxies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxySettings {
    /// For registries without TLS.
    pub http: Option<Proxy>,
    /// For registries with TLS.
    pub https: Option<Proxy>,
    /// Hosts, domains (with all below them), addresses, networks and `*` that are reached without one.
    pub exceptions: Vec<String>,
    /// Who logs in where an address says nothing of that, and the file with the password.
    pub login: Option<(String, PathBuf)>,
}

/// Where a proxy is.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// `http://HOST[:PORT]` or `https://HOST[:PORT]`.
    pub url: String,
    /// `NAME[:PASSWORD]`, percent-encoded.
    pub credentials: Option<Zeroizing<String>>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Proxy({})", self.url)
    }
}

impl ProxySettings {
    /// The rules for a client; reads the password. Blocks.
    pub(super) fn matcher(&self) -> Result<Matcher, Trouble> {
        let login = match &self.login {
            None => None,
            Some((name, path)) => {
                let password = password::read(path).map_err(|why| {
                    let reason = format!("the password for the proxy cannot be had from `{}`: {why}", path.display());
                    Trouble::new(PullErrorKind::Denied, reason).hint("images.proxy_password_file names the file")
                })?;
                // These two have a meaning of their own before the host.
                let encoded = |text: &str| Zeroizing::new(encoded(text).replace(':', "%3A").replace('/', "%2F"));
                Some(Zeroizing::new(format!("{}:{}", *encoded(name), *encoded(&password))))
            }
        };
        let whole = |proxy: &Option<Proxy>| {
            let Some(Proxy { url, credentials }) = proxy else { return Ok(String::new()) };
            let (scheme, host) = url.split_once("://").unwrap_or(("http", url));
            let whole = match credentials.as_ref().or(login.as_ref()) {
                Some(credentials) => format!("{scheme}://{}@{host}", credentials.as_str()),
                None => url.clone(),
            };
            // The library leaves out what it cannot read, and then everything would go straight.
            let elsewhere = Uri::from_static("https://elsewhere.invalid");
            let understood = Matcher::builder().all(&whole).build().intercept(&elsewhere);
            match understood.is_some_and(|proxy| proxy.uri().authority().is_some_and(|read| read.as_str() == host)) {
                true => Ok(whole),
                false => Err(Trouble::new(PullErrorKind::Denied, format!("`{url}` cannot be used as a proxy"))),
            }
        };
        let (http, https) = (whole(&self.http)?, whole(&self.https)?);
        let exceptions = self.exceptions.iter().map(String::as_str).chain([THIS_MACHINE]).collect::<Vec<_>>().join(",");
        Ok(Matcher::builder().http(http).https(https).no(exceptions).build())
    }
}

/// What a proxy is to be sent with a question that it passes on as it is: there is no tunnel without TLS.
pub(super) fn authorization(proxies: &Matcher, to: &Uri) -> Option<HeaderValue> {
    let plain = to.scheme_str() == Some("http");
    proxies.intercept(to).filter(|_| plain).and_then(|proxy| proxy.basic_auth().cloned())
}

/// A connection that a proxy did not make.
#[derive(Debug, thiserror::Error)]
#[error("the proxy `{proxy}` made no connection")]
pub(super) struct NoWayThrough {
    /// Its host and port.
    pub(super) proxy: String,
    #[source]
    cause: Box<dyn Error + Send + Sync>,
}

/// Makes connections.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) tcp: HttpConnector,
    /// Proxies, too, may speak TLS.
    pub(super) to_proxy: HttpsConnector<HttpConnector>,
    pub(super) proxies: Arc<Matcher>,
}

/// A connection.
pub(super) struct Line {
    stream: MaybeHttpsStream<TokioIo<TcpStream>>,
    /// The other end is a proxy that passes questions on.
    passed_on: bool,
}

type BoxError = Box<dyn Error + Send + Sync>;

impl Service<Uri> for Connector {
    type Response = Line;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Line, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let Some(proxy) = self.proxies.intercept(&to) else {
            let connecting = self.tcp.call(to);
            return Box::pin(async move {
                Ok(Line { stream: MaybeHttpsStream::Http(connecting.await?), passed_on: false })
            });
        };
        let passed_on = to.scheme_str() == Some("http");
        let name = host(proxy.uri());
        let mut to_proxy = self.to_proxy.clone();
        Box::pin(async move {
            let connected: Result<_, BoxError> = if passed_on {
                to_proxy.call(proxy.uri().clone()).await
            } else {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), to_proxy);
                if let Some(login) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(login.clone());
                }
                tunnel.call(to).await.map_err(Into::into)
            };
            match connected {
                Ok(stream) => Ok(Line { stream, passed_on }),
                Err(cause) => Err(NoWayThrough { proxy: name, cause }.into()),
            }
        })
    }
}

impl Connection for Line {
    fn connected(&self) -> Connected {
        self.stream.connected().proxy(self.passed_on)
    }
}

impl Read for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl Write for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(exceptions: &[&str]) -> ProxySettings {
        let proxy = |url: &str, credentials: Option<&str>| {
            Some(Proxy { url: url.into(), credentials: credentials.map(|text| text.to_owned().into()) })
        };
        ProxySettings {
            http: proxy("http://plain:3128", None),
            https: proxy("http://proxy:3128", Some("me:p%40ss")),
            exceptions: exceptions.iter().map(|one| (*one).to_owned()).collect(),
            login: None,
        }
    }

    #[test]
    fn this_machine_and_what_is_excepted_are_reached_straight() {
        let matcher = settings(&["nas.lan", "192.168.0.0/16", "fd00::/8"]).matcher().unwrap();
        for (to, through) in [
            ("https://registry-1.docker.io/v2/", Some("proxy")),
            ("http://registry.example:5000/v2/", Some("plain")),
            ("https://nas.lan.example.org/", Some("proxy")),
            ("https://localhost.example.org/", Some("proxy")),
            ("https://192.169.0.1/", Some("proxy")),
            ("https://nas.lan:5000/v2/", None),
            ("https://NAS.lan/", None),
            ("https://mirror.nas.lan/", None),
            ("http://192.168.7.7:5000/", None),
            ("https://[fd00::1]:5000/", None),
            ("https://localhost:5000/", None),
            ("http://127.0.0.9:5000/", None),
            ("https://[::1]:5000/", None),
        ] {
            let found = matcher.intercept(&to.parse().unwrap());
            assert_eq!(found.map(|proxy| proxy.uri().host().unwrap().to_owned()).as_deref(), through, "{to}");
        }
        let none = settings(&["*"]).matcher().unwrap();
        assert!(none.intercept(&"https://registry-1.docker.io/".parse().unwrap()).is_none());
        assert!(ProxySettings::default().matcher().unwrap().intercept(&"https://a/".parse().unwrap()).is_none());
    }

    #[test]
    fn logins_come_from_the_address_or_the_file_and_are_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        let mut settings = ProxySettings { login: Some(("some one".into(), file.clone())), ..settings(&[]) };
        let trouble = settings.matcher().unwrap_err();
        assert_eq!(trouble.kind, PullErrorKind::Denied);
        std::fs::write(&file, "open: @sesame/\n").unwrap();
        let matcher = settings.matcher().unwrap();
        let login = |to: &str| matcher.intercept(&to.parse().unwrap()).unwrap().basic_auth().cloned().unwrap();
        let basic = |pair: &str| {
            use base64::{Engine, engine::general_purpose::STANDARD};
            format!("Basic {}", STANDARD.encode(pair))
        };
        assert_eq!(login("http://r.example/"), basic("some one:open: @sesame/").as_str());
        assert_eq!(login("https://r.example/"), basic("me:p@ss").as_str());
        assert_eq!(authorization(&matcher, &"https://r.example/".parse().unwrap()), None, "that is the tunnel's");
        assert!(authorization(&matcher, &"http://r.example/".parse().unwrap()).unwrap().is_sensitive());
        assert_eq!(authorization(&matcher, &"http://localhost/".parse().unwrap()), None);
        let shown = format!("{settings:?} {matcher:?}");
        assert!(!shown.contains("p%40ss") && !shown.contains("sesame") && !shown.contains("cEBzcw"), "{shown}");
        settings.login = None;
        let unreadable = Some(Proxy { url: "http://proxy".into(), credentials: Some("a/b".to_owned().into()) });
        let trouble = ProxySettings { https: unreadable, ..settings.clone() }.matcher().unwrap_err();
        assert!(!format!("{trouble:?}").contains("a/b"), "{trouble:?}");
        assert!(
            settings
                .matcher()
                .unwrap()
                .intercept(&"http://r.example/".parse().unwrap())
                .unwrap()
                .basic_auth()
                .is_none()
        );
    }
}
