"""What draws a page's figures: Vega's runtime and the figures' compiled specifications, packed to be inlined."""

from __future__ import annotations

import base64
import functools
import gzip
import json
from collections.abc import Sequence
from typing import Any, Final

from kv_pipeline.reports.figures.figure import CONTAINER, Figure, specification

_RUNTIME: Final = 'import * as vega6 from "https://cdn.jsdelivr.net/npm/vega@{version}/+esm.js"; window.vega = vega6;'
"""vl-convert resolves this name within itself; it is the only one that it has for Vega alone. Nothing is downloaded."""


@functools.cache
def runtime() -> str:
    """Vega's runtime without the Vega-Lite compiler, as one script. Source: the bundle inside vl-convert-python."""
    import vl_convert

    return str(vl_convert.javascript_bundle(_RUNTIME.format(version=vl_convert.get_vega_version())))


@functools.cache
def compiled(figure: Figure, width: int | str = CONTAINER) -> dict[str, Any]:
    """The figure as a Vega specification. It has no data, so one compilation serves every page; don't change it."""
    import vl_convert

    spec = vl_convert.vegalite_to_vega(specification(figure, width))
    assert isinstance(spec, dict)  # noqa: S101  (the type stub allows a string, too)
    return spec


def packed(figures: Sequence[Figure]) -> str:
    """Runtime and figures as base64 of gzip of a script, for browsers to inflate: a third of its size.

    The same figures give the same bytes.
    """
    return _packed(tuple(figures))


@functools.cache
def _packed(figures: tuple[Figure, ...]) -> str:
    specs = json.dumps({figure.name: compiled(figure) for figure in figures}, sort_keys=True)
    script = f"{runtime()}\nwindow.kvFigures = {specs};"
    return base64.b64encode(gzip.compress(script.encode(), compresslevel=9, mtime=0)).decode()
