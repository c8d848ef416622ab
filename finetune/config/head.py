"""The layers between the backbone's features and the classes."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from finetune.errors import nearest
from finetune.schema import Section

# by timm's names; torch's own, such as LeakyReLU, differ in capitals and underscores only
ACTIVATIONS = (
    *("relu", "relu6", "leaky_relu", "prelu", "elu", "celu", "selu", "gelu", "gelu_tanh", "quick_gelu", "silu"),
    *("swish", "mish", "hard_sigmoid", "hard_swish", "hard_mish", "sigmoid", "tanh"),
)


def _by_timms_name(name: str) -> str:
    spelt = {known.replace("_", ""): known for known in ACTIVATIONS}
    plain = name.lower().replace("_", "")
    if plain not in spelt:
        raise ValueError(f"no such activation{nearest(name.lower(), ACTIVATIONS)} (there are {', '.join(ACTIVATIONS)})")
    return spelt[plain]


class HeadConfig(Section):
    hidden: list[Annotated[int, Field(ge=1)]] = Field(
        description="widths of the layers between features and classes, the lowest first, such as [512,256]; []: none, "
        "a linear head"
    )
    activation: Annotated[str, AfterValidator(_by_timms_name)] = Field(
        description="what follows each hidden layer: relu, gelu, silu or any other of timm's or torch's names"
    )
    batch_norm: bool = Field(description="normalise the outputs of each hidden layer, before its activation")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        description="chance that an input of a layer of the head is left out while training; a linear head of "
        "freeze=head is fitted without"
    )

    @field_validator("batch_norm")
    @classmethod
    def _has_layers_to_normalise(cls, batch_norm: bool, given: ValidationInfo) -> bool:
        if batch_norm and not given.data.get("hidden"):
            raise ValueError("needs head.hidden, whose layers it normalises")
        return batch_norm
