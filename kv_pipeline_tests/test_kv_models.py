from __future__ import annotations

import pytest

from kv_pipeline.errors import UsageError
from kv_pipeline.kv_models import DEFAULT_KV_MODEL, kv_bytes_per_token, kv_models

GROUPED = {"num_key_value_heads", "head_dim"}
LATENT = {"kv_lora_rank", "qk_rope_head_dim"}


@pytest.mark.parametrize("name", kv_models())
def test_the_sum_is_that_of_the_figures(name):
    model = kv_models()[name]
    given = {key for key in GROUPED | LATENT if getattr(model, key) is not None}
    assert given in (GROUPED, LATENT)
    assert model.kv_bytes_per_token == model.computed_bytes_per_token()
    assert model.source.startswith("https://") and model.source.endswith("config.json")


def test_known_sums():
    """Worked by hand: 80 layers x 8 heads x 128 x 2 x 2 bytes, and 61 layers x (512 + 64) x 2 bytes."""
    assert kv_bytes_per_token("llama-3.1-70b") == 327_680
    assert kv_bytes_per_token("deepseek-v3") == 70_272
    assert DEFAULT_KV_MODEL in kv_models()


def test_an_unknown_model_is_refused_with_those_that_are_known():
    with pytest.raises(UsageError, match=r"'gpt-9'.*deepseek-v3.*--kv-bytes-per-token"):
        kv_bytes_per_token("gpt-9")
