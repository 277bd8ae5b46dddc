"""Price files in TOML or JSON: the user's own (`--prices FILE`) and the supplement that ships with the package.

Format: docs/prices.md.
"""

from __future__ import annotations

import tomllib
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from kv_pipeline.core.models import canonical_model
from kv_pipeline.core.prices import ModelPrices, PriceTable
from kv_pipeline.errors import UsageError

SUPPLEMENT: Final = Path(__file__).parent / "supplement.toml"
_REMEDY: Final = "docs/prices.md describes the file."

_Price = Annotated[float, msgspec.Meta(ge=0, le=1_000_000)]
_Tokens = Annotated[int, msgspec.Meta(ge=1)]


class _Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    model: Annotated[str, msgspec.Meta(min_length=1)]
    input_usd_per_mtok: _Price
    write_5m_usd_per_mtok: _Price
    write_1h_usd_per_mtok: _Price
    read_usd_per_mtok: _Price
    output_usd_per_mtok: _Price
    valid_from: date | None = None
    above_prompt_tokens: _Tokens | None = None
    context_window_tokens: _Tokens | None = None


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    source: str | None = None
    date: date | None = None
    prices: Annotated[list[_Row], msgspec.Meta(min_length=1)]


def file_prices(path: Path) -> PriceTable:
    """Prices of a TOML file, or of a JSON file if its name ends so.

    Raises:
        UsageError: The file can't be read, is not TOML or JSON, or says something else than prices. The message has
            file, key and remedy.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"Price file {path} can't be read: {error.strerror}. Name an existing file.") from error
    try:
        found = msgspec.convert(_decoded(content, path.suffix), _File)
        return PriceTable(_row(row, found, path.name) for row in found.prices)
    except ValueError as error:  # msgspec's, tomllib's and our own errors are all ValueErrors
        raise UsageError(f"Price file {path}: {error}. {_REMEDY}") from error


def _decoded(content: bytes, suffix: str) -> Any:  # noqa: ANN401 - whatever the file says, checked next
    return msgspec.json.decode(content) if suffix.lower() == ".json" else tomllib.loads(content.decode())


def _row(row: _Row, file: _File, name: str) -> ModelPrices:
    facts = msgspec.structs.asdict(row) | {"model": canonical_model(row.model)}
    return ModelPrices(**facts, source=file.source or name, source_date=file.date)
