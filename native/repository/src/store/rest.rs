//! A repository at restic's rest-server: `restic+rest://HOST[:PORT]/PATH`.
//!
//! The server knows repositories alone, not folders in them: what is ours is in one beside, or below, the repository's.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use rustic_core::Id;
use serde::Deserialize;
use ureq::http::Method;
use url::Url;

use super::http::{Answer, Ask, Http, endpoint, read};
use super::{Area, Place, Store, file_size, parse_name};
use crate::error::{Error, Kind, Result};

const LIST: &str = "application/vnd.x.restic.rest.v2";
/// Folders that the server takes in the path of a repository.
const DEPTH: usize = 2;

#[derive(Debug)]
pub struct Rest {
    place: String,
    base: Url,
    /// Where notes are.
    beside: Url,
    login: Option<String>,
    http: Http,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    size: u64,
}

impl Rest {
    pub fn new(place: &Place<'_>) -> Result<Self> {
        let endpoint = endpoint(place)?;
        if place.parts.len() > DEPTH {
            return Err(place.malformed("a rest-server has repositories in two folders at most"));
        }
        let join = |path: String| endpoint.join(&path).map_err(|error| place.malformed(&error.to_string()));
        let path: String = place.parts.iter().map(|part| format!("/{part}")).collect();
        let below = if place.parts.len() < DEPTH { "/livemount/" } else { ".livemount/" };
        let (base, beside) = (join(format!("{path}/"))?, join(format!("{path}{below}"))?);
        let login = match (place.given("RESTIC_REST_USERNAME"), place.given("RESTIC_REST_PASSWORD")) {
            (Some(user), Some(password)) => Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))),
            (None, None) => None,
            _ => {
                return Err(Error::new(Kind::Denied, format!("half of the login of {} is missing", place.text))
                    .hint("RESTIC_REST_USERNAME and RESTIC_REST_PASSWORD go together"));
            }
        };
        Ok(Self { place: place.text.clone(), http: Http::new(&endpoint), base, beside, login })
    }

    fn url(&self, kind: Area, name: &str) -> Result<Url> {
        let (base, path) = match kind {
            Area::Config => (&self.base, "config".to_owned()),
            Area::Note => (&self.beside, format!("locks/{name}")),
            _ => (&self.base, format!("{}/{name}", kind.folder())),
        };
        base.join(&path).map_err(|error| Error::new(Kind::Internal, error.to_string()))
    }

    fn to<'a>(&self, what: &'a str, method: Method, url: Url) -> Ask<'a> {
        let mut ask = Ask::new(what, method, url);
        ask.headers.push(("accept", LIST.to_owned()));
        ask.headers.extend(self.login.iter().map(|login| ("authorization", login.clone())));
        ask
    }

    fn file<'a>(&self, what: &'a str, method: Method, kind: Area, id: &Id) -> Result<Ask<'a>> {
        Ok(self.to(what, method, self.url(kind, &id.to_hex())?))
    }

    fn size(&self, kind: Area, id: &Id) -> Result<Option<u64>> {
        let what = self.locate(kind, id);
        let answer = self.http.ask(&self.file(&what, Method::HEAD, kind, id)?)?;
        match answer.status {
            200 => Ok(Some(answer.length.unwrap_or(u64::MAX))),
            404 => Ok(None),
            _ => Err(refused(&what, &answer)),
        }
    }
}

/// The error that an answer means, for one that is not as it should be.
fn refused(what: &str, answer: &Answer) -> Error {
    let text = format!("{what}: the rest-server answers {}", answer.status);
    match answer.status {
        401 => Error::new(Kind::Denied, text)
            .hint("RESTIC_REST_USERNAME and RESTIC_REST_PASSWORD, as lines NAME=VALUE below the password in its file"),
        403 => Error::new(Kind::Denied, text).hint("the server lets nothing be removed or replaced (append-only)"),
        404 | 410 => Error::new(Kind::NotFound, text),
        413 | 507 => Error::new(Kind::NoSpace, text),
        408 | 429 | 500.. => Error::new(Kind::Unavailable, text),
        _ => Error::new(Kind::Unsupported, text),
    }
}

impl Store for Rest {
    fn place(&self) -> &str {
        &self.place
    }

    fn is_empty(&self) -> Result<bool> {
        if self.has(Area::Config, &Id::default())? {
            return Ok(false);
        }
        let what = format!("{}/keys", self.place);
        let answer = self.http.ask(&self.to(&what, Method::GET, self.url(Area::Key, "")?))?;
        match answer.status {
            404 => Ok(true),
            200 => Ok(listed(&what, &answer)?.is_empty()),
            _ => Err(refused(&what, &answer)),
        }
    }

    fn create(&self) -> Result<()> {
        let mut url = self.base.clone();
        url.set_query(Some("create=true"));
        let answer = self.http.ask(&self.to(&self.place, Method::POST, url))?;
        if answer.status == 200 { Ok(()) } else { Err(refused(&self.place, &answer)) }
    }

    fn files(&self, kind: Area) -> Result<Vec<(Id, u32)>> {
        if kind == Area::Config {
            let size = self.size(kind, &Id::default())?;
            return Ok(size.map(|size| (Id::default(), file_size(size))).into_iter().collect());
        }
        let what = format!("{}/{}", self.place, kind.folder());
        let ask = self.to(&what, Method::GET, self.url(kind, "")?);
        let answer = self.http.ask(&ask)?;
        if kind == Area::Note && answer.status == 404 {
            return Ok(Vec::new());
        }
        if answer.status != 200 {
            return read(&self.http, self, kind, &ask, refused).map(|_| Vec::new());
        }
        let listed = listed(&what, &answer)?;
        Ok(listed.into_iter().filter_map(|each| Some((parse_name(&each.name)?, file_size(each.size)))).collect())
    }

    fn has(&self, kind: Area, id: &Id) -> Result<bool> {
        Ok(self.size(kind, id)?.is_some())
    }

    fn get(&self, kind: Area, id: &Id) -> Result<Vec<u8>> {
        let what = self.locate(kind, id);
        read(&self.http, self, kind, &self.file(&what, Method::GET, kind, id)?, refused)
    }

    fn read_at(&self, kind: Area, id: &Id, offset: u32, length: u32) -> Result<Vec<u8>> {
        if length == 0 {
            return Ok(Vec::new());
        }
        let what = self.locate(kind, id);
        let ask = Ask { range: Some((offset, length)), ..self.file(&what, Method::GET, kind, id)? };
        read(&self.http, self, kind, &ask, refused)
    }

    fn write(&self, kind: Area, id: &Id, parts: &[Bytes]) -> Result<()> {
        let what = self.locate(kind, id);
        let ask = Ask { parts: Some(parts), ..self.file(&what, Method::POST, kind, id)? };
        let answer = self.http.ask(&ask)?;
        // It replaces nothing: of a request that was made again, the first one may have come to its end.
        let there = answer.status == 403 && self.size(kind, id)? == Some(ask.size() as u64);
        if answer.status == 200 || there { Ok(()) } else { Err(refused(&what, &answer)) }
    }

    fn remove(&self, kind: Area, id: &Id) -> Result<()> {
        let what = self.locate(kind, id);
        let answer = self.http.ask(&self.file(&what, Method::DELETE, kind, id)?)?;
        if matches!(answer.status, 200 | 204 | 404) { Ok(()) } else { Err(refused(&what, &answer)) }
    }

    /// The server removes what it was not sent to the end.
    fn remove_stale(&self) -> Result<()> {
        Ok(())
    }
}

fn listed(what: &str, answer: &Answer) -> Result<Vec<Listed>> {
    serde_json::from_slice(&answer.body)
        .map_err(|_| Error::new(Kind::Unsupported, format!("{what}: the server lists it in no known way")))
}
