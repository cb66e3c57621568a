"""Weights from a hub: from its cache or the network, with an immediate error otherwise."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import timm
from huggingface_hub import constants
from torch import Tensor

from codetr.errors import UserError, first_line

_PATIENCE = 5.0  # seconds to wait for an answer
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def is_reachable() -> bool:
    """Whether the hub can be reached; assumed so behind a proxy."""
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
def hub_or_cache() -> Iterator[bool]:
    """Context for loading files of the hub: from the cache only if the hub cannot be reached,
    without minutes of retries. Yields whether that is the case.
    """
    was_offline = constants.HF_HUB_OFFLINE
    offline = was_offline or not is_reachable()
    constants.HF_HUB_OFFLINE = offline
    try:
        yield offline
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def reason_of(error: Exception, offline: bool) -> str:
    """Why a file of the hub is not available, in one line."""
    if offline:
        return "no network"
    return first_line(error)


@contextmanager
def hub_access(backbone: str) -> Iterator[None]:
    """``hub_or_cache`` for the weights of a backbone. Raises UserError if unavailable."""
    with hub_or_cache() as offline:
        try:
            yield
        except OSError as error:  # base class of all errors of the hub
            raise UserError(
                f"no pretrained weights for backbone '{backbone}' ({reason_of(error, offline)}): "
                "give a file by model.backbone.weights=FILE with model.backbone.pretrained=false, "
                "or start from a checkpoint=FILE, which needs none"
            ) from None


def hub_weights(name: str) -> dict[str, Tensor]:
    """The weights that timm's hub has under ``name``. Raises UserError where it has none, or
    where it cannot be reached.
    """
    try:
        with hub_access(name):
            return timm.create_model(name, pretrained=True).state_dict()
    except UserError:
        raise
    except Exception as error:  # of the network, the hub and timm: all kinds
        raise UserError(
            f"no pretrained weights for backbone '{name}' ({reason_of(error, False)}): give a file "
            "by model.backbone.weights=FILE with model.backbone.pretrained=false"
        ) from error
