"""`livemount:aws:HostSecrets`: the API's token and certificate, made here, which the host gets by the Parameter Store.

They lie in files of this machine (mode 0600) and, encrypted, in the store: in no state, no user data, no process list.
The host may read the parameters of its own environment and no others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typing_extensions import override

from livemount.core.secrets import read_secret, secret_file
from livemount.media.aws import make_client, told
from livemount.media.certificates import AUTHORITY, Authority
from livemount.provider.resource import Inputs, Resource, Values

NAMES = ("api-token", "server-cert.pem", "server-key.pem")


class HostSecretsInputs(Inputs):
    """Where they are made and put, and the address the certificate is for."""

    region: str
    path: str
    """Of the parameters: `/livemount/NAME`."""
    token_file: Path
    authority: Path
    """Folder of the authority and its certificates."""
    name: str
    """Of the certificate."""
    address: str
    tags: dict[str, str]

    @property
    def parameters(self) -> list[str]:
        """The names in the store."""
        return [f"{self.path}/{name}" for name in NAMES]


class HostSecrets(Resource[HostSecretsInputs]):
    """Three parameters, and the files they are made from."""

    token = "livemount:aws:HostSecrets"  # noqa: S105
    inputs = HostSecretsInputs

    @override
    def id(self, inputs: HostSecretsInputs) -> str:
        """The path in the store."""
        return inputs.path

    @override
    def create(self, inputs: HostSecretsInputs) -> Values:
        """Make what is not there, or not good any more, and put it into the store."""
        secret_file(inputs.token_file)
        issued = Authority(inputs.authority).server(inputs.name, [inputs.address])
        values = [read_secret(inputs.token_file), *((issued.folder / name).read_text() for name in NAMES[1:])]
        tags = [{"Key": key, "Value": value} for key, value in inputs.tags.items()]
        for name, value in zip(inputs.parameters, values, strict=True):
            _ask(inputs, "put_parameter", Name=name, Value=value, Type="SecureString", Overwrite=True)
            _ask(inputs, "add_tags_to_resource", ResourceType="Parameter", ResourceId=name, Tags=tags)
        return {"caFile": str(issued.folder / AUTHORITY), "expires": issued.expires.isoformat()}

    @override
    def read(self, inputs: HostSecretsInputs, outputs: Values) -> Values | None:
        """Whether all are in the store."""
        missing = _ask(inputs, "get_parameters", Names=inputs.parameters, WithDecryption=False)["InvalidParameters"]
        return None if missing or not outputs else outputs

    @override
    def delete(self, inputs: HostSecretsInputs, outputs: Values) -> None:
        """Delete the parameters, and the token here."""
        _ask(inputs, "delete_parameters", Names=inputs.parameters)
        inputs.token_file.unlink(missing_ok=True)


def _ask(inputs: HostSecretsInputs, operation: str, **words: Any) -> dict[str, Any]:
    client = make_client("ssm", inputs.region, "", "", None)
    try:
        with told(f"the parameters {inputs.path}"):
            answer: dict[str, Any] = getattr(client, operation)(**words)
            return answer
    finally:
        client.close()
