"""Check the keys inside `node_config`, which Ray does not check."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

from chip_core.utils.registry import suggest
from orchestrator.cluster.config import ClusterFile, Problem

#: Name -> the names below it; None: these are unknown, or the user's own.
KeyTree = Mapping[str, Any]

#: Keys that Ray's providers accept in addition to the cloud's.
_RAY_KEYS = {
    "aws": {"SubnetIds": None},
    "gcp": {"sourceInstanceTemplate": None, "networkConfig": None},
}
#: Keys that Ray sets itself for every machine.
_KEYS_SET_BY_RAY = {"aws": ("MinCount", "MaxCount", "SubnetId"), "gcp": ("name",)}


def node_config_problems(cluster: ClusterFile) -> Iterator[Problem]:
    """Yield the unknown keys of every node type's `node_config`, at any depth.

    The keys of other providers are unknown here.
    """
    known = known_keys(cluster.provider)
    if known is None:
        return
    for name, node_type in cluster.section("available_node_types").items():
        config = node_type.get("node_config") if isinstance(node_type, dict) else None
        if isinstance(config, dict):
            path = f"available_node_types.{name}.node_config"
            yield from _unknown_key_problems(config, known, path)
            for key in _KEYS_SET_BY_RAY[cluster.provider]:
                if key in config:
                    yield Problem(key=f"{path}.{key}", message="Ray sets it itself: leave it out")


def known_keys(provider: str) -> KeyTree | None:
    """Return the keys of a provider's machines; None for other providers.

    Source: the parameters of RunInstances in botocore's model of EC2 (the installed one, else that
    of botocore 1.44.5), and `Instance` in Google's discovery document compute v1, revision
    20261106.
    """
    if provider not in _RAY_KEYS:
        return None
    provider_keys: KeyTree | None = _read_boto_keys() if provider == "aws" else None
    if provider_keys is None:
        provider_keys = _read_stored_keys()[provider]
    return {**provider_keys, **_RAY_KEYS[provider]}


@functools.cache
def _read_stored_keys() -> Mapping[str, KeyTree]:
    text = (files("orchestrator.cluster.checks") / "node_config.json").read_text(encoding="utf-8")
    keys: Mapping[str, KeyTree] = json.loads(text)
    return keys


@functools.cache
def _read_boto_keys() -> KeyTree | None:
    try:
        from botocore.session import Session
    except ImportError:
        return None
    shape = Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    keys: KeyTree | None = _shape_to_tree(shape)
    return keys


def _shape_to_tree(shape: Any) -> KeyTree | None:
    if shape.type_name == "list":
        return _shape_to_tree(shape.member)
    if shape.type_name == "structure":
        return {name: _shape_to_tree(member) for name, member in shape.members.items()}
    return None


def _unknown_key_problems(config: Any, known: KeyTree | None, path: str) -> Iterator[Problem]:
    if known is None:
        return
    if isinstance(config, list):
        for index, entry in enumerate(config):
            yield from _unknown_key_problems(entry, known, f"{path}[{index}]")
    elif isinstance(config, dict):
        for key, value in config.items():
            if key in known:
                yield from _unknown_key_problems(value, known[key], f"{path}.{key}")
            else:
                yield Problem(key=f"{path}.{key}", message=f"unknown key: {suggest(key, known)}")
