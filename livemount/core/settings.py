"""Where things are: the home folder and the environments in it.

One environment = one `pulumi up` of the environment stack: a network, an LM host, a machine image. Everything of it
lies below one folder, so that environments (and tests) coexist on a machine and end without a trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from livemount.core.errors import UsageError
from livemount.core.machine import NAME_PATTERN, is_name
from livemount.core.quota import RECALL_QUOTA, QuotaText


class Settings(BaseSettings):
    """Read from environment variables: `LIVEMOUNT_` and the field's name, e.g. `LIVEMOUNT_HOME`."""

    model_config = SettingsConfigDict(env_prefix="LIVEMOUNT_", frozen=True)

    home: Path = Path("/var/lib/livemount")
    environment: str = Field(default="local", pattern=NAME_PATTERN)
    cache: Path = Path.home() / ".cache" / "livemount"

    repository: Path | str | None = None
    """The repository of copies, a folder or `restic+s3://HOST/BUCKET/PREFIX`; `None`: HOME/repository."""
    password_file: Path | None = None
    """The file with the repository's password; `None`: HOME/repository-password."""

    agent: str = ""
    """Copies are listed and read by these media agents: `agent://HOST:PORT[,HOST:PORT]/REPOSITORY`; empty: here."""
    agent_certificates: Path | None = None
    """The certificate that media agents are shown; `None`: the one made here for the client `live-mount`."""
    catalog: str | None = None
    """The catalog's URL, `postgresql://USER@HOST/DATABASE` or `sqlite:///PATH`; `None`: HOME/catalog.sqlite."""
    catalog_password_file: Path | None = None
    """The file with the password of a PostgreSQL catalog, mode 0600."""

    recall_quota: QuotaText = RECALL_QUOTA
    """Room of all recall stores of an environment's live-mount host; applied by `livemount environment up`."""
    keep_recall_stores: bool = False
    """Keep what was recalled for the next mount of the same copy; likewise."""

    @property
    def repository_path(self) -> Path | str:
        """The repository of copies: its folder, or the URI of one that is elsewhere."""
        named = self.repository or self.home / "repository"
        return named if "://" in str(named) else Path(named)

    @property
    def repository_password(self) -> Path:
        """The file with the repository's password, mode 0600."""
        return self.password_file or self.home / "repository-password"

    @property
    def certificates(self) -> Path:
        """The authority of the chosen environment's media agents, and the certificates made by it."""
        return self.paths().secrets / "agents"

    @property
    def client_certificates(self) -> Path:
        """The folder with the certificate that media agents are shown."""
        return self.agent_certificates or self.certificates / "clients" / "live-mount"

    @property
    def catalog_url(self) -> str:
        """Where the catalog is."""
        return self.catalog or f"sqlite:///{self.home.absolute() / 'catalog.sqlite'}"

    @property
    def service_variables(self) -> dict[str, str]:
        """What the services of an environment must be told of the repository and the catalog, to use the same ones."""
        told = {}
        for field in ("repository", "password_file", "catalog", "catalog_password_file"):
            value = getattr(self, field)
            if value is not None:
                text = str(value)
                told[f"LIVEMOUNT_{field.upper()}"] = text if "://" in text else str(Path(text).absolute())
        return told

    def paths(self) -> EnvironmentPaths:
        """The folders of the chosen environment."""
        return EnvironmentPaths(self.environment, self.home / self.environment)


@dataclass(frozen=True)
class EnvironmentPaths:
    """The folders of one environment below `root` = HOME/NAME."""

    name: str
    root: Path

    def __post_init__(self) -> None:
        if not is_name(self.name) or len(self.name) > 8:
            raise UsageError(
                f"{self.name!r} cannot name an environment",
                hint="1 to 8 lower-case letters, digits and hyphens (network namespaces are named after it)",
            )

    @property
    def secrets(self) -> Path:
        """API token, Pulumi passphrase: files of mode 0600."""
        return self.root / "secrets"

    @property
    def host(self) -> Path:
        """State of the LM host (see `HostPaths`)."""
        return self.root / "host"

    @property
    def cloud(self) -> Path:
        """State of the local cloud: networks, interfaces, virtual machines."""
        return self.root / "cloud"

    @property
    def images(self) -> Path:
        """Baked machine images, by digest."""
        return self.root / "images"

    @property
    def pulumi(self) -> Path:
        """Pulumi's file backend and work folders."""
        return self.root / "pulumi"

    @property
    def manager(self) -> Path:
        """The manager's database and records."""
        return self.root / "manager"

    @property
    def database(self) -> Path:
        """The database of the durable workflows."""
        return self.manager / "workflows.sqlite"

    @property
    def manager_lock(self) -> Path:
        """Locked while the manager's service runs."""
        return self.manager / "lock"

    @property
    def outputs(self) -> Path:
        """What the environment stack exports for the mount stacks, as JSON."""
        return self.root / "environment.json"

    @property
    def api_token(self) -> Path:
        """The token of the LM host's API."""
        return self.secrets / "api-token"

    @property
    def passphrase(self) -> Path:
        """The passphrase that encrypts secrets in Pulumi's states."""
        return self.secrets / "pulumi-passphrase"

    @property
    def network_namespace(self) -> str:
        """The namespace of the local cloud's network: bridge, DHCP, taps of the virtual machines."""
        return f"lm-{self.name}-net"

    @property
    def host_namespace(self) -> str:
        """The namespace the local LM host's services run in."""
        return f"lm-{self.name}-host"


@dataclass(frozen=True)
class HostPaths:
    """The folders of a live-mount host below `root`. Laid out by the Ansible roles, used by `livemount.host`."""

    root: Path

    @property
    def run(self) -> Path:
        """Sockets: `api.sock`, `tgtd.sock`, `driver.sock`, `supervisor.sock`."""
        return self.root / "run"

    @property
    def log(self) -> Path:
        """Logs of the services; `boot-access.jsonl` is what the boot server answered."""
        return self.root / "log"

    @property
    def scripts(self) -> Path:
        """The published boot scripts, `ADDRESS.ipxe`: what nginx serves."""
        return self.root / "boot" / "scripts"

    @property
    def mounts(self) -> Path:
        """One folder a mount: record, CHAP secret, private store, the pseudo-disk's mount point."""
        return self.root / "mounts"

    @property
    def recall(self) -> Path:
        """The recall stores, one folder for each source identity."""
        return self.root / "recall"

    @property
    def api_socket(self) -> Path:
        """Where the LM host's API listens for clients on the same machine."""
        return self.run / "api.sock"

    @property
    def target_socket(self) -> Path:
        """tgtd's control socket (`TGT_IPC_SOCKET`)."""
        return self.run / "tgtd.sock"

    @property
    def driver_socket(self) -> Path:
        """The control socket of the pseudo-disk supervisor."""
        return self.run / "driver.sock"

    @property
    def access_log(self) -> Path:
        """nginx's access log, one JSON object a line."""
        return self.log / "boot-access.jsonl"
