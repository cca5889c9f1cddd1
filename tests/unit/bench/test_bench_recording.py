"""What is made of strace's output."""

from __future__ import annotations

from bench.recording import Request, parse

TRACE = """\
101 pread64(9, ""..., 512, 0)               = 512
101 pread64(9,  <unfinished ...>
102 pwrite64(9, ""..., 4096, 8192 <unfinished ...>
103 pread64(9, ""..., 1048576, 1048576)     = 1048576
102 <... pwrite64 resumed>)                 = 4096
101 <... pread64 resumed>""..., 2048, 4096) = 2048
103 pread64(9, ""..., 4096, 77)             = -1 EIO (Input/output error)
103 pread64(9, ""..., 4096, 99)             = 512
103 pread64(9, ""..., 512, 5120 <detached ...>
"""


def test_requests_are_in_the_order_in_which_they_were_begun() -> None:
    assert parse(TRACE) == [
        Request(write=False, offset=0, length=512),
        Request(write=False, offset=4096, length=2048),
        Request(write=True, offset=8192, length=4096),
        Request(write=False, offset=1048576, length=1048576),
    ]


def test_nothing_recorded_is_nothing() -> None:
    assert parse("") == []
