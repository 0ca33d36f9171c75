"""A released checkpoint becomes a folder of ours; whatever does not fit is refused by its name."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from chip_core.config.trial import ModelConfig
from chip_core.models import loading
from chip_core.models.muffin.convert import convert, main
from chip_core.models.muffin.released import rename_tensor, resize_positions
from chip_core.utils.errors import UserError

from . import checkpoints

BEIT = "model.vision_tower.beit3."
POSITIONS = f"{BEIT}encoder.embed_positions.A.weight"


def to_keyword(name: str) -> str:
    """Return a tensor's name as a keyword of `write_checkpoint`."""
    return name.replace(".", "__")


def check_round_trip(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    """Check that every released tensor is there under its new name, or dropped by rule."""
    model, _ = loading.load(ModelConfig(path=str(folder)))
    state = model.state_dict()
    used = {
        own: value for name, value in tensors.items() if (own := rename_tensor(name)) is not None
    }
    assert used.keys() == state.keys()
    assert all(torch.equal(state[name], value) for name, value in used.items())


@pytest.mark.parametrize("bins", [0, 3])
def test_a_round_trip(tmp_path: Path, bins: int) -> None:
    source = checkpoints.write_checkpoint(tmp_path / "released", bins=bins)
    assert main([str(source), str(tmp_path / "dst"), "--vision-heads", str(checkpoints.HEADS)]) == 0
    check_round_trip(checkpoints.make_weights(), tmp_path / "dst")
    assert len(list((tmp_path / "dst").glob("*.safetensors"))) == max(bins, 1)
    model, processor = loading.load(ModelConfig(path=str(tmp_path / "dst")))
    assert model.generation_config.stop_strings == ["###"]
    assert model.config.vision_config.image_size == processor.image_processor.size["height"] == 12
    assert (
        model.config.image_token_id
        == processor.image_token_id
        == len(checkpoints.list_pieces()) + 1
    )
    dropped = [name for name in checkpoints.list_tensor_shapes() if rename_tensor(name) is None]
    assert dropped == [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        f"{BEIT}text_embed.weight",
        f"{BEIT}vision_embed.mask_token",
    ]


def test_a_round_trip_of_the_conformance_cases(oracles: Path, tmp_path: Path) -> None:
    source = checkpoints.copy_oracle_checkpoint(tmp_path / "released", oracles)
    convert(source, tmp_path / "dst", vision_heads=4)
    check_round_trip(load_file(source / "model.safetensors"), tmp_path / "dst")


def test_another_image_size(tmp_path: Path) -> None:
    source = checkpoints.write_checkpoint(tmp_path / "released")
    convert(source, tmp_path / "dst", image_size=20, vision_heads=2)
    model, processor = loading.load(ModelConfig(path=str(tmp_path / "dst")))
    wanted = resize_positions(checkpoints.make_weights()[POSITIONS], 20 // checkpoints.PATCH)
    assert wanted.shape == (5 * 5 + 3, checkpoints.WIDTH)
    assert torch.equal(model.model.vision_tower.image_positions.weight, wanted)
    assert processor.image_processor.size == {"height": 20, "width": 20}


def test_positions_between_two_patches_of_one_value_have_it() -> None:
    table = torch.cat([torch.arange(3.0)[:, None], torch.full((4, 1), 7.0)])
    resized = resize_positions(table, 3)
    assert resized[:3].flatten().tolist() == [0, 1, 2]
    assert resized[3:].flatten().tolist() == pytest.approx([7.0] * 9)


class _Malicious:
    """What a pickle may hold: a call that is made when it is read."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


def _pickled(folder: Path) -> str:
    source = checkpoints.write_checkpoint(folder, bins=1)
    (file,) = source.glob("*.bin")
    file.write_bytes(pickle.dumps(_Malicious(), protocol=2))
    return f"{file.name} is not a weights file .*: nothing in it was run"


def _of_text(folder: Path) -> str:
    source = checkpoints.write_checkpoint(folder, bins=1)
    (file,) = source.glob("*.bin")
    torch.save({"model.query": torch.zeros(3, 16), "epoch": 3}, file)
    return f"{file.name}: epoch is a int, not a tensor"


def _lacks_a_shard(folder: Path) -> str:
    source = checkpoints.write_checkpoint(folder, bins=2)
    next(iter(sorted(source.glob("*.bin")))).unlink()
    return "has no pytorch_model-00001-of-00002.bin"


def _missing(folder: Path) -> str:
    name = f"{BEIT}encoder.layers.1.ffn.B.fc1.bias"
    checkpoints.write_checkpoint(folder, **{to_keyword(name): None})
    return "no tensor in it becomes model.vision_tower.layers.1.query.fc1.bias"


def _extra(folder: Path) -> str:
    checkpoints.write_checkpoint(folder, **{to_keyword("model.adapter.weight"): torch.zeros(2)})
    return "model.adapter.weight does not belong to any part of Muffin"


def _misshapen(folder: Path) -> str:
    checkpoints.write_checkpoint(
        folder, **{to_keyword("model.mm_projector.weight"): torch.zeros(16, 5)}
    )
    return r"model.mm_projector.weight has the shape \(16, 5\), not \(16, 16\)"


def _no_square(folder: Path) -> str:
    checkpoints.write_checkpoint(
        folder, **{to_keyword(POSITIONS): torch.zeros(11, checkpoints.WIDTH)}
    )
    return f"{POSITIONS}: 11 rows are not 3 and a square"


def _other_tokens(folder: Path) -> str:
    source = checkpoints.write_checkpoint(folder)
    (source / "added_tokens.json").write_text(json.dumps({"<im_patch>": 5}))
    return f"<im_patch> is 5 there, but should be {len(checkpoints.list_pieces()) + 1}"


def _other_vocabulary(folder: Path) -> str:
    source = checkpoints.write_checkpoint(folder)
    (source / "config.json").write_text(json.dumps({**checkpoints.make_config(), "vocab_size": 9}))
    return "they are from different checkpoints"


def _no_tokenizer(folder: Path) -> str:
    (checkpoints.write_checkpoint(folder) / "tokenizer.model").unlink()
    return "no .*tokenizer.model"


def _no_weights(folder: Path) -> str:
    (checkpoints.write_checkpoint(folder) / "model.safetensors").unlink()
    return "no weights in"


@pytest.mark.parametrize(
    "spoilt",
    [
        _pickled, _of_text, _lacks_a_shard, _missing, _extra, _misshapen, _no_square,
        _other_tokens, _other_vocabulary, _no_tokenizer, _no_weights,
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(spoilt: Any, tmp_path: Path) -> None:
    complaint = spoilt(tmp_path / "released")
    with pytest.raises(UserError, match=complaint):
        convert(tmp_path / "released", tmp_path / "dst", vision_heads=checkpoints.HEADS)
    assert not (tmp_path / "dst").exists()
    assert not Path("harm").exists()


def test_a_tower_that_is_not_known_wants_its_heads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = checkpoints.write_checkpoint(tmp_path / "released")
    assert main([str(source), str(tmp_path / "dst")]) == 2
    told = capsys.readouterr().err
    assert "'beit3_tiny_patch4_12' is not known" in told and "--vision-heads" in told
    assert main([str(source), str(source), "--vision-heads", "2"]) == 2
    assert "already exists" in capsys.readouterr().err
