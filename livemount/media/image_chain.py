"""What a disk image is made of: its own file, extents, backing files, each looked at before any other program sees it.

Images come from anywhere, and a format's header can name other files of this machine: whoever made the image would
read them in the guest. So every name in a header is checked here, and the server is then told each file and format;
it follows no name and guesses no format by itself.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from livemount.core.errors import (
    ConflictError,
    CorruptError,
    DeniedError,
    LivemountError,
    UnsupportedError,
    UsageError,
)
from livemount.media.sources.file import read_error

SUFFIXES = {".qcow2": "qcow2", ".vmdk": "vmdk", ".vhd": "vhd", ".vhdx": "vhdx"}
FORMATS = tuple(SUFFIXES.values())
DRIVERS = {"qcow2": "qcow2", "vmdk": "vmdk", "vhd": "vpc", "vhdx": "vhdx", "raw": "raw"}
"""QEMU's names of the formats."""
SECTOR = 512
LONGEST_CHAIN = 64
MAX_DESCRIPTOR = 1 << 20
MAX_NAME = 1023
MAX_HEADER = 64 << 10

QCOW2_BACKING_FORMAT = 0xE2792ACA
QCOW2_EXTERNAL_DATA = 1 << 2
LUKS = 2

VMDK_EXTENT = re.compile(
    r'^\s*(?:RW|RDONLY|NOACCESS)\s+(\d{1,18})\s+([A-Z]+)(?:\s+"([^"\n]*)"(?:\s+(\d{1,18}))?.*)?\s*$', re.MULTILINE
)
VMDK_VALUE = r"^\s*{}\s*=\s*\"?([^\"\n]*?)\"?\s*$"


@dataclass(frozen=True)
class Layer:
    """One image of a chain."""

    file: Path
    """Its real path."""
    format: str
    encrypted: bool = False
    extents: tuple[Path, ...] = ()
    """Further files that hold its data."""
    backing: tuple[str, str] | None = None
    """Name and format of the image below, as the header has them; the format may be empty."""


@dataclass
class Inspector:
    """Follows a chain within the folders where it may lie."""

    folders: Sequence[Path]
    layers: list[Layer] = field(default_factory=list)

    def follow(self, image: Path, format: str) -> list[Layer]:
        """The chain of an image, top first.

        Raises `NotFoundError`, `DeniedError` for a file outside of the folders or a file name that is a protocol,
        `CorruptError` for a header that is none, `UnsupportedError` for what no source can be made of.
        """
        while True:
            layer = look(self.file(image, image.parent, "the image"), format, self)
            if any(layer.file == other.file for other in self.layers):
                raise CorruptError(f"the backing chain of {self.layers[0].file} comes back to {layer.file}")
            self.layers.append(layer)
            if len(self.layers) > LONGEST_CHAIN:
                raise UnsupportedError(f"the backing chain of {self.layers[0].file} has over {LONGEST_CHAIN} images")
            if layer.backing is None:
                return self.layers
            name, format = layer.backing
            image = self.file(name, layer.file.parent, f"{layer.file} names a backing file that")
            format = {"vpc": "vhd"}.get(format, format) or SUFFIXES.get(image.suffix, "")
            if format not in DRIVERS:
                raise UnsupportedError(
                    f"{layer.file} does not say which format its backing file has"
                    if not format
                    else f"{layer.file} has a backing file of the format {format!r}",
                    hint=f"`qemu-img rebase -u -b {name} -F FORMAT` writes it down",
                )

    def file(self, name: str | Path, folder: Path, what: str) -> Path:
        """The real path of a file that a header names, which must be a regular one and lie where it may."""
        text = str(name)
        if re.match(r"[^/]*:", text) or "\0" in text:
            raise DeniedError(f"{what} is no file name: {text!r}", hint="an image must be made of files")
        try:
            found = (folder / text).resolve(strict=True)
            regular = found.is_file()
        except OSError as error:
            raise read_error(folder / text, error) from error
        except RuntimeError as error:
            raise CorruptError(f"{what} is behind a loop of links: {text}") from error
        if not any(found.is_relative_to(allowed) for allowed in self.folders):
            raise DeniedError(
                f"{what} lies outside of {', '.join(map(str, self.folders))}: {found}",
                hint="where that is right, allow its folder by backing=FOLDER",
            )
        if not regular:
            raise UsageError(f"{what} is not a regular file: {found}")
        return found


def inspect(image: Path, format: str, folders: Sequence[Path]) -> list[Layer]:
    """The chain of an image, top first; `folders` are where its files may lie besides the image's own folder."""
    try:
        real = image.resolve(strict=True)
        allowed = [real.parent, *(folder.resolve(strict=True) for folder in folders)]
    except OSError as error:
        raise read_error(Path(str(error.filename or image)), error) from error
    return Inspector(allowed).follow(real, format or format_of_name(image))


def format_of_name(image: Path) -> str:
    """The format by the file's name. The content is not asked: a guest can write any header to a raw disk."""
    format = SUFFIXES.get(image.suffix.lower())
    if format is None:
        raise UsageError(
            f"the name {image.name} does not tell the image's format",
            hint=f"add format={'|'.join(FORMATS)}, or use file:// for a raw image",
        )
    return format


def look(file: Path, format: str, inspector: Inspector) -> Layer:
    """Read the header of one image."""
    try:
        with file.open("rb", buffering=0) as opened:
            size = opened.seek(0, os.SEEK_END)

            def read(offset: int, length: int) -> bytes:
                return os.pread(opened.fileno(), length, offset)

            match format:
                case "raw":
                    return Layer(file, format)
                case "qcow2":
                    return _qcow2(file, read)
                case "vmdk":
                    return _vmdk(file, read, size, inspector)
                case "vhd":
                    return _vhd(file, read, size)
                case "vhdx":
                    if read(0, 8) != b"vhdxfile":
                        raise no_image(file, format)
                    return Layer(file, format)
                case _:
                    raise UsageError(f"there is no image format {format!r}", hint=f"known are {', '.join(FORMATS)}")
    except OSError as error:
        raise read_error(file, error) from error


def no_image(file: Path, format: str) -> CorruptError:
    """The error for a file of another content than its format says."""
    return CorruptError(f"{file} is no {format} image: its header is not one, or cut off")


def _qcow2(file: Path, read: Any) -> Layer:
    header = read(0, 104).ljust(104, b"\0")
    magic, version, offset, length = struct.unpack_from(">4sIQI", header)
    if magic != b"QFI\xfb" or version not in (2, 3):
        raise no_image(file, "qcow2")
    (cipher,) = struct.unpack_from(">I", header, 32)
    features, header_length = 0, 72
    if version == 3:
        (features,) = struct.unpack_from(">Q", header, 72)
        (header_length,) = struct.unpack_from(">I", header, 100)
    if features & QCOW2_EXTERNAL_DATA:
        raise DeniedError(f"{file} keeps its data in another file that it names", hint="`qemu-img convert` joins them")
    if cipher not in (0, LUKS):
        raise UnsupportedError(f"{file} is encrypted in the old, unsafe way", hint="`qemu-img convert` to LUKS")
    backing = None
    if offset:
        if not (0 < length <= MAX_NAME and offset + length <= MAX_HEADER):
            raise no_image(file, "qcow2")
        name = read(offset, length)
        if len(name) != length:
            raise no_image(file, "qcow2")
        extensions = read(header_length, max(0, offset - header_length)) if header_length < offset else b""
        backing = os.fsdecode(name), _qcow2_backing_format(extensions)
    return Layer(file, "qcow2", encrypted=cipher == LUKS, backing=backing)


def _qcow2_backing_format(extensions: bytes) -> str:
    at = 0
    while at + 8 <= len(extensions):
        kind, length = struct.unpack_from(">II", extensions, at)
        if kind == 0:
            break
        if kind == QCOW2_BACKING_FORMAT:
            return extensions[at + 8 : at + 8 + length].decode(errors="replace")
        at += 8 + -(-length // 8) * 8
    return ""


def _vmdk(file: Path, read: Any, size: int, inspector: Inspector) -> Layer:
    start = read(0, SECTOR)
    if start[:4] == b"KDMV" and len(start) == SECTOR:
        first, sectors = struct.unpack_from("<QQ", start, 28)
        length = sectors * SECTOR
        if length > MAX_DESCRIPTOR or first * SECTOR + length > size:
            raise no_image(file, "vmdk")
        text = read(first * SECTOR, length) if first else b""
        embedded = True
    elif start.lstrip()[:21].lower() == b"# disk descriptorfile":
        if size > MAX_DESCRIPTOR:
            raise no_image(file, "vmdk")
        text, embedded = read(0, size), False
    else:
        raise no_image(file, "vmdk")
    descriptor = text.split(b"\0")[0].decode(errors="surrogateescape")
    extents = [] if embedded else list(_vmdk_extents(file, descriptor, inspector))
    if not embedded and not extents:
        raise no_image(file, "vmdk")
    backing = None
    if _vmdk_value(descriptor, "parentCID", "ffffffff").lower() != "ffffffff":
        hint = _vmdk_value(descriptor, "parentFileNameHint", "")
        if not hint:
            raise CorruptError(f"{file} has a parent and does not name it")
        backing = hint, "vmdk"
    return Layer(file, "vmdk", extents=tuple(extents), backing=backing)


def _vmdk_value(descriptor: str, name: str, default: str) -> str:
    found = re.findall(VMDK_VALUE.format(name), descriptor, re.MULTILINE | re.IGNORECASE)
    if len(found) > 1:
        raise CorruptError(f"a vmdk descriptor has {len(found)} lines of {name}")
    return str(found[0]) if found else default


def _vmdk_extents(file: Path, descriptor: str, inspector: Inspector) -> Any:
    lines = [line for line in descriptor.splitlines() if re.match(r"\s*(?:RW|RDONLY|NOACCESS)\b", line)]
    for line in lines:
        found = VMDK_EXTENT.match(line)
        if found is None:
            raise CorruptError(f"{file} has an extent that cannot be read: {line.strip()[:200]!r}")
        sectors, kind, name, first = found.groups()
        if kind == "ZERO":
            continue
        if name is None:
            raise CorruptError(f"{file} has an extent without a file: {line.strip()[:200]!r}")
        extent = inspector.file(name, file.parent, f"{file} names an extent that")
        if kind in ("FLAT", "VMFS") and extent.stat().st_size < (int(sectors) + int(first or 0)) * SECTOR:
            raise CorruptError(f"{extent} is shorter than {file} says")
        yield extent


def _vhd(file: Path, read: Any, size: int) -> Layer:
    # The footer is the last sector; of a dynamic disk there is a copy at the start, which a cut-off file still has.
    footer = read(size - SECTOR, SECTOR) if size >= SECTOR else b""
    if footer[:8] != b"conectix":
        raise no_image(file, "vhd")
    (kind,) = struct.unpack_from(">I", footer, 60)
    if kind not in (2, 3):
        raise UnsupportedError(
            f"{file} is a differencing disk" if kind == 4 else f"{file} is a VHD of kind {kind}",
            hint="merge it with its parent first",
        )
    return Layer(file, "vhd")


def qemu_node(layers: Sequence[Layer], encrypted_by: str) -> dict[str, Any]:
    """What QEMU has to open, every file and format of it told; `encrypted_by` is the id of the secret."""
    layer = layers[0]
    node: dict[str, Any] = {
        "driver": DRIVERS[layer.format],
        "file": {"driver": "file", "filename": str(layer.file)},
        "read-only": True,
    }
    if layer.encrypted:
        node |= {"encrypt.format": "luks", "encrypt.key-secret": encrypted_by}
    if layer.format in ("qcow2", "vmdk"):
        node["backing"] = qemu_node(layers[1:], encrypted_by) if len(layers) > 1 else None
    return node


def qemu_error(image: Path, said: str) -> LivemountError:
    """The error for what a program of QEMU's said when it could not open an image."""
    last = said.splitlines()[-1] if said else "it says nothing"
    reason = last.rpartition("': ")[2] or last
    if "Is another process using" in said:
        return ConflictError(f"{image} is in use: another process has it open", hint="mount a snapshot or a backup")
    if "nvalid password" in last or "key-secret" in last:
        return DeniedError(f"the password of {image} is wrong: {reason}")
    return CorruptError(f"{image} cannot be opened: {reason}")
