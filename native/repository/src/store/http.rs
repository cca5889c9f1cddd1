//! Requests to a server that holds a repository: made again for a few seconds, noticed as lost after some ten.

use std::io::Read;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use ureq::http::{Method, Request};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, SendBody};
use url::Url;

use crate::error::{Error, Kind, Result};

const CONNECT: Duration = Duration::from_secs(5);
/// Without a byte from a server that was asked, or that takes what is sent to it.
const SILENCE: Duration = Duration::from_secs(8);
/// After this time a request that failed is not made again.
const PATIENCE: Duration = Duration::from_secs(4);
/// The same for a server that says that it is too busy.
const BUSY_PATIENCE: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const CONNECTIONS: usize = 32;

/// What a server answered.
pub struct Answer {
    pub status: u16,
    pub length: Option<u64>,
    pub body: Vec<u8>,
}

/// A request that may be made several times.
pub struct Ask<'a> {
    /// What messages call its object: URLs have signatures in them.
    pub what: &'a str,
    pub method: Method,
    pub url: Url,
    /// Offset and length.
    pub range: Option<(u32, u32)>,
    pub parts: Option<&'a [Bytes]>,
}

impl<'a> Ask<'a> {
    pub fn new(what: &'a str, method: Method, url: Url) -> Self {
        Self { what, method, url, range: None, parts: None }
    }
}

#[derive(Debug)]
pub struct Http {
    agent: Agent,
}

/// `https://HOST[:PORT]`; to this machine itself `http://`: nothing goes over a network in the clear.
pub fn endpoint(authority: &str, whole: &str) -> Result<Url> {
    let bad = |reason: String| Error::new(Kind::Usage, format!("{whole} names no server: {reason}"));
    if authority.contains(['@', '?', '#', '\\']) {
        return Err(
            bad("only HOST or HOST:PORT comes before the path".to_owned()).hint("secrets go by the password file")
        );
    }
    let url = Url::parse(&format!("https://{authority}")).map_err(|error| bad(error.to_string()))?;
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    if host == "localhost" || address.is_ok_and(|address| address.is_loopback()) {
        return Url::parse(&format!("http://{authority}")).map_err(|error| bad(error.to_string()));
    }
    Ok(url)
}

impl Http {
    pub fn new(endpoint: &Url) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // A redirection would take what is signed elsewhere.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_per_read(Some(SILENCE))
            .timeout_per_write(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .max_idle_connections(CONNECTIONS)
            .max_idle_connections_per_host(CONNECTIONS)
            .accept_encoding("identity")
            .user_agent("livemount")
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build());
        if endpoint.scheme() == "http" {
            config = config.proxy(None);
        }
        Self { agent: config.build().new_agent() }
    }

    /// The answer, whatever its status. Raises `Unavailable` when there is none, `Denied` for a bad certificate.
    pub fn ask(&self, ask: &Ask<'_>) -> Result<Answer> {
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let result = self.once(ask);
            let patience = match &result {
                Ok(Answer { status: 429 | 503, .. }) => BUSY_PATIENCE,
                Ok(Answer { status: 500 | 502 | 504, .. }) => PATIENCE,
                Err(error) if may_pass(error) => PATIENCE,
                _ => Duration::ZERO,
            };
            if began.elapsed() + pause > patience {
                return result.map_err(|error| told(ask.what, &error));
            }
            thread::sleep(pause);
            pause *= 2;
        }
    }

    fn once(&self, ask: &Ask<'_>) -> std::result::Result<Answer, ureq::Error> {
        let mut request = Request::builder().method(ask.method.clone()).uri(ask.url.as_str());
        if let Some((offset, length)) = ask.range {
            let last = u64::from(offset) + u64::from(length) - 1;
            request = request.header("range", format!("bytes={offset}-{last}"));
        }
        let response = if let Some(parts) = ask.parts {
            let length: usize = parts.iter().map(Bytes::len).sum();
            let mut reader = Parts(parts.to_vec());
            let request = request.header("content-length", length).header("content-type", "application/octet-stream");
            self.agent.run(request.body(SendBody::from_reader(&mut reader))?)?
        } else {
            self.agent.run(request.body(SendBody::none())?)?
        };
        let status = response.status().as_u16();
        let length = response
            .headers()
            .get("content-length")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse().ok());
        // A server that knows no ranges sends everything: what is too much is not read.
        let limit = match ask.range {
            Some((_, length)) if status == 206 => u64::from(length) + 1,
            Some(_) => 1 << 20,
            None => u64::from(u32::MAX),
        };
        let body = if ask.range.is_some() && status == 200 {
            Vec::new()
        } else {
            response.into_body().into_with_config().limit(limit).read_to_vec()?
        };
        Ok(Answer { status, length, body })
    }
}

/// The parts of a file, one after the other.
struct Parts(Vec<Bytes>);

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.0.first().is_some_and(Bytes::is_empty) {
            self.0.remove(0);
        }
        let Some(part) = self.0.first_mut() else {
            return Ok(0);
        };
        let count = part.len().min(buffer.len());
        part.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

fn may_pass(error: &ureq::Error) -> bool {
    use ureq::Error as Failed;
    matches!(
        error,
        Failed::Io(_) | Failed::Timeout(_) | Failed::ConnectionFailed | Failed::HostNotFound | Failed::Protocol(_)
    ) && !of_certificate(error)
}

fn of_certificate(error: &ureq::Error) -> bool {
    matches!(error, ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Pem(_))
        || error.to_string().contains("certificate")
}

fn told(what: &str, error: &ureq::Error) -> Error {
    if of_certificate(error) {
        return Error::new(Kind::Denied, format!("the server of {what} cannot be trusted: {error}"))
            .hint("a private authority goes into the system's certificates, or SSL_CERT_FILE");
    }
    if matches!(error, ureq::Error::BodyExceedsLimit(_)) {
        return Error::corrupt(format!("the server answered with more than was asked of {what}"));
    }
    Error::new(Kind::Unavailable, format!("{what} cannot be reached: {error}"))
}
