"""The machine of a trial and the CPU time used on it, for estimating costs."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import os
import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its child processes that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@functools.cache
def cpu_name() -> str:
    """Return the processor's name, or its architecture if the system does not give a name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def cpu_count() -> int:
    """Return the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def total_memory() -> int:
    """Return the bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@functools.cache
def gpu_count() -> int:
    """Return the number of GPUs that torch finds; a torch built without CUDA is not imported.

    Importing it takes seconds, which a process that computes nothing does not need.
    """
    if version("torch").endswith("+cpu"):
        return 0
    import torch

    return int(torch.cuda.device_count())


def device_name(device: str) -> str:
    """Return a device's name; devices with the same name are about equally fast.

    Args:
        device: "cpu" or "cuda".
    """
    if device != "cuda":
        return cpu_name()
    import torch

    return str(torch.cuda.get_device_name())


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return (
        [str(number) for number in range(count)] if visible is None else visible.split(",")[:count]
    )


def import_and_freeze(*names: str) -> None:
    """Import modules with large libraries, unless they are imported, before a model is loaded.

    The garbage collector is disabled meanwhile: it would scan all objects repeatedly (a quarter of
    the time), and scan the libraries' objects again in each later `free_memory`.
    """
    if all(name in sys.modules for name in names):
        return
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for name in names:
            importlib.import_module(name)
        gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


def free_memory() -> None:
    """Return a trial's memory to the GPU and to the system.

    glibc keeps freed memory of a process's threads until `malloc_trim` is called.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def memory_share() -> float:
    """Return the share of the machine's memory that this process uses."""
    import psutil  # type: ignore[import-untyped]  # only if a process is reused

    return float(psutil.Process().memory_info().rss / psutil.virtual_memory().total)
