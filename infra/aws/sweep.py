"""Deletes what belongs to a mount by its tags, whatever a state knows: what a killed engine has left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from livemount.core.errors import NotFoundError
from livemount.media.aws import code_of, make_client, told

GONE = ("shutting-down", "terminated")


def sweep(region: str, tags: Mapping[str, str]) -> None:
    """Terminate the instances with these tags, wait for that, and delete the interfaces."""
    asked = [{"Name": f"tag:{key}", "Values": [value]} for key, value in tags.items()]
    client = make_client("ec2", region, "", "", None)
    try:
        with told("what is left of the mount"):
            answer = client.describe_instances(Filters=asked)
            found = [one for reservation in answer["Reservations"] for one in reservation["Instances"]]
            instances = [one["InstanceId"] for one in found if one["State"]["Name"] not in GONE]
            ending = [one["InstanceId"] for one in found if one["State"]["Name"] != "terminated"]
            if instances:
                client.terminate_instances(InstanceIds=instances)
            if ending:
                client.get_waiter("instance_terminated").wait(InstanceIds=ending)
            interfaces = client.describe_network_interfaces(Filters=asked)["NetworkInterfaces"]
        for interface in interfaces:
            _delete(client, interface["NetworkInterfaceId"])
    finally:
        client.close()


def _delete(client: Any, interface: str) -> None:
    try:
        with told(interface, lambda error: NotFoundError(str(error)) if "NotFound" in code_of(error) else None):
            client.delete_network_interface(NetworkInterfaceId=interface)
    except NotFoundError:  # it went with its instance
        return
