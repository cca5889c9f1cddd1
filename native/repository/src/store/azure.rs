//! A repository in a container of Azure Blob Storage: `restic+azure://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX]`.
//!
//! Where the host is an address or `localhost`, the account is the first part of the path.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use quick_xml::events::Event;
use rustic_core::Id;
use sha2::Sha256;
use ureq::http::Method;
use url::Url;

use super::http::{Answer, Ask, CONTENT_TYPE, Http, address, code, endpoint, read};
use super::{Area, Place, Store, file_name, file_size, parse_name};
use crate::error::{Error, Kind, Result};

const VERSION: &str = "2021-12-02";

enum Login {
    /// The account's key.
    Key(Vec<u8>),
    /// A shared access signature: what is appended to URLs.
    Signature(String),
}

pub struct Azure {
    place: String,
    account: String,
    /// Of the container, without a slash at its end.
    container: Url,
    /// Before each name; empty or ending with `/`.
    prefix: String,
    login: Login,
    http: Http,
}

impl std::fmt::Debug for Azure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.place)
    }
}

impl Azure {
    /// Keys are those of the password file, else of the environment.
    pub fn new(place: Place<'_>) -> Result<Self> {
        let mut container = endpoint(&place)?;
        let host = container.host_str().unwrap_or_default().to_owned();
        let mut parts = place.parts.iter();
        let account = if host == "localhost" || address(&host).is_some() {
            parts.next().cloned()
        } else {
            host.split('.').next().map(str::to_owned)
        };
        let (Some(account), Some(name)) = (account, parts.next()) else {
            return Err(place
                .malformed("it has no container")
                .hint("restic+azure://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX]"));
        };
        let path = if host.starts_with(&format!("{account}.")) { name.clone() } else { format!("{account}/{name}") };
        container.set_path(&path);
        let login = match (place.given("AZURE_ACCOUNT_SAS"), place.given("AZURE_ACCOUNT_KEY")) {
            (Some(signature), _) => Login::Signature(signature.trim_start_matches('?').to_owned()),
            (None, Some(key)) => Login::Key(
                STANDARD
                    .decode(key)
                    .map_err(|_| Error::new(Kind::Denied, "AZURE_ACCOUNT_KEY is no key: it is not Base64"))?,
            ),
            (None, None) => {
                return Err(Error::new(Kind::Denied, format!("there is no key for {}", place.text)).hint(
                    "AZURE_ACCOUNT_KEY or AZURE_ACCOUNT_SAS: in the environment, or as a line NAME=VALUE below the \
                     password in its file",
                ));
            }
        };
        let prefix = parts.map(|part| format!("{part}/")).collect();
        Ok(Self { http: Http::new(&container), place: place.text, account, container, prefix, login })
    }

    fn url(&self, name: &str) -> Url {
        let mut url = self.container.clone();
        url.set_path(&format!("{}/{}{name}", self.container.path(), self.prefix));
        url
    }

    /// A request, signed. A range and what is sent are signed as well.
    fn signed<'a>(&self, mut ask: Ask<'a>) -> Ask<'a> {
        ask.headers.push(("x-ms-date", Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()));
        ask.headers.push(("x-ms-version", VERSION.to_owned()));
        if ask.method == Method::PUT {
            ask.headers.push(("x-ms-blob-type", "BlockBlob".to_owned()));
        }
        match &self.login {
            Login::Signature(signature) => {
                let query = ask.url.query().map_or_else(|| signature.clone(), |query| format!("{query}&{signature}"));
                ask.url.set_query(Some(&query));
            }
            Login::Key(key) => {
                let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key may have any length");
                mac.update(self.to_sign(&ask).as_bytes());
                let signature = STANDARD.encode(mac.finalize().into_bytes());
                ask.headers.push(("authorization", format!("SharedKey {}:{signature}", self.account)));
            }
        }
        ask
    }

    fn to_sign(&self, ask: &Ask<'_>) -> String {
        let (length, content) = match ask.parts {
            Some(_) if ask.size() > 0 => (ask.size().to_string(), CONTENT_TYPE),
            Some(_) => (String::new(), CONTENT_TYPE),
            None => (String::new(), ""),
        };
        let mut headers: Vec<_> = ask.headers.iter().filter(|(name, _)| name.starts_with("x-ms-")).collect();
        headers.sort_unstable();
        let headers: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let mut query: Vec<_> = ask.url.query_pairs().collect();
        query.sort_unstable();
        let query: String = query.iter().map(|(name, value)| format!("\n{name}:{value}")).collect();
        // Encoding, language, length, MD5, type, date, four conditions, range.
        format!(
            "{}\n\n\n{length}\n\n{content}\n\n\n\n\n\n{}\n{headers}/{}{}{query}",
            ask.method,
            ask.range().unwrap_or_default(),
            self.account,
            ask.url.path(),
        )
    }

    fn blob<'a>(&self, what: &'a str, method: Method, kind: Area, id: &Id) -> Ask<'a> {
        Ask::new(what, method, self.url(&file_name(kind, id)))
    }

    fn refused(&self, what: &str, answer: &Answer) -> Error {
        let code = code(&answer.body);
        let text = format!("{what}: Azure answers {} {code}", answer.status);
        match (answer.status, code) {
            (404, "ContainerNotFound") => {
                Error::new(Kind::NotFound, format!("there is no container for {}", self.place))
            }
            (404, _) => Error::new(Kind::NotFound, text),
            (409, "BlobArchived") => Error::new(Kind::Unsupported, text).hint("it is archived; rehydrate it first"),
            (409, "BlobImmutableDueToPolicy") => Error::new(Kind::Denied, text).hint("a policy keeps it as it is"),
            (401 | 403, _) => Error::new(Kind::Denied, text)
                .hint("is the key or signature right, may it do this, has it expired, and is the clock right?"),
            (400, "AuthenticationFailed" | "InvalidAuthenticationInfo") => Error::new(Kind::Denied, text),
            (507, _) => Error::new(Kind::NoSpace, text),
            (408 | 409 | 429 | 500.., _) => Error::new(Kind::Unavailable, text),
            _ => Error::new(Kind::Unsupported, text),
        }
    }

    fn size(&self, kind: Area, id: &Id) -> Result<Option<u64>> {
        let what = self.locate(kind, id);
        let answer = self.http.ask(&self.signed(self.blob(&what, Method::HEAD, kind, id)))?;
        match answer.status {
            200 => Ok(Some(answer.length.unwrap_or(u64::MAX))),
            404 => Ok(None),
            _ => Err(self.refused(&what, &answer)),
        }
    }

    /// The blobs whose names begin like this, at most `limit` where there is one: their names and sizes.
    fn list(&self, start: &str, limit: Option<u32>) -> Result<Vec<(String, u64)>> {
        let what = format!("{}/{start}", self.place);
        let mut found = Vec::new();
        let mut marker = String::new();
        loop {
            let mut url = self.container.clone();
            url.query_pairs_mut()
                .extend_pairs([("restype", "container"), ("comp", "list")])
                .append_pair("prefix", &format!("{}{start}", self.prefix));
            if let Some(limit) = limit {
                url.query_pairs_mut().append_pair("maxresults", &limit.to_string());
            }
            if !marker.is_empty() {
                url.query_pairs_mut().append_pair("marker", &marker);
            }
            let answer = self.http.ask(&self.signed(Ask::new(&what, Method::GET, url)))?;
            if answer.status != 200 {
                return Err(self.refused(&what, &answer));
            }
            let next = parse_list(&answer.body, &mut found)
                .ok_or_else(|| Error::new(Kind::Unavailable, format!("{what}: Azure lists it in no known way")))?;
            if next.is_empty() || limit.is_some() {
                return Ok(found);
            }
            if next == marker {
                return Err(Error::new(
                    Kind::Unavailable,
                    format!("{what}: Azure lists the same part again and again"),
                ));
            }
            marker = next;
        }
    }
}

/// Adds the names and sizes of a list, and returns where it goes on; empty at its end.
fn parse_list(body: &[u8], found: &mut Vec<(String, u64)>) -> Option<String> {
    let text = std::str::from_utf8(body).ok()?.trim_start_matches('\u{feff}');
    let mut reader = quick_xml::Reader::from_str(text);
    let (mut path, mut name, mut marker, mut ended) = (Vec::new(), String::new(), String::new(), false);
    loop {
        match reader.read_event().ok()? {
            Event::Start(start) => path.push(start.name().as_ref().to_owned()),
            Event::End(_) => {
                path.pop()?;
                ended = path.is_empty();
            }
            Event::Text(value) => {
                let value = value.to_string();
                match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                    [_, "Blobs", "Blob", "Name"] => name = value,
                    [_, "Blobs", "Blob", "Properties", "Content-Length"] => {
                        found.push((std::mem::take(&mut name), value.parse().ok()?));
                    }
                    [_, "NextMarker"] => marker = value,
                    _ => {}
                }
            }
            Event::Eof => return ended.then_some(marker),
            _ => {}
        }
    }
}

impl Store for Azure {
    fn place(&self) -> &str {
        &self.place
    }

    fn is_empty(&self) -> Result<bool> {
        Ok(self.list("", Some(1))?.is_empty())
    }

    fn create(&self) -> Result<()> {
        Ok(())
    }

    fn files(&self, kind: Area) -> Result<Vec<(Id, u32)>> {
        if kind == Area::Config {
            let size = self.size(kind, &Id::default())?;
            return Ok(size.map(|size| (Id::default(), file_size(size))).into_iter().collect());
        }
        let listed = self.list(&format!("{}/", kind.folder()), None)?;
        let named = |(name, size): (String, u64)| {
            let id = parse_name(name.rsplit_once('/')?.1)?;
            (name == format!("{}{}", self.prefix, file_name(kind, &id))).then(|| (id, file_size(size)))
        };
        Ok(listed.into_iter().filter_map(named).collect())
    }

    fn has(&self, kind: Area, id: &Id) -> Result<bool> {
        Ok(self.size(kind, id)?.is_some())
    }

    fn get(&self, kind: Area, id: &Id) -> Result<Vec<u8>> {
        let what = self.locate(kind, id);
        let ask = self.signed(self.blob(&what, Method::GET, kind, id));
        read(&self.http, self, kind, &ask, |what, answer| self.refused(what, answer))
    }

    fn read_at(&self, kind: Area, id: &Id, offset: u32, length: u32) -> Result<Vec<u8>> {
        if length == 0 {
            return Ok(Vec::new());
        }
        let what = self.locate(kind, id);
        let ask = self.signed(Ask { range: Some((offset, length)), ..self.blob(&what, Method::GET, kind, id) });
        read(&self.http, self, kind, &ask, |what, answer| self.refused(what, answer))
    }

    fn write(&self, kind: Area, id: &Id, parts: &[Bytes]) -> Result<()> {
        let what = self.locate(kind, id);
        let ask = self.signed(Ask { parts: Some(parts), ..self.blob(&what, Method::PUT, kind, id) });
        let answer = self.http.ask(&ask)?;
        if answer.status == 201 { Ok(()) } else { Err(self.refused(&what, &answer)) }
    }

    fn remove(&self, kind: Area, id: &Id) -> Result<()> {
        let what = self.locate(kind, id);
        let answer = self.http.ask(&self.signed(self.blob(&what, Method::DELETE, kind, id)))?;
        let gone = answer.status == 404 && code(&answer.body) != "ContainerNotFound";
        if answer.status == 202 || gone { Ok(()) } else { Err(self.refused(&what, &answer)) }
    }

    /// A blob is there when it is whole: there is nothing.
    fn remove_stale(&self) -> Result<()> {
        Ok(())
    }
}
