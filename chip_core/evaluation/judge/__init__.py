"""Judges: language models behind an endpoint that assess answers."""

from chip_core.evaluation.judge.cache import ReplyCache
from chip_core.evaluation.judge.endpoint import EndpointJudge, find_endpoint_problem

__all__ = ["EndpointJudge", "ReplyCache", "find_endpoint_problem"]
