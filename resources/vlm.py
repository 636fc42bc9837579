"""Which vision-language model is tuned."""

import os

import dagster as dg


class VlmResource(dg.ConfigurableResource):
    """`name` is `tiny` (the embedded default, made here), a model's name on the hub, or a folder with weights."""

    name: str = "tiny"

    @classmethod
    def from_env(cls) -> "VlmResource":
        return cls(name=os.environ.get("VLM") or "tiny")
