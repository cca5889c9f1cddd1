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
from tests.support.foreign_clouds import AzureBlockSubject, AzureSubject, EbsSubject, S3Subject, end_stand_ins
from tests.support.foreign_files import FilesSubject
from tests.support.foreign_images import Qcow2ChainSubject, VhdxSubject, VmdkSplitSubject
from tests.support.foreign_lvm import LvsStandInSubject

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


GROUPS: dict[str, list[type[Subject]]] = {
    "here": KINDS,
    # Of each, one that has an authority of its own, and one that begins with nothing in moto.
    "files-lvm-azure-ebs": [FilesSubject, LvsStandInSubject, AzureSubject, EbsSubject],
    "azure-blocks-s3": [AzureBlockSubject, S3Subject],
}


@pytest.fixture(scope="module", autouse=True)
def stand_ins() -> Iterator[None]:
    """Those that subjects share end with the module."""
    yield
    end_stand_ins()


@pytest.fixture
def subjects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Subject]]:
    made: dict[str, Subject] = {}
    try:
        for number, kind in enumerate(GROUPS[request.param]):
            (tmp_path / str(number)).mkdir()
            made[kind.__name__] = kind(tmp_path / str(number))
        yield made
    finally:
        for subject in reversed(made.values()):
            subject.close_all()


@pytest.mark.parametrize("subjects", GROUPS, indirect=True)
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
            subject.as_elsewhere()
            source = open_source(agents.uri(name, agent), None)
            here = subject.open()
            assert (source.identity, source.size) == (here.identity, here.size), name
            extents = list(source.extents(0, source.size))
            data = [extent for extent in extents if not extent.hole]
            assert sum(extent.length for extent in data) >= 2 * MIB, name
            for extent in data:
                assert source.read(extent.offset, extent.length) == here.read(extent.offset, extent.length), name
            assert source.read(0, MIB) == here.read(0, MIB), name
            if source.size == len(subject.content):
                assert source.read(0, source.size) == subject.content, name
            holes = sum(extent.length for extent in extents if extent.hole)
            assert holes >= (MIB if "holes" in subject.can else 0), name
            source.close()
            here.close()
    finally:
        agents.close()
