"""How many bytes of KV cache a token takes in well-known open models. The figures and their sources: kv_models.toml."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from kv_pipeline.errors import UsageError

DEFAULT_KV_MODEL: Final = "llama-3.1-70b"
_TABLE: Final = Path(__file__).with_name("kv_models.toml")
_VALUE_BYTES: Final = 2


class KvModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model's attention, under the names of its config.json.

    Attributes:
        source: Where the figures stand.
        num_hidden_layers: Layers.
        kv_bytes_per_token: Their sum; `computed_bytes_per_token` gives the same.
        num_key_value_heads: Key-value heads a layer; None with latent attention.
        head_dim: Values a head; None with latent attention.
        kv_lora_rank: Values of the latent, for multi-head latent attention.
        qk_rope_head_dim: Values of the rotary key beside the latent.
        note: What the sum leaves out.
    """

    source: str
    num_hidden_layers: int
    kv_bytes_per_token: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    kv_lora_rank: int | None = None
    qk_rope_head_dim: int | None = None
    note: str = ""

    def computed_bytes_per_token(self) -> int:
        """Bytes of a token's keys and values, or of its latents, in all layers."""
        if self.kv_lora_rank is not None:
            values = self.kv_lora_rank + (self.qk_rope_head_dim or 0)
        else:
            values = 2 * (self.num_key_value_heads or 0) * (self.head_dim or 0)
        return self.num_hidden_layers * values * _VALUE_BYTES


@cache
def kv_models() -> dict[str, KvModel]:
    """The table, by name."""
    return msgspec.convert(tomllib.loads(_TABLE.read_text("utf-8")), dict[str, KvModel])


def kv_bytes_per_token(name: str) -> int:
    """KV bytes a token of a model of the table.

    Raises:
        UsageError: It is not in the table.
    """
    model = kv_models().get(name)
    if model is None:
        known = ", ".join(sorted(kv_models()))
        raise UsageError(f"No KV figures for model {name!r}. Known: {known}; or say --kv-bytes-per-token.")
    return model.kv_bytes_per_token
