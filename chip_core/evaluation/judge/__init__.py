"""Judges: language models that read answers, behind an endpoint."""

from chip_core.evaluation.judge.cache import ReplyCache
from chip_core.evaluation.judge.endpoint import EndpointJudge, endpoint_problem

__all__ = ["EndpointJudge", "ReplyCache", "endpoint_problem"]
