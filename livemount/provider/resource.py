"""What a resource of ours is to the provider: how it is checked, made, looked at, changed and taken away.

Crash contract of every resource: its identity follows from its inputs alone (names, never numbers given by someone),
`create` of what is there already with the same inputs changes nothing, `delete` of what is not there does nothing. So
whatever a killed engine leaves behind can be found and deleted from the inputs that the state had recorded before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from livemount.core.errors import UsageError
from livemount.provider.properties import is_known

Values = dict[str, Any]
"""Properties by their wire names (camelCase), plain values."""


class Inputs(BaseModel):
    """Base of a resource's inputs: snake_case here, camelCase on the wire."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    def wire(self) -> Values:
        """The inputs as the engine and the state know them."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


@dataclass(frozen=True)
class Difference:
    """What an update would change, by wire names."""

    updates: list[str] = field(default_factory=list)
    replaces: list[str] = field(default_factory=list)


InputsT = TypeVar("InputsT", bound=Inputs)


class Resource(ABC, Generic[InputsT]):
    """One kind of resource. Stateless; called from several threads at once."""

    token: ClassVar[str]
    """The type's name in Pulumi, e.g. `livemount:local:Network`."""
    inputs: type[InputsT]
    updatable: ClassVar[frozenset[str]] = frozenset()
    """Inputs (wire names) that can change in place; a change of any other replaces the resource."""

    @abstractmethod
    def id(self, inputs: InputsT) -> str:
        """What identifies the resource; follows from its inputs."""

    @abstractmethod
    def create(self, inputs: InputsT) -> Values:
        """Make it (idempotent for equal inputs) and return its outputs."""

    @abstractmethod
    def read(self, inputs: InputsT, outputs: Values) -> Values | None:
        """Its outputs as they are now, `None` when it is gone. `outputs` are the state's: none before it is made."""

    @abstractmethod
    def delete(self, inputs: InputsT, outputs: Values) -> None:
        """Take it away; nothing happens when it is not there. `outputs`: none when its creation was not seen to end."""

    def update(self, inputs: InputsT) -> Values:
        """Bring it to these inputs and return its outputs. Making it again does it for all that we have so far."""
        return self.create(inputs)

    def drifted(self, inputs: InputsT, outputs: Values) -> list[str]:
        """The outputs in the state that are not as they should be: the next `up` updates the resource."""
        del inputs, outputs
        return []

    def parse(self, values: Values) -> InputsT:
        """The inputs within a resource's properties (outputs are left aside). Raises `UsageError`."""
        names = {info.alias for info in self.inputs.model_fields.values()}
        try:
            return self.inputs.model_validate({key: value for key, value in values.items() if key in names})
        except ValidationError as error:
            raise UsageError("; ".join(reason for _, reason in failures(error))) from error

    def outputs(self, values: Values) -> Values:
        """The outputs within a resource's properties."""
        names = {info.alias for info in self.inputs.model_fields.values()}
        return {key: value for key, value in values.items() if key not in names}

    def check(self, values: Values) -> tuple[Values, list[tuple[str, str]]]:
        """Validated inputs with their defaults, and what is wrong with them (property, reason)."""
        try:
            return self.inputs.model_validate(values).wire(), []
        except ValidationError as error:
            # In a preview some inputs are not known yet: these cannot be wrong, and keep the others from being filled.
            wrong = [(name, reason) for name, reason in failures(error) if name not in values or is_known(values[name])]
            return values, wrong

    def diff(self, state: Values, news: Values) -> Difference:
        """What differs between the state and new inputs."""
        # A state of an earlier version lacks what has come since: that was made as the defaults say.
        defaults = {
            str(info.alias): None if info.is_required() else info.get_default(call_default_factory=True)
            for info in self.inputs.model_fields.values()
        }
        changed = sorted(
            name for name, default in defaults.items() if state.get(name, default) != news.get(name, default)
        )
        replaces = [name for name in changed if name not in self.updatable]
        updates = [name for name in changed if name in self.updatable]
        if not changed:
            updates = self.drifted(self.parse(news), self.outputs(state))
        return Difference(updates=updates, replaces=replaces)


def failures(error: ValidationError) -> list[tuple[str, str]]:
    """The properties that are wrong, and why."""
    return [(str(part["loc"][0]) if part["loc"] else "", f"{part['msg']}") for part in error.errors()]
