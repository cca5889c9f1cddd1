//! A session of SFTP, version 3, by the system's `ssh`: its settings, agent and known hosts are the user's.
//!
//! Requests are sent before the answers to earlier ones are there. A session of which something was lost is not used again.
//! `ssh` ends with its standard input, so also when this process is killed.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, Kind};

/// Without a byte from the server; a flush of a whole pack is among what it is waited for.
const SILENCE: Duration = Duration::from_secs(9);
/// Requests on their way: their answers fit in a pipe.
const WINDOW: usize = 64;
const LONGEST_ANSWER: usize = 1 << 20;
const VERSION: u32 = 3;

/// The types of requests.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum Ask {
    Open = 3,
    Close = 4,
    Read = 5,
    Write = 6,
    OpenFolder = 11,
    ReadFolder = 12,
    Remove = 13,
    MakeFolder = 14,
    Stat = 17,
    Rename = 18,
    Extended = 200,
}

/// What is known of a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    pub size: u64,
    /// Seconds since 1970.
    pub changed: u32,
}

#[derive(Debug)]
pub enum Answer {
    /// Done, or why not.
    Status(Code),
    Handle(Vec<u8>),
    Data(Vec<u8>),
    Names(Vec<(Vec<u8>, Facts)>),
    Facts(Facts),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Code {
    Done,
    End,
    Missing,
    Denied,
    Other(String),
}

pub struct Session {
    process: Child,
    input: ChildStdin,
    output: ChildStdout,
    said: ChildStderr,
    next: u32,
    extensions: Vec<Vec<u8>>,
}

/// A body of a request.
#[derive(Clone, Default)]
pub struct Body(Vec<u8>);

impl Body {
    pub fn text(mut self, text: &[u8]) -> Self {
        self.0.extend(u32::try_from(text.len()).expect("texts are short").to_be_bytes());
        self.0.extend(text);
        self
    }

    pub fn number(mut self, number: u32) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    pub fn long(mut self, number: u64) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }
}

impl Session {
    /// Start `ssh` with these arguments, and greet the server.
    pub fn start(place: &str, arguments: &[String]) -> Result<Self, Error> {
        let mut process = Command::new("ssh")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| {
                Error::new(Kind::Unsupported, format!("ssh cannot be started for {place}: {error}"))
                    .hint("it is Debian's openssh-client")
            })?;
        let (Some(input), Some(output), Some(said)) =
            (process.stdin.take(), process.stdout.take(), process.stderr.take())
        else {
            return Err(Error::new(Kind::Internal, "ssh has no pipes"));
        };
        let mut session = Self { process, input, output, said, next: 0, extensions: Vec::new() };
        session.greet().map_err(|error| session.lost(place, &error))?;
        Ok(session)
    }

    fn greet(&mut self) -> io::Result<()> {
        for descriptor in [self.input.as_fd(), self.output.as_fd(), self.said.as_fd()] {
            fcntl(descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let mut hello = vec![0, 0, 0, 5, 1];
        hello.extend(VERSION.to_be_bytes());
        self.send(&hello)?;
        let answer = self.receive()?;
        let mut fields = Fields(&answer);
        if fields.byte()? != 2 || fields.number()? != VERSION {
            return Err(malformed());
        }
        while !fields.0.is_empty() {
            self.extensions.push(fields.text()?.to_vec());
            fields.text()?;
        }
        Ok(())
    }

    /// Whether the server can do this besides the protocol.
    pub fn can(&self, extension: &str) -> bool {
        self.extensions.iter().any(|known| known == extension.as_bytes())
    }

    /// One request and its answer.
    pub fn ask(&mut self, ask: Ask, body: Body) -> io::Result<Answer> {
        let mut answers = self.ask_all(vec![(ask, body)])?;
        answers.pop().ok_or_else(malformed)
    }

    /// Requests that do not depend on each other, and their answers in the same order.
    pub fn ask_all(&mut self, requests: Vec<(Ask, Body)>) -> io::Result<Vec<Answer>> {
        let mut places = HashMap::new();
        let mut answers: Vec<Option<Answer>> = Vec::new();
        answers.resize_with(requests.len(), || None);
        for (place, (ask, body)) in requests.into_iter().enumerate() {
            if places.len() == WINDOW {
                self.place_answer(&mut places, &mut answers)?;
            }
            let id = self.next;
            self.next = self.next.wrapping_add(1);
            let length = u32::try_from(5 + body.0.len()).map_err(|_| malformed())?;
            let mut packet = Vec::with_capacity(9 + body.0.len());
            packet.extend(length.to_be_bytes());
            packet.push(ask as u8);
            packet.extend(id.to_be_bytes());
            packet.extend(&body.0);
            self.send(&packet)?;
            places.insert(id, place);
        }
        while !places.is_empty() {
            self.place_answer(&mut places, &mut answers)?;
        }
        answers.into_iter().map(|answer| answer.ok_or_else(malformed)).collect()
    }

    fn place_answer(&mut self, places: &mut HashMap<u32, usize>, answers: &mut [Option<Answer>]) -> io::Result<()> {
        let packet = self.receive()?;
        let (id, answer) = parse(&packet)?;
        let place = places.remove(&id).ok_or_else(malformed)?;
        answers[place] = Some(answer);
        Ok(())
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        let mut rest = packet;
        while !rest.is_empty() {
            match self.input.write(rest) {
                Ok(0) => return Err(io::ErrorKind::BrokenPipe.into()),
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(self.input.as_fd(), PollFlags::POLLOUT)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        let mut length = [0; 4];
        self.fill(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if !(5..=LONGEST_ANSWER).contains(&length) {
            return Err(malformed());
        }
        let mut packet = vec![0; length];
        self.fill(&mut packet)?;
        Ok(packet)
    }

    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.output.read(&mut buffer[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(self.output.as_fd(), PollFlags::POLLIN)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What became of the session, as `ssh` tells it.
    pub fn lost(&mut self, place: &str, error: &io::Error) -> Error {
        // It ends by itself when its server has; what it has to say comes last.
        if error.kind() != io::ErrorKind::TimedOut {
            let deadline = Instant::now() + Duration::from_secs(2);
            while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let mut said = [0; 4096];
        let count = self.said.read(&mut said).unwrap_or(0);
        let said = String::from_utf8_lossy(&said[..count]).into_owned();
        let line = said.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
        let reason = if line.is_empty() { error.to_string() } else { line.to_owned() };
        if said.contains("Host key verification failed") || said.contains("REMOTE HOST IDENTIFICATION") {
            return Error::new(Kind::Denied, format!("the server of {place} is not the known one: {reason}"))
                .hint("`ssh-keyscan` shows its key; SFTP_KNOWN_HOSTS in the password file names a file of known ones");
        }
        if said.contains("Permission denied") || said.contains("Too many authentication failures") {
            return Error::new(Kind::Denied, format!("{place} lets nobody in: {reason}"))
                .hint("SFTP_USER and SFTP_IDENTITY in the password file name the user and the file of the key");
        }
        Error::new(Kind::Unavailable, format!("{place} cannot be reached: {reason}"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended; whether it has does not matter.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn wait(descriptor: BorrowedFd<'_>, what: PollFlags) -> io::Result<()> {
    let timeout = PollTimeout::try_from(SILENCE).map_err(|_| malformed())?;
    loop {
        match poll(&mut [PollFd::new(descriptor, what)], timeout) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the server says nothing")),
            Ok(_) => return Ok(()),
            Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the server does not speak SFTP as it should")
}

fn parse(packet: &[u8]) -> io::Result<(u32, Answer)> {
    let mut fields = Fields(packet);
    let kind = fields.byte()?;
    let id = fields.number()?;
    let answer = match kind {
        101 => {
            let code = fields.number()?;
            Answer::Status(match code {
                0 => Code::Done,
                1 => Code::End,
                2 => Code::Missing,
                3 => Code::Denied,
                _ => Code::Other(String::from_utf8_lossy(fields.text().unwrap_or_default()).into_owned()),
            })
        }
        102 => Answer::Handle(fields.text()?.to_vec()),
        103 => Answer::Data(fields.text()?.to_vec()),
        104 => {
            let mut names = Vec::new();
            for _ in 0..fields.number()? {
                let name = fields.text()?.to_vec();
                fields.text()?;
                names.push((name, fields.facts()?));
            }
            Answer::Names(names)
        }
        105 => Answer::Facts(fields.facts()?),
        _ => return Err(malformed()),
    };
    Ok((id, answer))
}

/// What is left of a packet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> io::Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn number(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into().expect("4 bytes")))
    }

    fn long(&mut self) -> io::Result<u64> {
        Ok(u64::from_be_bytes(self.take(8)?.try_into().expect("8 bytes")))
    }

    fn text(&mut self) -> io::Result<&'a [u8]> {
        let length = self.number()? as usize;
        self.take(length)
    }

    fn facts(&mut self) -> io::Result<Facts> {
        let flags = self.number()?;
        let mut facts = Facts::default();
        if flags & 1 != 0 {
            facts.size = self.long()?;
        }
        if flags & 2 != 0 {
            self.take(8)?;
        }
        if flags & 4 != 0 {
            self.take(4)?;
        }
        if flags & 8 != 0 {
            self.take(4)?;
            facts.changed = self.number()?;
        }
        if flags & 0x8000_0000 != 0 {
            for _ in 0..self.number()? {
                self.text()?;
                self.text()?;
            }
        }
        Ok(facts)
    }
}
