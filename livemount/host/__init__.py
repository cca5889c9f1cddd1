"""The live-mount host: one REST service that puts driver, target, boot, guest and media together."""
