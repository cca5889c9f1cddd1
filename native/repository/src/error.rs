//! What can go wrong, in the words of `livemount.core.errors`.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use pyo3::PyErr;
use pyo3::import_exception;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use rustic_core::RusticError;

import_exception!(livemount.core.errors, LivemountError);
import_exception!(livemount.core.errors, ConflictError);
import_exception!(livemount.core.errors, CorruptError);
import_exception!(livemount.core.errors, DeniedError);
import_exception!(livemount.core.errors, NoSpaceError);
import_exception!(livemount.core.errors, NotFoundError);
import_exception!(livemount.core.errors, UnavailableError);
import_exception!(livemount.core.errors, UnsupportedError);
import_exception!(livemount.core.errors, UsageError);

/// Which Python exception an error becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Conflict,
    Corrupt,
    Denied,
    Internal,
    NoSpace,
    NotFound,
    Unavailable,
    Unsupported,
    Usage,
}

/// One message that names the thing and the reason, and optionally the way out.
#[derive(Clone, Debug)]
pub struct Error {
    pub kind: Kind,
    pub message: String,
    pub hint: Option<String>,
}

pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, message)
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An error of the operating system; `what` is the sentence before the reason.
    pub fn io(what: &str, error: &io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => Kind::NotFound,
            io::ErrorKind::PermissionDenied => Kind::Denied,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Kind::NoSpace,
            _ => Kind::Unavailable,
        };
        Self::new(kind, format!("{what}: {error}"))
    }

    /// An error of `rustic_core`: our store's own error when one is the cause, else something that cannot be parsed.
    pub fn rustic(what: &str, error: &RusticError) -> Self {
        let mut cause: Option<&(dyn StdError + 'static)> = error.source();
        while let Some(inner) = cause {
            if let Some(own) = inner.downcast_ref::<Self>() {
                return own.clone();
            }
            if let Some(boxed) = inner.downcast_ref::<Box<RusticError>>() {
                return Self::rustic(what, boxed);
            }
            cause = inner.source();
        }
        Self::corrupt(format!("{what}: {}", error.display_log()))
    }

    /// A thread of ours panicked: a bug, contained to the one request.
    pub fn panicked(payload: &(dyn std::any::Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        Self::new(Kind::Internal, format!("internal error in the repository code: {text}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl StdError for Error {}

/// What Python raised while it was called from here: a `LivemountError` stays what it is.
impl From<PyErr> for Error {
    fn from(error: PyErr) -> Self {
        Python::attach(|py| {
            let value = error.value(py);
            let text = |name: &str| value.getattr(name).ok()?.extract::<String>().ok();
            let kind = match value.getattr("exit_code").ok().and_then(|code| code.extract::<i32>().ok()) {
                Some(2) => Kind::Usage,
                Some(3) => Kind::NotFound,
                Some(4) => Kind::Conflict,
                Some(5) => Kind::Unavailable,
                Some(6) => Kind::NoSpace,
                Some(7) => Kind::Denied,
                Some(8) => Kind::Unsupported,
                Some(9) => Kind::Corrupt,
                _ => Kind::Internal,
            };
            Self { kind, message: text("message").unwrap_or_else(|| error.to_string()), hint: text("hint") }
        })
    }
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        Python::attach(|py| {
            let class = match error.kind {
                Kind::Conflict => py.get_type::<ConflictError>(),
                Kind::Corrupt => py.get_type::<CorruptError>(),
                Kind::Denied => py.get_type::<DeniedError>(),
                Kind::Internal => py.get_type::<LivemountError>(),
                Kind::NoSpace => py.get_type::<NoSpaceError>(),
                Kind::NotFound => py.get_type::<NotFoundError>(),
                Kind::Unavailable => py.get_type::<UnavailableError>(),
                Kind::Unsupported => py.get_type::<UnsupportedError>(),
                Kind::Usage => py.get_type::<UsageError>(),
            };
            let named = PyDict::new(py);
            match named.set_item("hint", error.hint).and_then(|()| class.call((error.message,), Some(&named))) {
                Ok(value) => PyErr::from_value(value),
                Err(other) => other,
            }
        })
    }
}
