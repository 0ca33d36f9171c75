"""Malformed models and checkpoints: told, never unpickled, never read outside their folder."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chip_core import recipes
from chip_core.config.trial import ModelConfig, TrialConfig
from chip_core.config.validation import parse_trial_config
from chip_core.models import loading
from chip_core.shapes import MODEL_FOLDER
from chip_core.trained import read_trained
from chip_core.training import checkpoint as checkpoints
from chip_core.utils.errors import TrialError

from . import refusals

KIND = "checkpoints"
STUDY = "study: small\nrecipe: own.yaml\nfactors: {vision_encoder: [frozen, trained]}\n"


class MaliciousPickle:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch pwned",)


def make_config_json(**changes: Any) -> bytes:
    held = json.loads((MODEL_FOLDER / "config.json").read_text())
    return json.dumps({**held, **changes}).encode()


def make_safetensors(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def make_one_tensor(**changes: Any) -> bytes:
    return make_safetensors(
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}, b"1234"
    )


#: What a model's folder holds in place of its own files; None: nothing.
FOLDERS: dict[str, dict[str, bytes | None]] = {
    "no configuration": {"config.json": None},
    "an empty configuration": {"config.json": b""},
    "a configuration of a list": {"config.json": b"[]"},
    "a configuration too deep": {"config.json": b"[" * 100_000},
    "a configuration of 5,000 digits": {"config.json": b'{"a": ' + b"9" * 5000 + b"}"},
    "a configuration not UTF-8": {"config.json": b'{"model_type": "\xff"}'},
    "no family": {"config.json": b"{}"},
    "a family of lists": {"config.json": b'{"model_type": ["llava"]}'},
    "a family that climbs": {"config.json": b'{"model_type": "../../x"}'},
    "an unknown family": {"config.json": make_config_json(model_type="gpt2")},
    "code of its own": {
        "config.json": make_config_json(
            model_type="evil", auto_map={"AutoModelForImageTextToText": "evil.Model"}
        ),
        "evil.py": b"open('pwned', 'w')",
    },
    "an adapter": {"adapter_config.json": b"{}"},
    "no weights": {"model.safetensors": None},
    "a pickle for weights": {
        "model.safetensors": None,
        "pytorch_model.bin": pickle.dumps(MaliciousPickle()),
    },
    "a pickle by another name": {"model.safetensors": pickle.dumps(MaliciousPickle())},
    "empty weights": {"model.safetensors": b""},
    "a header too long": {"model.safetensors": make_safetensors({}, length=2**63)},
    "a header cut short": {"model.safetensors": make_safetensors({}, length=100)},
    "a header of text": {"model.safetensors": make_safetensors(b"hello")},
    "a header too deep": {"model.safetensors": make_safetensors(b"[" * 50_000)},
    "weights beyond the end": {"model.safetensors": make_one_tensor(data_offsets=[0, 2**40])},
    "weights before the start": {"model.safetensors": make_one_tensor(data_offsets=[-4, 0])},
    "weights the wrong way round": {"model.safetensors": make_one_tensor(data_offsets=[4, 0])},
    "weights of 2^62 numbers": {"model.safetensors": make_one_tensor(shape=[2**31, 2**31])},
    "weights of an unknown kind": {"model.safetensors": make_one_tensor(dtype="PICKLE")},
    "an index that climbs": {
        "model.safetensors.index.json": b'{"weight_map": {"a": "../../../etc/passwd"}}'
    },
    "an absolute index": {"model.safetensors.index.json": b'{"weight_map": {"a": "/etc/passwd"}}'},
    "an index of lists": {"model.safetensors.index.json": b'{"weight_map": {"a": ["b"]}}'},
    "an index too deep": {"model.safetensors.index.json": b"[" * 100_000},
    "an index without a map": {"model.safetensors.index.json": b"[]"},
}


def write_model(folder: Path, changed: dict[str, bytes | None]) -> Path:
    shutil.copytree(MODEL_FOLDER, folder)
    for name, content in changed.items():
        (folder / name).unlink(missing_ok=True)
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_models_by_hand(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "model", FOLDERS[name])
    (tmp_path / "own.yaml").write_text(f"model: {folder}\n")
    (tmp_path / "study.yaml").write_text(STUDY)
    where = str(tmp_path / "runs")
    refusals.expect_program_refusal(
        KIND, tmp_path, "plan", str(tmp_path / "study.yaml"), "--workdir", where
    )
    refusals.expect_refusal(
        "trials FAILED", lambda: loading.load(ModelConfig(path=str(folder))), TrialError
    )
    assert not Path("pwned").exists()


#: What only loading sees.
PARTS: dict[str, dict[str, bytes | None]] = {
    "weights of another model": {"model.safetensors": make_one_tensor()},
    "no tokenizer": {"tokenizer.json": None, "tokenizer_config.json": None},
    "no chat template": {"chat_template.jinja": None},
}


@pytest.mark.parametrize("name", PARTS)
def test_models_that_only_loading_sees(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / "model", PARTS[name])
    refusals.expect_refusal(KIND, lambda: loading.load(ModelConfig(path=str(folder))), TrialError)


def test_an_adapter_of_pickled_weights(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(MaliciousPickle()))
    act = lambda: loading.load(ModelConfig(path="shapes"), trained=tmp_path)  # noqa: E731
    refusals.expect_refusal("trials FAILED", act, TrialError)
    assert not Path("pwned").exists()


@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_models_by_hypothesis(tmp_path: Path, data: st.DataObject) -> None:
    """A configuration or a header of weights, some of its bytes changed: told, or as good."""
    folder = tmp_path / "model"
    if not folder.exists():
        write_model(folder, {"model.safetensors": make_one_tensor()})
    name = data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    good = make_config_json() if name == "config.json" else make_one_tensor()
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / name).write_bytes(content[: data.draw(st.integers(1, len(content)))])
    said = loading.find_model_problem(ModelConfig(path=str(folder)))
    (folder / name).write_bytes(good)
    if said is not None:
        refusals.count_refusal(f"{KIND}, generated", said)


@pytest.fixture
def config() -> TrialConfig:
    return parse_trial_config(recipes.read_yaml(recipes.find_recipe("shapes")), "test")


@pytest.fixture
def interrupted_trial(tmp_path: Path, config: TrialConfig) -> Path:
    """A trial's folder with a checkpoint that is whole but for its state."""
    folder = tmp_path / "attempt"
    (folder / "checkpoints" / "step-00000002").mkdir(parents=True)
    return folder


def write_manifest(folder: Path, config: TrialConfig, **changes: Any) -> None:
    """Write the manifest that fits what lies in the checkpoint: whoever sends one can do that."""
    place = folder / "checkpoints" / "step-00000002"
    held = {
        path.name: {"bytes": path.stat().st_size, "sha256": checkpoints.hash_file(path)}
        for path in place.iterdir()
    }
    said = {
        "format": 1,
        "step": 2,
        "training": checkpoints._compute_training_fingerprint(config),
        "files": held,
    }
    (place / "manifest.json").write_text(json.dumps({**said, **changes}))


def restore(folder: Path, config: TrialConfig) -> checkpoints.ResumePoint:
    kept: dict[str, Any] = {"model": torch.nn.Module(), "optimizer": None, "stateful": {}}
    return checkpoints.Checkpointer(config, **kept).restore(folder)


STATES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_bytes(b"hello"),
    "a pickle that runs": lambda file: file.write_bytes(pickle.dumps(MaliciousPickle())),
    "a pickle of torch's that runs": lambda file: torch.save({"random": MaliciousPickle()}, file),
    "a pickle of an object": lambda file: torch.save({"random": Path("x")}, file),
    "an old pickle that runs": lambda file: torch.save(
        MaliciousPickle(), file, _use_new_zipfile_serialization=False
    ),
    "a cut archive": lambda file: (
        torch.save({"a": torch.zeros(9)}, file),
        file.write_bytes(file.read_bytes()[:200]),
    ),
    "an archive of nothing": lambda file: file.write_bytes(b"PK\x05\x06" + b"\0" * 18),
}


@pytest.mark.parametrize("name", STATES)
def test_states_by_hand(interrupted_trial: Path, config: TrialConfig, name: str) -> None:
    """The manifest says that all is whole; the training begins anew and says why."""
    STATES[name](interrupted_trial / "checkpoints" / "step-00000002" / "state.pt")
    write_manifest(interrupted_trial, config)
    resumed = restore(interrupted_trial, config)
    assert resumed.step == 0
    assert "is not used: state.pt" in resumed.notes[0]
    refusals.count_refusal(KIND, resumed.notes[0])
    assert not Path("pwned").exists()


def test_a_state_that_lacks_its_parts_ends_the_trial(
    interrupted_trial: Path, config: TrialConfig
) -> None:
    torch.save({"a": 1}, interrupted_trial / "checkpoints" / "step-00000002" / "state.pt")
    write_manifest(interrupted_trial, config)
    act = lambda: restore(interrupted_trial, config)  # noqa: E731
    assert "is complete but cannot be used" in refusals.expect_refusal(
        "trials FAILED", act, TrialError
    )


MANIFESTS: dict[str, bytes | dict[str, Any]] = {
    "empty": b"",
    "a list": b"[]",
    "deep": b"[" * 100_000,
    "5,000 digits": b'{"format": ' + b"9" * 5000 + b"}",
    "not UTF-8": b'{"format": "\xff"}',
    "another format": {"format": 3},
    "another training": {"training": "0"},
    "files of a list": {"files": ["state.pt"]},
    "files of numbers": {"files": {"state.pt": 1}},
    "a file that climbs": {"files": {"../../secret": {"bytes": 6, "sha256": "0"}}},
    "an absolute file": {"files": {"/etc/passwd": {"bytes": 1, "sha256": "0"}}},
    "a file of a null byte": {"files": {"\0": {"bytes": 1, "sha256": "0"}}},
    "a file no name is": {"files": {"x" * 5000: {"bytes": 1, "sha256": "0"}}},
    "a file that is gone": {"files": {"gone": {"bytes": 1, "sha256": "0"}}},
    "another size": {"files": {"state.pt": {"bytes": 1, "sha256": "0"}}},
    "another content": {"files": {"state.pt": {"bytes": 5, "sha256": "0"}}},
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_by_hand(interrupted_trial: Path, config: TrialConfig, name: str) -> None:
    (interrupted_trial / "secret").write_bytes(b"secret")
    place = interrupted_trial / "checkpoints" / "step-00000002"
    (place / "state.pt").write_bytes(b"hello")
    changed = MANIFESTS[name]
    if isinstance(changed, bytes):
        (place / "manifest.json").write_bytes(changed)
    else:
        write_manifest(interrupted_trial, config, **changed)
    resumed = restore(interrupted_trial, config)
    assert resumed.step == 0
    refusals.count_refusal(KIND, resumed.notes[0])


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, '{"steps": 1}', '{"more": 1}', "{"])
def test_what_a_training_left_beside_its_model(tmp_path: Path, content: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "trained.json").write_text(content)
    assert read_trained(tmp_path) is None  # it is trained anew
