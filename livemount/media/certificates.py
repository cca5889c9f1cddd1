"""Certificates of media agents and their clients, by an environment's own authority, and what is wrong with one.

`FOLDER/ca` has the authority, `FOLDER/servers/NAME` what an agent needs, `FOLDER/clients/NAME` what its clients need,
in the file names that GnuTLS programs look for. All files are of mode 0600.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from livemount.core.errors import CorruptError, DeniedError, LivemountError, UsageError
from livemount.core.secrets import read_secret, write_secret

AUTHORITY_LIFE = timedelta(days=3650)
LIFE = timedelta(days=397)
SKEW = timedelta(hours=1)
"""How much too late other machines' clocks may be."""
RENEWED_AT = 1 / 3
"""The part of its life that is left when a certificate is made anew."""
AUTHORITY = "ca-cert.pem"
USAGES = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?"


@dataclass(frozen=True)
class Issued:
    """A folder with a certificate, its key and the authority's certificate."""

    folder: Path
    expires: datetime
    renewed: bool
    """Whether it was made just now."""


class Authority:
    """The authority in a folder: made when it is not there."""

    def __init__(self, folder: Path) -> None:
        """Raises `DeniedError` for a key that others can read, `CorruptError` for files that are no certificate."""
        self.folder = folder.absolute()
        place = self.folder / "ca"
        self._folder(self.folder)
        with self._alone():
            if not (place / AUTHORITY).exists():
                key, certificate = _make_authority()
                self._folder(place)
                _write_key(place / "ca-key.pem", key)
                _write_certificate(place / AUTHORITY, certificate)
            self._certificate = _read_certificate(place / AUTHORITY)
            self._key = _read_key(place / "ca-key.pem")

    @property
    def expires(self) -> datetime:
        """The end of the authority: then all certificates are made anew."""
        return self._certificate.not_valid_after_utc

    def server(self, name: str, addresses: Sequence[str]) -> Issued:
        """The certificate of an agent that clients reach at these addresses (names or IP addresses)."""
        if not addresses:
            raise UsageError("an agent has an address", hint="name what its clients connect to")
        return self._issue("server", name, sorted(set(addresses)))

    def client(self, name: str) -> Issued:
        """The certificate of a client, for instance of a live-mount host."""
        return self._issue("client", name, [])

    def _issue(self, side: str, name: str, addresses: Sequence[str]) -> Issued:
        if not re.fullmatch(_NAME, name):
            raise UsageError(f"{name!r} cannot name a certificate", hint="letters, digits, dots, hyphens; at most 64")
        names = [_general_name(address) for address in addresses]
        folder = self.folder / f"{side}s" / name
        with self._alone():
            current = self._current(folder, side, names)
            if current is not None:
                return Issued(folder, current.not_valid_after_utc, renewed=False)
            now = datetime.now(UTC)
            key = ec.generate_private_key(ec.SECP256R1())
            made = (
                x509.CertificateBuilder()
                .subject_name(_name(name))
                .issuer_name(self._certificate.subject)
                .public_key(key.public_key())
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - SKEW)
                .not_valid_after(min(now + LIFE, self.expires))
                .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
                .add_extension(x509.ExtendedKeyUsage([USAGES[side]]), critical=False)
            )
            if names:
                made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
            certificate = made.sign(self._key, hashes.SHA256())
            self._folder(folder.parent)
            self._folder(folder)
            _write_certificate(folder / AUTHORITY, self._certificate)
            _write_key(folder / f"{side}-key.pem", key)
            _write_certificate(folder / f"{side}-cert.pem", certificate)
        return Issued(folder, certificate.not_valid_after_utc, renewed=True)

    def _current(self, folder: Path, side: str, names: list[x509.GeneralName]) -> x509.Certificate | None:
        """The certificate in a folder when it is good for a while yet."""
        if fault(folder, side) is not None:
            return None
        certificate = _read_certificate(folder / f"{side}-cert.pem")
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        ours = _read_certificate(folder / AUTHORITY) == self._certificate
        fresh = (end - datetime.now(UTC)) > RENEWED_AT * (end - begin)
        return certificate if ours and fresh and _names(certificate) == names else None

    @staticmethod
    def _folder(folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def fault(folder: Path, side: str) -> str | None:
    """What is the matter with the certificate of the `server` or `client` in a folder; nothing when it is good."""
    certificate_file, key_file = folder / f"{side}-cert.pem", folder / f"{side}-key.pem"
    for file in (folder / AUTHORITY, certificate_file, key_file):
        if not file.is_file():
            return f"there is no {file}: `livemount agent certificates` makes it"
    try:
        certificate, key = _read_certificate(certificate_file), _read_key(key_file)
        authority = _read_certificate(folder / AUTHORITY)
    except LivemountError as error:
        return str(error)
    now = datetime.now(UTC)
    if certificate.not_valid_after_utc < now:
        return f"{certificate_file} expired on {_day(certificate.not_valid_after_utc)}"
    if certificate.not_valid_before_utc > now:
        return f"{certificate_file} is not valid before {_day(certificate.not_valid_before_utc)}: is the clock right?"
    if authority.not_valid_after_utc < now:
        return f"the authority {folder / AUTHORITY} expired on {_day(authority.not_valid_after_utc)}"
    if certificate.public_key() != key.public_key():
        return f"{key_file} is not the key of {certificate_file}"
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return f"{certificate_file} is not by the authority {folder / AUTHORITY}"
    return None


def expiry(folder: Path, side: str) -> datetime:
    """When a certificate ends. Raises `CorruptError`, `DeniedError`."""
    return _read_certificate(folder / f"{side}-cert.pem").not_valid_after_utc


def _make_authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = _name("livemount media agents"), datetime.now(UTC)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return key, made.sign(key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


def _general_name(address: str) -> x509.GeneralName:
    with contextlib.suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(address))
    if not re.fullmatch(r"(?=.{1,253}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*", address):
        raise UsageError(f"{address!r} is no address", hint="a name or an IP address, without a port")
    return x509.DNSName(address)


def _read_certificate(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except OSError as error:
        raise DeniedError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise CorruptError(f"{file} is no certificate") from error


def _read_key(file: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(read_secret(file).encode(), password=None)
    except (ValueError, TypeError) as error:
        raise CorruptError(f"{file} is no private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CorruptError(f"{file} is no key of an elliptic curve")
    return key


def _write_certificate(file: Path, certificate: x509.Certificate) -> None:
    write_secret(file, certificate.public_bytes(serialization.Encoding.PEM).decode())


def _write_key(file: Path, key: ec.EllipticCurvePrivateKey) -> None:
    coded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_secret(file, coded.decode())


def _day(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"
