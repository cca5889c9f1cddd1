"""A stand-in for Pulumi's AWS provider, for tests only: checks inputs by the SDK's schema, and makes resources in moto.

It is no AWS: what the programs ask for is right by the SDK and is taken by moto; nothing runs on what they make.
"""
