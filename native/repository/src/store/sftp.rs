//! A repository at a server of SFTP: `restic+sftp://HOST[:PORT]/FOLDER/...`, an absolute path there.
//!
//! Crash contract: a file is written below `tmp/`, flushed where the server can (OpenSSH's can), and renamed. What a killed
//! process leaves in `tmp/` is removed a day later.

mod session;

use std::io;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rand::Rng;
use rustic_core::Id;
use url::Url;

use self::session::{Answer, Ask, Body, Code, Facts, Session};
use super::{Area, Place, Store, absent, cut_short, file_name, file_size, parse_name};
use crate::error::{Error, Kind, Result};

/// Sessions at once: a server may refuse more.
const SESSIONS: usize = 4;
/// What one request reads or writes: what every server takes.
const PIECE: u32 = 32 << 10;
/// Folders that are open at once in a session: OpenSSH allows a hundred.
const FOLDERS: usize = 50;
const STALE: Duration = Duration::from_secs(24 * 3600);
const FLUSH: &str = "fsync@openssh.com";
const REPLACE: &str = "posix-rename@openssh.com";
const FOR_READING: u32 = 1;
/// To write, made now, not there before.
const NEW: u32 = 0x02 | 0x08 | 0x20;

#[derive(Default)]
struct Pool {
    idle: Vec<Session>,
    busy: usize,
}

pub struct Sftp {
    place: String,
    root: String,
    arguments: Vec<String>,
    pool: Mutex<Pool>,
    left: Condvar,
}

impl std::fmt::Debug for Sftp {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.place)
    }
}

/// Why something was not done: the session is lost, or the server said so.
enum Failure {
    Lost(io::Error),
    Told(Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Told(error)
    }
}

type Done<T> = std::result::Result<T, Failure>;

impl Sftp {
    pub fn new(place: &Place<'_>) -> Result<Self> {
        let url =
            Url::parse(&format!("https://{}", place.authority)).map_err(|error| place.malformed(&error.to_string()))?;
        if place.parts.is_empty() {
            return Err(place.malformed("it has no path").hint("restic+sftp://HOST[:PORT]/FOLDER/..."));
        }
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let options = ["BatchMode=yes", "ConnectTimeout=5", "ServerAliveInterval=3", "ServerAliveCountMax=2"];
        let mut arguments = vec!["-T".to_owned()];
        for option in options.into_iter().chain(["ClearAllForwardings=yes", "PermitLocalCommand=no"]) {
            arguments.extend(["-o".to_owned(), option.to_owned()]);
        }
        // Of a port that is not said, the user's configuration of ssh may know.
        arguments.extend(url.port().into_iter().flat_map(|port| ["-p".to_owned(), port.to_string()]));
        let named = [
            ("SFTP_USER", "-o", "User="),
            ("SFTP_IDENTITY", "-o", "IdentityFile="),
            ("SFTP_KNOWN_HOSTS", "-o", "UserKnownHostsFile="),
        ];
        for (name, option, setting) in named {
            if let Some(value) = place.secrets.get(name) {
                if value.contains(['"', '%', '\\']) {
                    return Err(Error::new(Kind::Usage, format!("{name} in the password file is malformed")));
                }
                arguments.extend([option.to_owned(), format!("{setting}\"{value}\"")]);
            }
        }
        if place.secrets.contains_key("SFTP_IDENTITY") {
            arguments.extend(["-o".to_owned(), "IdentitiesOnly=yes".to_owned()]);
        }
        arguments.extend(["-s".to_owned(), "--".to_owned(), host, "sftp".to_owned()]);
        let root = place.parts.iter().map(|part| format!("/{part}")).collect();
        Ok(Self { place: place.text.clone(), root, arguments, pool: Mutex::default(), left: Condvar::new() })
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.root)
    }

    /// Do something in a session. One that was idle may have been lost unnoticed: then it is done again in another.
    fn with<T>(&self, work: impl Fn(&mut Session) -> Done<T>) -> Result<T> {
        loop {
            let (mut session, fresh) = self.session()?;
            let result = work(&mut session);
            let mut pool = self.pool.lock().expect("no thread panics holding it");
            pool.busy -= 1;
            let outcome = match result {
                Ok(value) => {
                    pool.idle.push(session);
                    Some(Ok(value))
                }
                Err(Failure::Told(error)) => {
                    pool.idle.push(session);
                    Some(Err(error))
                }
                Err(Failure::Lost(error)) => {
                    // What was lost for one is lost for all.
                    let others = std::mem::take(&mut pool.idle);
                    drop(pool);
                    drop(others);
                    let silent = error.kind() == io::ErrorKind::TimedOut;
                    (fresh || silent).then(|| Err(session.lost(&self.place, &error)))
                }
            };
            self.left.notify_one();
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }

    /// A session, and whether it was made now.
    fn session(&self) -> Result<(Session, bool)> {
        let pool = self.pool.lock().expect("no thread panics holding it");
        let mut pool = self.left.wait_while(pool, |pool| pool.busy >= SESSIONS).expect("no thread panics holding it");
        pool.busy += 1;
        if let Some(session) = pool.idle.pop() {
            return Ok((session, false));
        }
        drop(pool);
        Session::start(&self.place, &self.arguments).map(|session| (session, true)).inspect_err(|_| {
            self.pool.lock().expect("no thread panics holding it").busy -= 1;
            self.left.notify_one();
        })
    }

    fn told(&self, what: &str, code: &Code) -> Error {
        match code {
            Code::Missing => Error::new(Kind::NotFound, format!("{what} is not there")),
            Code::Denied => Error::new(Kind::Denied, format!("{what}: the server does not allow it")),
            Code::Other(reason) => Error::new(Kind::Unavailable, format!("{what}: the server says {reason:?}")),
            Code::Done | Code::End => Error::new(Kind::Unavailable, format!("{what}: the server answers otherwise")),
        }
    }

    /// What an answer should not have been.
    fn other(&self, what: &str, answer: &Answer) -> Failure {
        let code = if let Answer::Status(code) = answer { code } else { &Code::Done };
        Failure::Told(self.told(what, code))
    }

    fn done(&self, what: &str, answer: Answer) -> Done<()> {
        if matches!(answer, Answer::Status(Code::Done)) { Ok(()) } else { Err(self.other(what, &answer)) }
    }

    fn open(&self, session: &mut Session, path: &str, flags: u32, what: &str) -> Done<Vec<u8>> {
        // No attributes but, of new files, the mode.
        let body = Body::default().text(path.as_bytes()).number(flags);
        let body = if flags == NEW { body.number(4).number(0o600) } else { body.number(0) };
        match session.ask(Ask::Open, body)? {
            Answer::Handle(handle) => Ok(handle),
            answer => Err(self.other(what, &answer)),
        }
    }

    fn facts(&self, session: &mut Session, path: &str, what: &str) -> Done<Option<Facts>> {
        match session.ask(Ask::Stat, Body::default().text(path.as_bytes()))? {
            Answer::Facts(facts) => Ok(Some(facts)),
            Answer::Status(Code::Missing) => Ok(None),
            answer => Err(self.other(what, &answer)),
        }
    }

    /// A range of an open file, as much of it as there is; the file is closed.
    fn read(&self, session: &mut Session, handle: &[u8], offset: u64, length: u32, what: &str) -> Done<Vec<u8>> {
        let mut data = Vec::with_capacity(length as usize);
        while data.len() < length as usize {
            let begin = data.len();
            let left = length - begin as u32;
            let requests = (0..left.div_ceil(PIECE))
                .map(|number| {
                    let at = offset + begin as u64 + u64::from(number * PIECE);
                    let body = Body::default().text(handle).long(at).number(PIECE.min(left - number * PIECE));
                    (Ask::Read, body)
                })
                .collect();
            for (number, answer) in (0..).zip(session.ask_all(requests)?) {
                match answer {
                    // After a short one the rest is asked for again.
                    Answer::Data(piece) if data.len() == begin + (number * PIECE) as usize => {
                        if piece.len() > PIECE.min(left - number * PIECE) as usize {
                            return Err(self.other(what, &Answer::Data(piece)));
                        }
                        data.extend(piece);
                    }
                    Answer::Data(_) | Answer::Status(Code::End) => {}
                    answer => return Err(self.other(what, &answer)),
                }
            }
            if data.len() == begin {
                break;
            }
        }
        session.ask(Ask::Close, Body::default().text(handle))?;
        Ok(data)
    }

    /// What is in folders; one that is not there has nothing in it.
    fn list(&self, session: &mut Session, folders: &[String], what: &str) -> Done<Vec<(Vec<u8>, Facts)>> {
        let mut found = Vec::new();
        for some in folders.chunks(FOLDERS) {
            let requests = some.iter().map(|path| (Ask::OpenFolder, Body::default().text(path.as_bytes()))).collect();
            let mut open = Vec::new();
            for answer in session.ask_all(requests)? {
                match answer {
                    Answer::Handle(handle) => open.push(handle),
                    Answer::Status(Code::Missing) => {}
                    answer => return Err(self.other(what, &answer)),
                }
            }
            let handles = open.clone();
            while !open.is_empty() {
                let requests = open.iter().map(|handle| (Ask::ReadFolder, Body::default().text(handle))).collect();
                let mut more = Vec::new();
                for (handle, answer) in open.into_iter().zip(session.ask_all(requests)?) {
                    match answer {
                        Answer::Names(names) => {
                            found.extend(names.into_iter().filter(|(name, _)| name != b"." && name != b".."));
                            more.push(handle);
                        }
                        Answer::Status(Code::End) => {}
                        answer => return Err(self.other(what, &answer)),
                    }
                }
                open = more;
            }
            let close = handles.iter().map(|handle| (Ask::Close, Body::default().text(handle))).collect();
            session.ask_all(close)?;
        }
        Ok(found)
    }

    fn rename(&self, session: &mut Session, from: &str, to: &str) -> Done<Answer> {
        let names = |body: Body| body.text(from.as_bytes()).text(to.as_bytes());
        if session.can(REPLACE) {
            return Ok(session.ask(Ask::Extended, names(Body::default().text(REPLACE.as_bytes())))?);
        }
        session.ask(Ask::Remove, Body::default().text(to.as_bytes()))?;
        Ok(session.ask(Ask::Rename, names(Body::default()))?)
    }

    /// Make folders, of which some may be there.
    fn make_folders(&self, session: &mut Session, paths: impl Iterator<Item = String>) -> Done<()> {
        let requests =
            paths.map(|path| (Ask::MakeFolder, Body::default().text(path.as_bytes()).number(4).number(0o700)));
        session.ask_all(requests.collect())?;
        Ok(())
    }
}

impl Store for Sftp {
    fn place(&self) -> &str {
        &self.place
    }

    fn is_empty(&self) -> Result<bool> {
        Ok(self.with(|session| self.list(session, std::slice::from_ref(&self.root), &self.place))?.is_empty())
    }

    fn create(&self) -> Result<()> {
        let above =
            (1..self.root.len()).filter(|at| self.root.as_bytes()[*at] == b'/').map(|at| self.root[..at].to_owned());
        let names = ["", "data", "index", "keys", "locks", "snapshots", "tmp", "livemount", "livemount/locks"];
        let packs = (0..=255_u8).map(|number| format!("data/{number:02x}"));
        self.with(|session| {
            let folders = names.iter().map(|name| self.path(name).trim_end_matches('/').to_owned());
            for path in above.clone().chain(folders) {
                self.make_folders(session, std::iter::once(path))?;
            }
            self.make_folders(session, packs.clone().map(|name| self.path(&name)))?;
            // Why one could not be made is not told, but that it is not there is.
            match self.facts(session, &self.path("data/ff"), &self.place)? {
                Some(_) => Ok(()),
                None => Err(Error::new(Kind::Denied, format!("the folders of {} cannot be made", self.place)).into()),
            }
        })
    }

    fn files(&self, kind: Area) -> Result<Vec<(Id, u32)>> {
        let what = format!("{}/{}", self.place, kind.folder());
        if kind == Area::Config {
            let facts = self.with(|session| self.facts(session, &self.path("config"), &what))?;
            return Ok(facts.map(|facts| (Id::default(), file_size(facts.size))).into_iter().collect());
        }
        let folders: Vec<_> = if kind == Area::Pack {
            (0..=255_u8).map(|number| self.path(&format!("data/{number:02x}"))).collect()
        } else {
            vec![self.path(kind.folder())]
        };
        let found = self.with(|session| self.list(session, &folders, &what))?;
        if found.is_empty() && !self.has(Area::Config, &Id::default())? {
            return Err(absent(self, &what));
        }
        let named = |(name, facts): (Vec<u8>, Facts)| {
            Some((std::str::from_utf8(&name).ok().and_then(parse_name)?, file_size(facts.size)))
        };
        Ok(found.into_iter().filter_map(named).collect())
    }

    fn has(&self, kind: Area, id: &Id) -> Result<bool> {
        let what = self.locate(kind, id);
        Ok(self.with(|session| self.facts(session, &self.path(&file_name(kind, id)), &what))?.is_some())
    }

    fn get(&self, kind: Area, id: &Id) -> Result<Vec<u8>> {
        let what = self.locate(kind, id);
        let path = self.path(&file_name(kind, id));
        let data = self.with(|session| {
            let Some(facts) = self.facts(session, &path, &what)? else { return Ok(None) };
            let handle = self.open(session, &path, FOR_READING, &what)?;
            Ok(Some(self.read(session, &handle, 0, file_size(facts.size), &what)?))
        })?;
        data.ok_or_else(|| absent(self, &what))
    }

    fn read_at(&self, kind: Area, id: &Id, offset: u32, length: u32) -> Result<Vec<u8>> {
        let what = self.locate(kind, id);
        let path = self.path(&file_name(kind, id));
        let data = self.with(|session| {
            let handle = self.open(session, &path, FOR_READING, &what)?;
            self.read(session, &handle, offset.into(), length, &what)
        });
        match data {
            Ok(data) if data.len() == length as usize => Ok(data),
            Ok(_) => Err(cut_short(kind, &what, offset, length)),
            Err(error) if error.kind == Kind::NotFound => Err(absent(self, &what)),
            Err(error) => Err(error),
        }
    }

    fn write(&self, kind: Area, id: &Id, parts: &[Bytes]) -> Result<()> {
        let what = self.locate(kind, id);
        let name = file_name(kind, id);
        let path = self.path(&name);
        self.with(|session| {
            let unfinished = self.path(&format!("tmp/{}-{:016x}", &*id.to_hex(), rand::rng().next_u64()));
            self.make_folders(session, std::iter::once(self.path("tmp")))?;
            let handle = self.open(session, &unfinished, NEW, &what)?;
            let mut offset = 0;
            let mut requests = Vec::new();
            for piece in parts.iter().flat_map(|part| part.chunks(PIECE as usize)) {
                requests.push((Ask::Write, Body::default().text(&handle).long(offset).text(piece)));
                offset += piece.len() as u64;
            }
            if session.can(FLUSH) {
                // Requests for one file are answered in order.
                let flush = Body::default().text(FLUSH.as_bytes()).text(&handle);
                requests.push((Ask::Extended, flush));
            }
            requests.push((Ask::Close, Body::default().text(&handle)));
            let mut written = Ok(());
            for answer in session.ask_all(requests)? {
                written = written.and_then(|()| self.done(&what, answer));
            }
            let mut renamed = written;
            if renamed.is_ok() {
                let mut answer = self.rename(session, &unfinished, &path)?;
                if !matches!(answer, Answer::Status(Code::Done)) {
                    // restic makes folders of packs, we that of notes, as they are needed.
                    let above: Vec<_> = name.match_indices('/').map(|(at, _)| self.path(&name[..at])).collect();
                    for folder in above {
                        self.make_folders(session, std::iter::once(folder))?;
                    }
                    answer = self.rename(session, &unfinished, &path)?;
                }
                renamed = self.done(&what, answer);
            }
            if renamed.is_err() {
                session.ask(Ask::Remove, Body::default().text(unfinished.as_bytes()))?;
            }
            renamed
        })
    }

    fn remove(&self, kind: Area, id: &Id) -> Result<()> {
        let what = self.locate(kind, id);
        self.with(|session| {
            let path = self.path(&file_name(kind, id));
            match session.ask(Ask::Remove, Body::default().text(path.as_bytes()))? {
                Answer::Status(Code::Done | Code::Missing) => Ok(()),
                answer => Err(self.other(&what, &answer)),
            }
        })
    }

    fn remove_stale(&self) -> Result<()> {
        let folder = self.path("tmp");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.with(|session| {
            for (name, facts) in self.list(session, std::slice::from_ref(&folder), &folder)? {
                if now.saturating_sub(Duration::from_secs(facts.changed.into())) > STALE {
                    let path = [folder.as_bytes(), b"/", &name].concat();
                    session.ask(Ask::Remove, Body::default().text(&path))?;
                }
            }
            Ok(())
        })
    }
}
