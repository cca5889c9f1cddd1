//! A repository in a bucket of S3 or of what speaks like it: `restic+s3://HOST[:PORT]/BUCKET[/PREFIX]`.

use std::time::Duration;

use bytes::Bytes;
use rustic_core::Id;
use rusty_s3::actions::ListObjectsV2;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use ureq::http::Method;

use super::http::{Answer, Ask, Http, code, endpoint, read};
use super::{Area, Place, Store, file_name, file_size, parse_name};
use crate::error::{Error, Kind, Result};

/// For which a signed request holds; it is made at once.
const VALID: Duration = Duration::from_secs(900);
const REGION: &str = "us-east-1";

#[derive(Debug)]
pub struct S3 {
    place: String,
    bucket: Bucket,
    credentials: Credentials,
    /// Before each name; empty or ending with `/`.
    prefix: String,
    http: Http,
}

impl S3 {
    /// Keys are those of the password file, else of the environment.
    pub fn new(place: Place<'_>) -> Result<Self> {
        let Some((name, prefix)) = place.parts.split_first() else {
            return Err(place.malformed("it has no bucket").hint("restic+s3://HOST[:PORT]/BUCKET[/PREFIX]"));
        };
        let endpoint = endpoint(&place)?;
        let region = place.given("AWS_REGION").or_else(|| place.given("AWS_DEFAULT_REGION")).unwrap_or_else(|| {
            let named = place.authority.strip_prefix("s3.").and_then(|rest| rest.strip_suffix(".amazonaws.com"));
            named.unwrap_or(REGION).to_owned()
        });
        // Keys of one place only: an identity of one and a secret of another do not fit.
        let of_file = place.secrets.contains_key("AWS_ACCESS_KEY_ID");
        let key = |name: &str| if of_file { place.secrets.get(name).cloned() } else { place.given(name) };
        let (Some(id), Some(secret)) = (key("AWS_ACCESS_KEY_ID"), key("AWS_SECRET_ACCESS_KEY")) else {
            return Err(Error::new(Kind::Denied, format!("there are no keys for {}", place.text)).hint(
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: in the environment, or as lines NAME=VALUE below the \
                 password in its file",
            ));
        };
        let credentials = match key("AWS_SESSION_TOKEN") {
            Some(token) => Credentials::new_with_token(id, secret, token),
            None => Credentials::new(id, secret),
        };
        let http = Http::new(&endpoint);
        let bucket = Bucket::new(endpoint, UrlStyle::Path, name.clone(), region)
            .map_err(|error| place.malformed(&error.to_string()))?;
        let prefix = prefix.iter().map(|part| format!("{part}/")).collect();
        Ok(Self { place: place.text, bucket, credentials, prefix, http })
    }

    fn key(&self, kind: Area, id: &Id) -> String {
        format!("{}{}", self.prefix, file_name(kind, id))
    }

    /// The error that an answer means, for one that is not as it should be.
    fn refused(&self, what: &str, answer: &Answer) -> Error {
        let code = code(&answer.body);
        let text = format!("{what}: S3 answers {} {code}", answer.status);
        match (answer.status, code) {
            (404, "NoSuchBucket") => {
                Error::new(Kind::NotFound, format!("there is no bucket {} for {}", self.bucket.name(), self.place))
            }
            (404, _) => Error::new(Kind::NotFound, text),
            (403, "InvalidObjectState") => Error::new(Kind::Unsupported, text).hint("it is archived; restore it first"),
            (301 | 307 | 308, _) | (400, "AuthorizationHeaderMalformed" | "AuthorizationQueryParametersError") => {
                Error::new(Kind::Usage, text)
                    .hint(format!("is the bucket in {}? AWS_REGION names another region", self.bucket.region()))
            }
            (401 | 403, _) | (400, "ExpiredToken" | "InvalidToken" | "RequestExpired") => {
                Error::new(Kind::Denied, text).hint("is the key right, may it do this, and is the clock right?")
            }
            (507, _) | (_, "XMinioStorageFull" | "QuotaExceeded") => Error::new(Kind::NoSpace, text),
            (408 | 409 | 429 | 500.., _) => Error::new(Kind::Unavailable, text),
            _ => Error::new(Kind::Unsupported, text),
        }
    }

    /// The size of an object, unless it is not there.
    fn size(&self, kind: Area, id: &Id) -> Result<Option<u64>> {
        let what = self.locate(kind, id);
        let key = self.key(kind, id);
        let url = self.bucket.head_object(Some(&self.credentials), &key).sign(VALID);
        let answer = self.http.ask(&Ask::new(&what, Method::HEAD, url))?;
        match answer.status {
            200 => Ok(Some(answer.length.unwrap_or(u64::MAX))),
            404 => Ok(None),
            _ => Err(self.refused(&what, &answer)),
        }
    }

    /// The objects whose names begin like this, at most `limit` where there is one: their names and sizes.
    fn list(&self, start: &str, limit: Option<usize>) -> Result<Vec<(String, u64)>> {
        let prefix = format!("{}{start}", self.prefix);
        let what = format!("{}/{start}", self.place);
        let mut found = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let mut action = self.bucket.list_objects_v2(Some(&self.credentials));
            action.with_prefix(prefix.as_str());
            if let Some(limit) = limit {
                action.with_max_keys(limit);
            }
            if let Some(token) = &next {
                action.with_continuation_token(token.as_str());
            }
            let answer = self.http.ask(&Ask::new(&what, Method::GET, action.sign(VALID)))?;
            if answer.status != 200 {
                return Err(self.refused(&what, &answer));
            }
            let listed = std::str::from_utf8(&answer.body)
                .ok()
                .and_then(|text| ListObjectsV2::parse_response(text).ok())
                .ok_or_else(|| Error::new(Kind::Unavailable, format!("{what}: S3 lists it in no known way")))?;
            found.extend(listed.contents.into_iter().map(|each| (each.key, each.size.unwrap_or(u64::MAX))));
            let before = next;
            next = listed.next_continuation_token;
            if next.is_none() || limit.is_some() {
                return Ok(found);
            }
            if next == before {
                return Err(Error::new(Kind::Unavailable, format!("{what}: S3 lists the same part again and again")));
            }
        }
    }
}

impl Store for S3 {
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
        let named = |(key, size): (String, u64)| {
            let (_, name) = key.rsplit_once('/')?;
            let id = parse_name(name)?;
            (key == self.key(kind, &id)).then(|| (id, file_size(size)))
        };
        Ok(listed.into_iter().filter_map(named).collect())
    }

    fn has(&self, kind: Area, id: &Id) -> Result<bool> {
        Ok(self.size(kind, id)?.is_some())
    }

    fn get(&self, kind: Area, id: &Id) -> Result<Vec<u8>> {
        let what = self.locate(kind, id);
        let key = self.key(kind, id);
        let url = self.bucket.get_object(Some(&self.credentials), &key).sign(VALID);
        read(&self.http, self, kind, &Ask::new(&what, Method::GET, url), |what, answer| self.refused(what, answer))
    }

    fn read_at(&self, kind: Area, id: &Id, offset: u32, length: u32) -> Result<Vec<u8>> {
        if length == 0 {
            return Ok(Vec::new());
        }
        let what = self.locate(kind, id);
        let key = self.key(kind, id);
        let url = self.bucket.get_object(Some(&self.credentials), &key).sign(VALID);
        let ask = Ask { range: Some((offset, length)), ..Ask::new(&what, Method::GET, url) };
        read(&self.http, self, kind, &ask, |what, answer| self.refused(what, answer))
    }

    fn write(&self, kind: Area, id: &Id, parts: &[Bytes]) -> Result<()> {
        let what = self.locate(kind, id);
        let key = self.key(kind, id);
        let url = self.bucket.put_object(Some(&self.credentials), &key).sign(VALID);
        let answer = self.http.ask(&Ask { parts: Some(parts), ..Ask::new(&what, Method::PUT, url) })?;
        if answer.status == 200 { Ok(()) } else { Err(self.refused(&what, &answer)) }
    }

    fn remove(&self, kind: Area, id: &Id) -> Result<()> {
        let what = self.locate(kind, id);
        let key = self.key(kind, id);
        let url = self.bucket.delete_object(Some(&self.credentials), &key).sign(VALID);
        let answer = self.http.ask(&Ask::new(&what, Method::DELETE, url))?;
        // One that is gone is as wanted; S3 itself says 204 of it.
        if matches!(answer.status, 200 | 204 | 404) { Ok(()) } else { Err(self.refused(&what, &answer)) }
    }

    /// An object is there when it is whole: there is nothing.
    fn remove_stale(&self) -> Result<()> {
        Ok(())
    }
}
