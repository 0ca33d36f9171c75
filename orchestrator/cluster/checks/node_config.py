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
Tree = Mapping[str, Any]

#: Keys that Ray's providers accept in addition to the cloud's.
_RAY = {"aws": {"SubnetIds": None}, "gcp": {"sourceInstanceTemplate": None, "networkConfig": None}}
#: Keys that Ray sets itself for every machine.
_SET_BY_RAY = {"aws": ("MinCount", "MaxCount", "SubnetId"), "gcp": ("name",)}


def node_config_problems(cluster: ClusterFile) -> Iterator[Problem]:
    """Yield the unknown keys of every node type's `node_config`, at any depth.

    Other providers' keys are not known here.
    """
    known = known_keys(cluster.provider)
    if known is None:
        return
    for name, node_type in cluster.section("available_node_types").items():
        config = node_type.get("node_config") if isinstance(node_type, dict) else None
        if isinstance(config, dict):
            where = f"available_node_types.{name}.node_config"
            yield from _unknown(config, known, where)
            for key in _SET_BY_RAY[cluster.provider]:
                if key in config:
                    yield Problem(key=f"{where}.{key}", what="Ray sets it itself: leave it out")


def known_keys(provider: str) -> Tree | None:
    """Return the keys of a provider's machines; None for other providers.

    Source: the parameters of RunInstances in botocore's model of EC2 (the installed one, else that
    of botocore 1.44.5), and `Instance` in Google's discovery document compute v1, revision
    20261106.
    """
    if provider not in _RAY:
        return None
    own: Tree | None = _installed_aws() if provider == "aws" else None
    if own is None:
        own = _kept()[provider]
    return {**own, **_RAY[provider]}


@functools.cache
def _kept() -> Mapping[str, Tree]:
    text = (files("orchestrator.cluster.checks") / "node_config.json").read_text(encoding="utf-8")
    found: Mapping[str, Tree] = json.loads(text)
    return found


@functools.cache
def _installed_aws() -> Tree | None:
    try:
        from botocore.session import Session
    except ImportError:
        return None
    shape = Session().get_service_model("ec2").operation_model("RunInstances").input_shape
    found: Tree | None = _tree(shape)
    return found


def _tree(shape: Any) -> Tree | None:
    if shape.type_name == "list":
        return _tree(shape.member)
    if shape.type_name == "structure":
        return {name: _tree(member) for name, member in shape.members.items()}
    return None


def _unknown(given: Any, known: Tree | None, where: str) -> Iterator[Problem]:
    if known is None:
        return
    if isinstance(given, list):
        for index, entry in enumerate(given):
            yield from _unknown(entry, known, f"{where}[{index}]")
    elif isinstance(given, dict):
        for key, value in given.items():
            if key in known:
                yield from _unknown(value, known[key], f"{where}.{key}")
            else:
                yield Problem(key=f"{where}.{key}", what=f"unknown key: {suggest(key, known)}")
