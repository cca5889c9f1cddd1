"""A live-mount host's API in memory (its real parts are tested elsewhere), and a local cloud with a network."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Header, Response
from fastapi.responses import JSONResponse

from infra.api import EnvironmentOutputs
from livemount.boot.api import BOOT_URL
from livemount.core.errors import ConflictError, LivemountError, NotFoundError
from livemount.core.secrets import secret_file
from livemount.core.settings import EnvironmentPaths, Settings
from livemount.driver.api import PseudoDiskStats
from livemount.host.api import PseudoDisk, PseudoDiskRequest
from livemount.host.service import problem
from livemount.local_cloud.api import NetworkSpec
from livemount.local_cloud.cloud import QemuCloud


@dataclass
class Host:
    """What a host's API would have done."""

    token: str
    disks: dict[str, PseudoDisk] = field(default_factory=dict)
    entered: threading.Event = field(default_factory=threading.Event)
    """A PUT has arrived."""
    go_on: threading.Event = field(default_factory=threading.Event)
    """A PUT may answer."""
    fail: LivemountError | None = None
    """What the next PUT raises."""

    def app(self) -> FastAPI:
        """The API."""
        app = FastAPI()

        @app.put("/v1/pseudo-disks/{mount}")
        def put(mount: str, request: PseudoDiskRequest, authorization: str = Header()) -> Response:
            assert authorization == f"Bearer {self.token}"
            if self.fail is not None:
                return problem(self.fail)
            known = self.disks.get(mount)
            if known is not None and known.request != request:
                return problem(ConflictError(f"the mount {mount} exists already", hint="unmount it"))
            stats = PseudoDiskStats(
                size=1 << 30, private_bytes=0, recalled_bytes=0, recall_store_bytes=0,
                reads=0, writes=0, read_errors=0, worker_restarts=0,
            )  # fmt: skip
            self.disks[mount] = PseudoDisk(
                mount=mount, request=request, portal="10.77.0.2:3260", target_iqn=f"iqn.x:{mount}",
                initiator_iqn=f"iqn.x:{mount}.guest", size=1 << 30, stats=stats, report=None,
                sessions=[], healthy=True, problems=[],
            )  # fmt: skip
            self.entered.set()
            self.go_on.wait(60)
            return JSONResponse(self.disks[mount].model_dump(mode="json"))

        @app.get("/v1/pseudo-disks/{mount}")
        def get(mount: str) -> Response:
            if mount not in self.disks:
                return problem(NotFoundError(f"there is no mount {mount!r} on this host"))
            return JSONResponse(self.disks[mount].model_dump(mode="json"))

        @app.get("/v1/pseudo-disks")
        def list_all() -> list[PseudoDisk]:
            return list(self.disks.values())

        @app.delete("/v1/pseudo-disks/{mount}", status_code=204)
        def delete(mount: str) -> None:
            self.disks.pop(mount, None)

        return app


@dataclass(frozen=True)
class World:
    """An environment whose host is in memory and whose cloud is real."""

    settings: Settings
    paths: EnvironmentPaths
    host: Host
    cloud: QemuCloud


@pytest.fixture
def host(tmp_path: Path) -> Iterator[tuple[Host, Path, Path]]:
    """A host in memory, its socket and its token file."""
    token_file = secret_file(tmp_path / "token")
    host = Host(token_file.read_text())
    host.go_on.set()
    socket = tmp_path / "api.sock"
    server = uvicorn.Server(uvicorn.Config(host.app(), uds=str(socket), log_config=None, ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    yield host, socket, token_file
    host.go_on.set()
    server.should_exit = True
    thread.join(60)


@pytest.fixture
def world(tmp_path: Path, host: tuple[Host, Path, Path]) -> Iterator[World]:
    """An environment that is up, made without Pulumi."""
    in_memory, socket, token_file = host
    name = f"p{os.getpid() % 100000}"
    # Not below tmp_path: its length leaves no room for the sockets of machines.
    settings = Settings(home=Path(tempfile.mkdtemp(prefix="lm-", dir="/var/tmp")), environment=name)
    paths = settings.paths()
    cloud = QemuCloud(paths.cloud)
    cloud.create_network(NetworkSpec(name="guests", namespace=paths.network_namespace))
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(1 << 20))
    outputs = EnvironmentOutputs(
        name=name, cloud="local", endpoint=f"unix://{socket}", token_file=token_file, host_address="10.77.0.2",
        boot_url=BOOT_URL, network="guests", image=image, image_digest="0", cloud_folder=paths.cloud,
    )  # fmt: skip
    paths.outputs.write_text(outputs.model_dump_json())
    yield World(settings, paths, in_memory, cloud)
    cloud.destroy_all()
    assert cloud.remains() == []
    shutil.rmtree(settings.home)
