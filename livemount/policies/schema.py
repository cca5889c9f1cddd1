"""The JSON schema of a policy's file, for editors: made from the model."""

from __future__ import annotations

import json

from livemount.policies.policy import Policy


def schema_text() -> str:
    """The schema as it is published in `docs/policy.schema.json`."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Policy.model_json_schema(by_alias=True)}
    return json.dumps(schema, indent=2) + "\n"
