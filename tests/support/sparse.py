"""A sparse file in memory."""

from __future__ import annotations

PAGE = 4096


class SparseFile:
    """Bytes by page; what is in no page is zero. Sizes and offsets in bytes."""

    def __init__(self, content: bytes = b"") -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = 0
        self.write(0, content)

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes in place; the file grows when it must."""
        at = 0
        while at < len(data):
            page, within = divmod(offset + at, PAGE)
            part = data[at : at + PAGE - within]
            self.pages.setdefault(page, bytearray(PAGE))[within : within + len(part)] = part
            at += len(part)
        self.size = max(self.size, offset + len(data))

    def resize(self, size: int) -> None:
        """Cut off or append zeros."""
        for page in [page for page in self.pages if page >= size // PAGE] if size < self.size else []:
            within = size - page * PAGE
            if within <= 0:
                del self.pages[page]
            elif within < PAGE:
                self.pages[page][within:] = bytes(PAGE - within)
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes, less at the end of the file."""
        parts = []
        end = min(self.size, offset + length)
        while offset < end:
            page, within = divmod(offset, PAGE)
            take = min(PAGE - within, end - offset)
            found = self.pages.get(page)
            parts.append(bytes(take) if found is None else bytes(found[within : within + take]))
            offset += take
        return b"".join(parts)

    def runs(self) -> list[tuple[int, bytes]]:
        """Offsets and bytes of the neighbouring pages that are there."""
        found: list[tuple[int, list[bytearray]]] = []
        before = -2
        for page in sorted(self.pages):
            if page != before + 1:
                found.append((page * PAGE, []))
            found[-1][1].append(self.pages[page])
            before = page
        return [(offset, b"".join(pages)) for offset, pages in found]
