"""Weights of a hub: from the cache or the network, or at once an error."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from huggingface_hub import constants

from codetr.errors import UserError

_PATIENCE = 5.0  # seconds until a machine has to answer
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def is_reachable() -> bool:
    """Whether the hub's machine answers; taken for granted behind a proxy."""
    if any(os.environ.get(name) for name in _PROXIES):
        return True
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), _PATIENCE).close()
    except OSError:
        return False
    return True


@contextmanager
def hub_access(backbone: str) -> Iterator[None]:
    """Let what is done within take files of the hub: those of the cache alone where the hub does
    not answer, instead of trying again for minutes. Raises UserError where a file cannot be had.
    """
    was_offline = constants.HF_HUB_OFFLINE
    offline = was_offline or not is_reachable()
    constants.HF_HUB_OFFLINE = offline
    try:
        yield
    except OSError as error:  # the hub's errors of every kind are
        if offline:
            reason = "no network"
        else:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"no pretrained weights for backbone '{backbone}' ({reason}): give a file by "
            "model.backbone.weights=FILE with model.backbone.pretrained=false, or start from a "
            "checkpoint=FILE, which needs none"
        ) from None
    finally:
        constants.HF_HUB_OFFLINE = was_offline
