"""Our provider's resources as Pulumi programs see them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pulumi

from livemount.core.machine import Firmware


class _Resource(pulumi.CustomResource):
    """Base: inputs by their wire names, those that are `None` left out; outputs named in `_outputs`."""

    _token: str
    _outputs: tuple[str, ...] = ()

    def __init__(self, name: str, inputs: Mapping[str, Any], opts: pulumi.ResourceOptions | None) -> None:
        given = {key: value for key, value in inputs.items() if value is not None}
        outputs = dict.fromkeys(self._outputs)
        super().__init__(self._token, name, {**outputs, **given}, opts)

    def output(self, name: str) -> pulumi.Output[Any]:
        """An output by its wire name."""
        value: pulumi.Output[Any] = pulumi.get(self, name)
        return value


class Network(_Resource):
    """A network of the local cloud."""

    _token = "livemount:local:Network"  # noqa: S105

    def __init__(
        self,
        resource_name: str,
        *,
        cloud_folder: Path,
        name: str,
        namespace: str,
        cidr: str,
        records: Mapping[str, str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """See `livemount.local_cloud.api.NetworkSpec`."""
        inputs = {
            "cloudFolder": str(cloud_folder),
            "name": name,
            "namespace": namespace,
            "cidr": cidr,
            "records": dict(records),
        }
        super().__init__(resource_name, inputs, opts)


class Interface(_Resource):
    """An interface on a network of the local cloud."""

    _token = "livemount:local:Interface"  # noqa: S105
    _outputs = ("privateAddress", "mac", "device")

    def __init__(
        self,
        resource_name: str,
        *,
        cloud_folder: Path,
        name: str,
        network: str,
        kind: str = "machine",
        address: str | None = None,
        namespace: str | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """See `livemount.local_cloud.api.InterfaceSpec`."""
        inputs = {
            "cloudFolder": str(cloud_folder),
            "name": name,
            "network": network,
            "kind": kind,
            "address": address,
            "namespace": namespace,
        }
        super().__init__(resource_name, inputs, opts)


class VirtualMachine(_Resource):
    """A virtual machine of the local cloud."""

    _token = "livemount:local:VirtualMachine"  # noqa: S105
    _outputs = ("consoleLog", "consoleSocket", "controlSocket")

    def __init__(
        self,
        resource_name: str,
        *,
        cloud_folder: Path,
        name: str,
        interface: pulumi.Input[str],
        image: Path,
        firmware: Firmware,
        cpus: int,
        memory_mib: int,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """See `livemount.local_cloud.api.MachineSpec`."""
        inputs = {
            "cloudFolder": str(cloud_folder),
            "name": name,
            "interface": interface,
            "image": str(image),
            "firmware": firmware.value,
            "cpus": cpus,
            "memoryMib": memory_mib,
        }
        super().__init__(resource_name, inputs, opts)


class PseudoDisk(_Resource):
    """A mount on the live-mount host."""

    _token = "livemount:index:PseudoDisk"  # noqa: S105
    _outputs = ("portal", "targetIqn", "initiatorIqn", "size", "report", "healthy")

    def __init__(
        self,
        resource_name: str,
        *,
        endpoint: str,
        token_file: Path,
        ca_file: Path | None,
        mount: str,
        source: str,
        disks: tuple[str, ...],
        password_file: Path | None,
        address: pulumi.Input[str],
        firmware: Firmware,
        prepare: bool,
        profile: str | None,
        hold_seconds: float,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """See `livemount.host.api.PseudoDiskRequest`."""
        inputs = {
            "endpoint": endpoint,
            "tokenFile": str(token_file),
            "caFile": None if ca_file is None else str(ca_file),
            "mount": mount,
            "source": source,
            "disks": list(disks),
            "passwordFile": None if password_file is None else str(password_file),
            "address": address,
            "firmware": firmware.value,
            "prepare": prepare,
            "profile": profile,
            "holdSeconds": hold_seconds,
        }
        super().__init__(resource_name, inputs, opts)


class HostConfiguration(_Resource):
    """The live-mount host's services."""

    _token = "livemount:index:HostConfiguration"  # noqa: S105
    _outputs = ("endpoint", "rolesDigest", "configured")

    def __init__(
        self,
        resource_name: str,
        *,
        environment: str,
        home: Path,
        namespace: str | None,
        address: pulumi.Input[str],
        token_file: Path,
        guest_tools: Path,
        recall_quota: str,
        keep_recall_stores: bool,
        variables: dict[str, str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """See `livemount.configure.HostSpec`."""
        inputs = {
            "environment": environment,
            "home": str(home),
            "namespace": namespace,
            "address": address,
            "tokenFile": str(token_file),
            "guestTools": str(guest_tools),
            "recallQuota": recall_quota,
            "keepRecallStores": keep_recall_stores,
            "variables": variables,
        }
        super().__init__(resource_name, inputs, opts)


class MachineImage(_Resource):
    """The fixed iPXE machine image."""

    _token = "livemount:index:MachineImage"  # noqa: S105
    _outputs = ("digest", "path")

    def __init__(
        self,
        resource_name: str,
        *,
        images_folder: Path,
        ipxe_folder: Path,
        boot_url: str,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """See `livemount.image.api.ImageRequest`."""
        inputs = {"imagesFolder": str(images_folder), "ipxeFolder": str(ipxe_folder), "bootUrl": boot_url}
        super().__init__(resource_name, inputs, opts)


class EnvironmentFile(_Resource):
    """What an environment exports, as a JSON file."""

    _token = "livemount:index:EnvironmentFile"  # noqa: S105

    def __init__(
        self,
        resource_name: str,
        *,
        path: Path,
        values: Mapping[str, pulumi.Input[Any]],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """`values` are plain values or outputs of other resources."""
        super().__init__(resource_name, {"path": str(path), "values": dict(values)}, opts)


class ImageSnapshot(_Resource):
    """The machine image as an EBS snapshot."""

    _token = "livemount:aws:ImageSnapshot"  # noqa: S105
    _outputs = ("snapshotId",)

    def __init__(
        self,
        resource_name: str,
        *,
        region: str,
        path: pulumi.Input[str],
        digest: pulumi.Input[str],
        tags: Mapping[str, str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """`tags` say whose it is."""
        super().__init__(resource_name, {"region": region, "path": path, "digest": digest, "tags": dict(tags)}, opts)


class HostCode(_Resource):
    """The project's code as an archive in a bucket."""

    _token = "livemount:aws:HostCode"  # noqa: S105
    _outputs = ("key", "digest")

    def __init__(
        self,
        resource_name: str,
        *,
        region: str,
        bucket: pulumi.Input[str],
        prefix: str,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """The archive's key is `prefix` and its digest."""
        super().__init__(resource_name, {"region": region, "bucket": bucket, "prefix": prefix}, opts)


class HostSecrets(_Resource):
    """Token and certificate of a host in AWS."""

    _token = "livemount:aws:HostSecrets"  # noqa: S105
    _outputs = ("caFile", "expires")

    def __init__(
        self,
        resource_name: str,
        *,
        region: str,
        path: str,
        token_file: Path,
        authority: Path,
        name: str,
        address: pulumi.Input[str],
        tags: Mapping[str, str],
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """`path` is the parameters', `name` the certificate's."""
        inputs = {
            "region": region,
            "path": path,
            "tokenFile": str(token_file),
            "authority": str(authority),
            "name": name,
            "address": address,
            "tags": dict(tags),
        }
        super().__init__(resource_name, inputs, opts)
