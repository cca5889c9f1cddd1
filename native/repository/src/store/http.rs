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

use super::{Area, Place, Store, absent, cut_short};
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
/// Of each connection, for what comes and what goes: an idle mount is small.
const BUFFER: usize = 16 << 10;
/// Of an answer whose length is told, what room is made for at first.
const ROOM: u64 = 32 << 20;

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
    pub headers: Vec<(&'static str, String)>,
}

impl<'a> Ask<'a> {
    pub fn new(what: &'a str, method: Method, url: Url) -> Self {
        Self { what, method, url, range: None, parts: None, headers: Vec::new() }
    }
}

impl Ask<'_> {
    /// The header of the range.
    pub fn range(&self) -> Option<String> {
        let (offset, length) = self.range?;
        Some(format!("bytes={offset}-{}", u64::from(offset) + u64::from(length) - 1))
    }

    /// Bytes that are sent.
    pub fn size(&self) -> usize {
        self.parts.unwrap_or_default().iter().map(Bytes::len).sum()
    }
}

/// What is said of the content that is sent.
pub const CONTENT_TYPE: &str = "application/octet-stream";

/// Asks for a part of a file or all of it. `refused` tells what another status means.
pub fn read(
    http: &Http,
    store: &dyn Store,
    kind: Area,
    ask: &Ask<'_>,
    refused: impl Fn(&str, &Answer) -> Error,
) -> Result<Vec<u8>> {
    let answer = http.ask(ask)?;
    match (ask.range, answer.status) {
        (None, 200) => Ok(answer.body),
        (Some((_, length)), 206) if answer.body.len() == length as usize => Ok(answer.body),
        (Some((offset, length)), 206 | 416) => Err(cut_short(kind, ask.what, offset, length)),
        (Some(_), 200) => {
            Err(Error::new(Kind::Unsupported, format!("the server of {} gives no ranges", store.place())))
        }
        _ => {
            let error = refused(ask.what, &answer);
            Err(if error.kind == Kind::NotFound { absent(store, ask.what) } else { error })
        }
    }
}

/// A service's own name of an error, from the XML that it answers with.
pub fn code(body: &[u8]) -> &str {
    let text = std::str::from_utf8(body).unwrap_or_default();
    text.split_once("<Code>")
        .and_then(|(_, rest)| rest.split_once("</Code>"))
        .map(|(code, _)| code)
        .filter(|code| code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        .unwrap_or_default()
}

#[derive(Debug)]
pub struct Http {
    agent: Agent,
}

/// `https://HOST[:PORT]`; to this machine itself `http://`. Elsewhere nothing goes over a network in the clear, unless the
/// password file has the line `PLAIN_HTTP=yes`.
pub fn endpoint(place: &Place<'_>) -> Result<Url> {
    let url =
        Url::parse(&format!("https://{}", place.authority)).map_err(|error| place.malformed(&error.to_string()))?;
    let host = url.host_str().unwrap_or_default();
    let here = host == "localhost" || address(host).is_some_and(|address| address.is_loopback());
    let plain = match place.secrets.get("PLAIN_HTTP").map(String::as_str) {
        None => here,
        Some("yes") => true,
        Some("no") => false,
        Some(_) => return Err(Error::new(Kind::Usage, "PLAIN_HTTP in the password file is neither `yes` nor `no`")),
    };
    let scheme = if plain { "http" } else { "https" };
    Url::parse(&format!("{scheme}://{}", place.authority)).map_err(|error| place.malformed(&error.to_string()))
}

/// The address that a host of a URL is, if it is no name.
pub fn address(host: &str) -> Option<IpAddr> {
    host.trim_matches(['[', ']']).parse().ok()
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
            .input_buffer_size(BUFFER)
            .output_buffer_size(BUFFER)
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
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        if let Some(range) = ask.range() {
            request = request.header("range", range);
        }
        let response = if let Some(parts) = ask.parts {
            let mut reader = Parts(parts.to_vec());
            let request = request.header("content-length", ask.size()).header("content-type", CONTENT_TYPE);
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
            let told = if ask.method == Method::HEAD { None } else { length };
            let mut body = Vec::with_capacity(told.unwrap_or(0).min(limit).min(ROOM) as usize);
            response.into_body().into_with_config().limit(limit).reader().read_to_end(&mut body)?;
            body
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
