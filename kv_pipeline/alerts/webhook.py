"""Posting JSON to a webhook: again after a while where that may help."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, Final

from kv_pipeline.errors import KvPipelineError

BACK_OFF_S: Final = (1.0, 4.0, 16.0)
"""Seconds between attempts."""
TIMEOUT_S: Final = 10.0
_LONGEST_WAIT_S: Final = 60.0
_TOO_MANY: Final = 429
_FIRST_SERVER_ERROR: Final = 500


class WebhookError(KvPipelineError):
    """A message could not be delivered; its text never holds the address, which is a secret.

    Args:
        found: What happened.
        is_final: Whether trying again later is of no use.
    """

    def __init__(self, found: str, *, is_final: bool) -> None:
        self.is_final = is_final
        super().__init__(f"The webhook {found}. Check KV_PIPELINE_WEBHOOK_URL.")


def post(
    url: str,
    message: dict[str, Any],
    back_off_s: Sequence[float] = BACK_OFF_S,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Post a message; returns the number of attempts it took.

    Args:
        url: Where to; http or https.
        message: The JSON.
        back_off_s: Seconds to wait before each further attempt; the server's Retry-After counts if it is longer.
        sleep: Waits.

    Raises:
        WebhookError: It was refused, or all attempts failed.
    """
    if not url.startswith(("https://", "http://")):
        raise WebhookError("address is neither http nor https", is_final=True)
    request = urllib.request.Request(  # noqa: S310  (checked above)
        url, json.dumps(message).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    for attempt, wait_s in enumerate([*back_off_s, None], start=1):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310
                return attempt
        except urllib.error.HTTPError as error:
            with error:
                found, asked_s = f"answered {error.code}", _retry_after(error)
            if error.code < _FIRST_SERVER_ERROR and error.code != _TOO_MANY:
                raise WebhookError(found, is_final=True) from None
        except (OSError, ValueError) as error:
            found, asked_s = f"was not reached ({type(error).__name__})", 0.0
        if wait_s is None:
            break
        sleep(min(max(wait_s, asked_s), _LONGEST_WAIT_S))
    raise WebhookError(found, is_final=False)


def _retry_after(error: urllib.error.HTTPError) -> float:
    text = error.headers.get("Retry-After", "")
    return float(text) if text.isdigit() else 0.0
