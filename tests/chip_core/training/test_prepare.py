"""What a machine cannot do is said in a line, before a model is loaded."""

from __future__ import annotations

import pytest
import torch

from chip_core.config.trial import TrialConfig
from chip_core.training.prepare import resolve_device
from chip_core.utils.errors import TrialError


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_gpu_that_does_not_compute_in_bf16_is_refused_for_it_alone(
    monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation  # a T4 computes it in fp32, and slowly

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    config = TrialConfig.model_validate({"model": {"path": "shapes", "dtype": dtype}})
    if dtype == "fp32":
        assert resolve_device(config) == torch.device("cuda", 0)
        return
    with pytest.raises(TrialError, match="bf16, and Tesla T4 does not compute in it: write") as why:
        resolve_device(config)
    assert "\n" not in str(why.value)
    on_cpu = config.model_copy(
        update={"engine": config.engine.model_copy(update={"device": "cpu"})}
    )
    assert resolve_device(on_cpu) == torch.device("cpu")
