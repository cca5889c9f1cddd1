"""The environment's bucket, and the machine image: baked here, published as a snapshot, made AMIs of."""

from __future__ import annotations

from pathlib import Path

import pulumi
import pulumi_aws as aws

from infra.aws.common import Maker
from infra.resources import ImageSnapshot, MachineImage
from livemount.core.machine import Firmware

ROOT_DEVICE = "/dev/xvda"
BOOT_MODES = {Firmware.BIOS: "legacy-bios", Firmware.UEFI: "uefi"}


class Storage(pulumi.ComponentResource):
    """A private, encrypted bucket of the environment's own."""

    def __init__(self, maker: Maker, opts: pulumi.ResourceOptions) -> None:
        super().__init__("livemount:aws:Storage", "storage", None, opts)
        maker = maker.below(self)
        bucket = aws.s3.Bucket(
            "bucket",
            bucket_prefix=f"{maker.prefix}-",
            force_destroy=True,
            tags=maker.tags("bucket"),
            opts=maker.opts(),
        )
        closed = aws.s3.BucketPublicAccessBlock(
            "bucket-is-private",
            bucket=bucket.id,
            block_public_acls=True,
            block_public_policy=True,
            ignore_public_acls=True,
            restrict_public_buckets=True,
            opts=maker.opts(),
        )
        encrypted = aws.s3.BucketServerSideEncryptionConfiguration(
            "bucket-is-encrypted",
            bucket=bucket.id,
            rules=[{"apply_server_side_encryption_by_default": {"sse_algorithm": "AES256"}}],
            opts=maker.opts(),
        )
        self.name: pulumi.Output[str] = bucket.bucket
        self.ready: list[pulumi.Resource] = [bucket, closed, encrypted]
        self.register_outputs({"bucket": bucket.bucket})


class Images(pulumi.ComponentResource):
    """One image, one snapshot, an AMI for each firmware."""

    def __init__(self, maker: Maker, *, images: Path, ipxe: Path, boot_url: str, opts: pulumi.ResourceOptions) -> None:
        super().__init__("livemount:aws:Images", "images", None, opts)
        maker = maker.below(self)
        own = pulumi.ResourceOptions(parent=self)
        image = MachineImage("machine-image", images_folder=images, ipxe_folder=ipxe, boot_url=boot_url, opts=own)
        self.path, self.digest = image.output("path"), image.output("digest")
        snapshot = ImageSnapshot(
            "machine-image-snapshot",
            region=maker.region,
            path=self.path,
            digest=self.digest,
            tags=maker.tags("machine-image"),
            opts=own,
        )
        short = self.digest.apply(lambda digest: str(digest)[:12])
        self.ids: dict[str, pulumi.Output[str]] = {
            firmware.value: aws.ec2.Ami(
                f"machine-image-{firmware.value}",
                # Named by its content: machines that were started from an earlier one can be told.
                name=pulumi.Output.concat(f"{maker.prefix}-{firmware.value}-", short),
                description="live mount: asks the boot server which disk to start from",
                architecture="x86_64",
                boot_mode=mode,
                virtualization_type="hvm",
                ena_support=True,
                imds_support="v2.0",
                root_device_name=ROOT_DEVICE,
                ebs_block_devices=[
                    {
                        "device_name": ROOT_DEVICE, "snapshot_id": snapshot.output("snapshotId"),
                        "volume_type": "gp3", "delete_on_termination": True,
                    }
                ],
                tags=maker.tags(f"machine-image-{firmware.value}"),
                opts=maker.opts(),
            ).id
            for firmware, mode in BOOT_MODES.items()
        }  # fmt: skip
        self.register_outputs({"ids": self.ids})
