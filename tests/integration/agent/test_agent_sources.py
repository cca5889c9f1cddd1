"""Every kind of source, served by one agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from livemount.media import open_source
from tests.support.agents import Agents
from tests.support.foreign import (
    MIB,
    BorgSubject,
    FileSubject,
    ForeignResticSubject,
    HttpsSubject,
    NbdCertificateSubject,
    NbdPskSubject,
    NbdUnixSubject,
    Subject,
)
from tests.support.foreign_images import Qcow2ChainSubject, VhdxSubject, VmdkSplitSubject

pytestmark = pytest.mark.integration

KINDS: list[type[Subject]] = [
    FileSubject,
    ForeignResticSubject,
    NbdUnixSubject,
    NbdPskSubject,
    NbdCertificateSubject,
    BorgSubject,
    HttpsSubject,
    Qcow2ChainSubject,
    VmdkSplitSubject,
    VhdxSubject,
]


@pytest.fixture
def subjects(tmp_path: Path) -> Iterator[dict[str, Subject]]:
    made: dict[str, Subject] = {}
    try:
        for number, kind in enumerate(KINDS):
            (tmp_path / str(number)).mkdir()
            made[kind.__name__] = kind(tmp_path / str(number))
        yield made
    finally:
        for subject in reversed(made.values()):
            subject.close_all()


def test_each_kind_is_the_same_by_an_agent(subjects: dict[str, Subject], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    agents = Agents(tmp_path / "a")
    try:
        exports = {
            name: {"source": subject.uri, "password_file": str(subject.password) if subject.password else None}
            for name, subject in subjects.items()
        }
        agent = agents.add("store1", exports=exports)
        for name, subject in subjects.items():
            source = open_source(agents.uri(name, agent), None)
            here = subject.open()
            assert (source.identity, source.size) == (here.identity, here.size), name
            assert source.read(0, source.size) == subject.content, name
            holes = sum(extent.length for extent in source.extents(0, source.size) if extent.hole)
            assert holes >= (MIB if "holes" in subject.can else 0), name
            source.close()
            here.close()
    finally:
        agents.close()
