"""A pass made and read: what a training comes to with it is what it comes to without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

from chip_core.config.trial import TrialConfig
from chip_core.models import loading
from chip_core.reference_cache import build, shards
from chip_core.reference_cache import folder as folder_of_stores
from chip_core.reference_cache.build import build_shard, ensure_caches
from chip_core.reference_cache.finish import finish_cache
from chip_core.reference_cache.folder import (
    BrokenStoreError,
    partial_folder,
    remove,
    shard_name,
    store_folder,
)
from chip_core.reference_cache.reader import CacheReader
from chip_core.reference_cache.shards import OpenedStore
from chip_core.reference_cache.size import DiskSpaceError
from chip_core.reference_cache.spec import (
    AvailableCaches,
    CacheSpec,
    build_config,
    group_specs,
    list_cache_specs,
)
from chip_core.results import CURVES, Progress, TrialResult
from chip_core.training.batches import load_checked_pairs
from chip_core.training.policy import Policy
from chip_core.trial import run_trial
from chip_core.utils.errors import TrialError
from chip_core.utils.workers import Workers

from ..trainings import read_losses

Configured = Callable[..., TrialConfig]
ROWS = 10


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten samples are three shards; a batch of the pass is not a batch of the training."""
    monkeypatch.setattr(folder_of_stores, "SHARD_ROWS", 4)
    monkeypatch.setattr(build, "BATCH_SIZE", 3)


@pytest.fixture
def make_config(shapes_config: Configured) -> Configured:
    def made(**changes: Any) -> TrialConfig:
        given = {"data__limit": ROWS, "training__epochs": 2, "engine__feature_cache": "off"}
        return shapes_config(**{**given, **changes})

    return made


def list_specs(config: TrialConfig) -> tuple[CacheSpec, ...]:
    return list_cache_specs(config, {"content": "the model"}, {"source": "shapes"})


def build_caches(config: TrialConfig, cache: Path) -> AvailableCaches:
    ensure_caches(list_specs(config), config, cache=cache)
    return AvailableCaches(cache=cache, passes=list_specs(config))


def read_shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "chip"},
        {"objective": "dpo"},
        {"objective": "cmdpo", "rejected_image__redraw": "each_epoch"},
        {"objective": "chip", "language_model": "lora", "rejected_image": "crop"},
        {"objective": "dpo", "language_model": "frozen", "projector": "lora"},
        {"objective": "chip", "reference_cache": "bf16"},
        {"objective": "chip", "vision_encoder": "trained"},
        {"objective": "chip", "engine__prefix_sharing": "off"},
        {"objective": "tpo"},
        {"objective": {"preset": "vdpo", "method": {"guidance": "reference"}},
         "rejected_image": "mean"},
        {"objective": {"preset": "rdpo", "form": "released"}},
        {"objective": {"preset": "mpo", "method": {"shift": True}}},
    ],
)  # fmt: skip
def test_figures_are_the_live_ones(
    make_config: Configured, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = make_config(**changes, engine__feature_cache="on")
    stored = run_trial(
        config, folder=tmp_path / "stored", caches=build_caches(config, tmp_path / "cache")
    )
    live = run_trial(config, folder=tmp_path / "live")
    assert (stored.engine["reference"], live.engine["reference"]) == ("stored", "live")
    kept = config.vision_encoder == "frozen"
    assert stored.engine["image_features"] == ("stored" if kept else "computed")
    assert live.engine["image_features"] == "computed"
    assert stored.notes == live.notes
    assert len(live.notes) == (config.vision_encoder != "frozen")  # its layer that is not read
    one, other = read_losses(tmp_path / "stored"), read_losses(tmp_path / "live")
    assert len(one) == 3
    assert one == pytest.approx(other, rel=1e-5)


def test_bf16_shows_in_the_divergence_alone(make_config: Configured, tmp_path: Path) -> None:
    found = {}
    for precision in ("fp32", "bf16"):
        config = make_config(reference_cache=precision)
        cache = tmp_path / "cache"
        run_trial(config, folder=tmp_path / precision, caches=build_caches(config, cache))
        lines = (tmp_path / precision / CURVES).read_text().splitlines()
        found[precision] = [json.loads(line)["figures"] for line in lines]
    first, rounded = found["fp32"][0], found["bf16"][0]
    assert first["term/token"] != rounded["term/token"]
    assert first["term/token"] == pytest.approx(0, abs=1e-6)  # the policy is the reference
    assert abs(rounded["term/token"]) < 1e-3
    for term in ("response", "segment", "visual"):
        assert first[f"term/{term}"] == rounded[f"term/{term}"]


def test_what_rounding_does_is_noted(make_config: Configured, tmp_path: Path) -> None:
    def noted(**changes: Any) -> float:
        config = make_config(objective="hdpo", reference_cache="bf16", **changes)
        (one,) = list_specs(config)
        noted: float = ensure_caches([one], config, cache=tmp_path)[0].made["rounding"]
        return noted

    # bf16 has 8 bits: what is rounded by at most 1 in 256 moves a logit of this model by less
    assert 0 < noted() < 0.05
    assert noted(model__path="shapes", model__dtype="bf16") == 0  # the head reads bf16 anyway
    config = make_config(objective="hdpo")
    made = ensure_caches(list_specs(config), config, cache=tmp_path)[0].made
    assert made["prefix_sharing"] == "on"
    assert "rounding" not in made


def test_however_many_workers_and_passes_at_once_it_is_the_same_to_the_bit(
    make_config: Configured, tmp_path: Path
) -> None:
    config = make_config(engine__micro_batch=2, engine__feature_cache="on")
    assert len(list_specs(config)) == 4
    other = make_config(engine__micro_batch=1, engine__feature_cache="on", seed=5)
    for part in (1, 0):
        rows = build_shard(list_specs(config), other, cache=tmp_path / "two", part=part, parts=2)
    for one in list_specs(config):
        ensure_caches([one], config, cache=tmp_path / "alone")
        finish_cache(one, cache=tmp_path / "two", rows=rows, seconds=1.0)
        made = read_shards(store_folder(tmp_path / "alone", one.key))
        assert len(made) == (4 if one.hidden else 3)  # ceil(10 / 4), and the head
        assert made == read_shards(store_folder(tmp_path / "two", one.key))


def test_a_pass_without_a_part_is_none(make_config: Configured, tmp_path: Path) -> None:
    config = make_config(objective="dpo")
    (one,) = list_specs(config)
    rows = build_shard([one], config, cache=tmp_path, part=0, parts=2)
    with pytest.raises(BrokenStoreError, match=f"{shard_name(1)} was not built"):
        finish_cache(one, cache=tmp_path, rows=rows, seconds=1.0)


def test_arms_with_text_terms_read_logps_alone(make_config: Configured, tmp_path: Path) -> None:
    config = make_config(objective="dpo")
    (one,) = list_specs(config)
    (manifest,) = ensure_caches([one], config, cache=tmp_path)
    store = OpenedStore(store_folder(tmp_path, one.key))
    tokens = sum(len(store.row(place, f"{side}.ids")) for place in range(ROWS)
                 for side in ("chosen", "rejected"))  # fmt: skip
    # 4 bytes for a token's id, 4 for its log-probability; offsets and headers come on top
    assert 8 * tokens < manifest.bytes < 8 * tokens + 3 * 1024
    assert not list(store.folder.glob("head*"))


def test_a_store_with_hidden_states_serves_arms_without_the_token_term(
    make_config: Configured, tmp_path: Path
) -> None:
    chip, dpo = make_config(objective="hdpo"), make_config(objective="dpo")
    result = run_trial(dpo, folder=tmp_path / "dpo", caches=build_caches(chip, tmp_path / "cache"))
    run_trial(dpo, folder=tmp_path / "live")
    assert result.engine["reference"] == "stored"
    assert read_losses(tmp_path / "dpo") == pytest.approx(read_losses(tmp_path / "live"), rel=1e-5)


class _Stopped(Exception):
    pass


def test_what_was_interrupted_goes_on_with_what_is_whole(
    make_config: Configured, tmp_path: Path
) -> None:
    config = make_config(objective="hdpo")
    (one,) = list_specs(config)
    folder = store_folder(tmp_path / "cache", one.key)

    def stop(progress: Progress) -> None:
        if progress.phase == "reference pass" and progress.done > 8:
            raise _Stopped

    with pytest.raises(_Stopped):
        ensure_caches([one], config, cache=tmp_path / "cache", report=stop)
    assert not folder.exists()
    partial = partial_folder(folder)
    assert (partial / shard_name(1)).exists()
    os.truncate(partial / shard_name(1), 50)  # a crash may leave that
    told: list[int] = []
    ensure_caches([one], config, cache=tmp_path / "cache", report=lambda progress: told.append(
        progress.total if progress.phase == "reference pass" else 0))  # fmt: skip
    assert max(told) == 4 + 2  # shards 1 and 2 of 4, 4 and 2 samples: shard 0 was whole
    ensure_caches([one], config, cache=tmp_path / "whole")
    assert read_shards(folder) == read_shards(store_folder(tmp_path / "whole", one.key))
    assert not partial.exists()
    told.clear()
    ensure_caches([one], config, cache=tmp_path / "cache", report=lambda progress: told.append(1))
    assert told == []  # it is there


#: Makes a pass in processes of its own, which it forks: what all of them import is imported once.
PROGRAM = """
import json, multiprocessing, os, signal, sys
from pathlib import Path
from chip_core import recipes
from chip_core.reference_cache import build, folder
from chip_core.reference_cache.spec import list_cache_specs
from chip_core.config.validation import parse_trial_config, set_key
import chip_core.trial, transformers.models.clip.modeling_clip
import transformers.models.llava.modeling_llava
folder.SHARD_ROWS, build.BATCH_SIZE = 4, 3
cache, told = map(Path, sys.argv[1:])
def make(name, dies):
    sys.stdout = (told / name).open("w")
    tree = recipes.read_yaml(recipes.find_recipe("shapes"))
    for key, value in {
        "objective": "dpo", "data.limit": 10, "engine.feature_cache": "off"
    }.items():
        set_key(tree, key, value)
    config = parse_trial_config(tree, "test")
    (one,) = list_cache_specs(config, {"content": "the model"}, {"source": "shapes"})
    def report(progress):
        print(progress.phase, progress.done, flush=True)
        if dies and progress.done == 7:
            os.kill(os.getpid(), signal.SIGKILL)
    build.ensure_caches([one], config, cache=cache, report=report)
    print(one.key, flush=True)
def ends(*processes):
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]
def maker(name, dies=False):
    return multiprocessing.get_context("fork").Process(target=make, args=(name, dies))
killed = ends(maker("killed", dies=True))
left = sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*"))
print(json.dumps([killed, left, ends(maker("one"), maker("other"))]))
"""


def test_two_at_once_make_it_once_also_where_one_is_killed(tmp_path: Path) -> None:
    cache, told = tmp_path / "cache", tmp_path / "told"
    cache.mkdir()
    told.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(cache), str(told)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    killed, left, ends = json.loads(done.stdout)
    assert killed == [-9]
    assert any(name.endswith(".partial") for name in left)
    assert not any(name.endswith("manifest.json") for name in left)
    assert ends == [0, 0]
    said = [(told / name).read_text().splitlines() for name in ("one", "other")]
    assert said[0][-1] == said[1][-1]
    made = [any(line.startswith("reference pass") for line in lines) for lines in said]
    assert sorted(made) == [False, True]
    assert [path.name for path in cache.iterdir()] == [said[0][-1][:32]]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: remove(folder), "it does not exist"),
        (lambda folder: os.truncate(folder / shard_name(1), 9), "is cut off: 9 of"),
    ],
)
def test_a_trial_whose_store_is_gone_or_broken_computes_and_says_so(
    make_config: Configured, tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    config = make_config()
    stores = build_caches(config, tmp_path / "cache")
    damage(store_folder(stores.cache, stores.passes[1].key))
    result = run_trial(config, folder=tmp_path / "trial", caches=stores)
    run_trial(config, folder=tmp_path / "live")
    assert result.engine["reference"] == "partly stored"
    (note,) = result.notes
    assert said in note
    assert "rejected image diffusion" in note
    assert read_losses(tmp_path / "trial") == pytest.approx(
        read_losses(tmp_path / "live"), rel=1e-5
    )


def run_without_caches(config: TrialConfig, stores: AvailableCaches, folder: Path) -> TrialResult:
    result = run_trial(config, folder=folder, caches=stores)
    assert result.engine["reference"] == "live"
    return result


def test_features_are_the_towers_and_no_more(make_config: Configured, tmp_path: Path) -> None:
    config = make_config(objective="dpo", engine__feature_cache="on")
    one = list_specs(config)[1]
    (manifest,) = ensure_caches([one], config, cache=tmp_path)
    assert one.name == "image features"
    model, processor = loading.load(config.model)
    vision = model.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    values = OpenedStore(store_folder(tmp_path, one.key)).row(3, "hidden_states:-2.values")
    assert values.shape == (1, patches, vision.hidden_size)
    a_sample = 4 * patches * vision.hidden_size
    assert ROWS * a_sample < manifest.bytes < ROWS * a_sample + 3 * 1024


def test_features_under_a_trained_tower_are_not_used(
    make_config: Configured, tmp_path: Path
) -> None:
    frozen = make_config(objective="dpo", engine__feature_cache="on")
    stores = build_caches(frozen, tmp_path / "cache")
    trained = make_config(objective="dpo", vision_encoder="trained")
    result = run_trial(trained, folder=tmp_path / "trial", caches=stores)
    assert result.engine["image_features"] == "computed"
    assert [note for note in result.notes if "are within the tower" in note]


def test_features_of_a_tower_that_is_another_are_not_used(
    make_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(objective="dpo", engine__feature_cache="on")
    one = list_specs(config)[1]
    load = loading.load

    def other(*given: Any, **options: Any) -> Any:
        model, processor = load(*given, **options)
        with torch.no_grad():
            for parameter in model.get_encoder(modality="image").parameters():
                parameter.mul_(1.02)
        return model, processor

    with monkeypatch.context() as patched:
        patched.setattr(loading, "load", other)
        ensure_caches([one], config, cache=tmp_path / "cache")
    stores = AvailableCaches(cache=tmp_path / "cache", passes=(one,))
    result = run_trial(config, folder=tmp_path / "trial", caches=stores)
    assert (result.engine["reference"], result.engine["image_features"]) == ("live", "computed")
    assert "hidden states differ by" in result.notes[0]


def test_a_store_of_another_model_is_not_used(
    make_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A hub name may mean other weights tomorrow: what the store is of, by name, is the same.
    config = make_config(objective="dpo")
    load = loading.load

    def other(*given: Any, **options: Any) -> Any:
        model, processor = load(*given, **options)
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(1.05)
        return model, processor

    with monkeypatch.context() as patched:
        patched.setattr(loading, "load", other)
        stores = build_caches(config, tmp_path / "cache")
    (note,) = run_without_caches(config, stores, tmp_path / "trial").notes
    assert "its log-probabilities are not this model's" in note


def test_in_bf16_what_is_stored_is_what_is_computed_to_rounding(
    make_config: Configured, tmp_path: Path
) -> None:
    """Hidden states are bf16 in either, and kept in bf16 whatever the key says.

    A pass computes other pairs together than a step does, which in bf16 may round otherwise.
    """
    config = make_config(model={"path": "shapes", "dtype": "bf16"}, reference_cache="fp32")
    stores = build_caches(config, tmp_path / "cache")
    assert [spec.hidden for spec in stores.passes if spec.kind == "text"] == ["bf16"]
    live = run_trial(config, folder=tmp_path / "live")
    stored = run_trial(config, folder=tmp_path / "stored", caches=stores)
    assert (live.engine["reference"], stored.engine["reference"]) == ("live", "stored")
    assert read_losses(tmp_path / "stored") == pytest.approx(
        read_losses(tmp_path / "live"), rel=1e-3
    )


def test_a_store_that_one_worker_cannot_use_none_does(
    make_config: Configured, tmp_path: Path
) -> None:
    """Each worker's machine has a disk of its own: else one would read and another compute."""

    class Other(Workers):
        said: ClassVar[str | None] = None

        def gather_results(self, make: Any) -> list[Any]:
            return [make(), type(self).said]

    class Broken(Other):
        said: ClassVar[str | None] = "part 3 is missing"

    config = make_config(objective="dpo")
    stores = build_caches(config, tmp_path / "cache")
    model, processor = loading.load(config.model)
    pairs = load_checked_pairs(config, lambda _: None)
    policy = Policy(model, config.objective)
    for workers, opened in ((Other(size=2), 1), (Broken(size=2), 0)):
        found = CacheReader(stores).open(
            policy, config, processor=processor, pairs=pairs, workers=workers
        )
        assert len(found.stores) == opened
        assert ["part 3 is missing" in note for note in found.notes] == [True] * (1 - opened)


def test_a_store_of_other_data_is_not_used(make_config: Configured, tmp_path: Path) -> None:
    config = make_config(objective="dpo")
    stores = build_caches(config, tmp_path / "cache")
    (note,) = run_without_caches(
        make_config(objective="dpo", data__limit=9), stores, tmp_path / "a"
    ).notes
    assert "it has 10 samples, but the data has 9" in note


def test_responses_that_changed_meanwhile_stop_the_trial(
    make_config: Configured, tmp_path: Path
) -> None:
    config = make_config(objective="dpo")
    stores = build_caches(config, tmp_path / "cache")
    (one,) = stores.passes
    folder = store_folder(stores.cache, one.key)
    whole = OpenedStore(folder)
    columns = [f"{side}.{name}" for side in ("chosen", "rejected") for name in ("ids", "logps")]
    rows = [{name: whole.row(place, name) for name in columns} for place in range(ROWS)]
    for place in range(1, ROWS - 1):  # of what is looked at before the first step, nothing
        rows[place]["chosen.ids"] = rows[place]["chosen.ids"] + 1
    for number in range(3):
        shards.write_shard(partial_folder(folder), number, rows[4 * number : 4 * number + 4])
    finish_cache(one, cache=stores.cache, rows=ROWS, seconds=1.0)
    with pytest.raises(TrialError, match="has other chosen responses than this trial"):
        run_trial(config, folder=tmp_path / "trial", caches=stores)


def test_no_room_is_told_before_anything_is_computed(
    make_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(objective="hdpo")
    (one,) = list_specs(config)
    (manifest,) = ensure_caches([one], config, cache=tmp_path / "cache")
    free = manifest.bytes  # enough, and less than responses of `max_length` would take
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("U", (), {"free": free})())
    asked: list[int] = []
    monkeypatch.setattr(build, "check_disk_space", lambda cache, needed, what: asked.append(needed))
    ensure_caches([one], config, cache=tmp_path / "again")
    # All but offsets (2 × 5 numbers of 8 bytes a shard of 4) and headers (well under 1 kB a file).
    assert 0 < manifest.bytes - asked[0] < 4 * 1024
    monkeypatch.undo()
    monkeypatch.setattr(folder_of_stores, "SHARD_ROWS", 4)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("U", (), {"free": 1000})())
    with pytest.raises(
        DiskSpaceError, match="not enough space for the reference pass 'text, hidden states"
    ):
        ensure_caches([one], config, cache=tmp_path / "full")
    assert not list((tmp_path / "full").rglob("*.safetensors"))


def write_full_rows(folder: Path) -> str:
    """Write rows with all that an objective may read; return their file."""
    rows = []
    for number in range(ROWS):
        for name, colour in (("a", 20 * number), ("b", 255 - 20 * number)):
            Image.new("RGB", (64, 64), (colour, 90, 10)).save(folder / f"{name}{number}.png")
        chosen, rejected, other = "A red circle.", f"A blue square, {number}. Big.", "A circle."
        rows.append(
            {
                "image": f"a{number}.png", "prompt": "What is there?", "chosen": chosen,
                "rejected": rejected, "other": other, "second_image": f"b{number}.png",
                "second_prompt": "And here?",
                "opa_scores": {
                    "rejected_score": [[rejected[:-5], 2.5], ["Big.", 1.0]],
                    "revised_score": [[other, 2.0]],
                    "revised_image": [[other, 3.0]],
                },
            }
        )  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


@pytest.mark.parametrize("objective", ["symmpo", "opadpo"])
def test_third_responses_and_second_images_are_stored_too(
    make_config: Configured, tmp_path: Path, objective: str
) -> None:
    config = make_config(objective=objective, data__source=write_full_rows(tmp_path))
    stored = run_trial(
        config, folder=tmp_path / "stored", caches=build_caches(config, tmp_path / "cache")
    )
    live = run_trial(config, folder=tmp_path / "live")
    assert (stored.engine["reference"], live.engine["reference"]) == ("stored", "live")
    one, other_losses = read_losses(tmp_path / "stored"), read_losses(tmp_path / "live")
    assert one == pytest.approx(other_losses, rel=1e-5)
    assert one[-1] < one[0]


@pytest.mark.parametrize(
    "objectives", [("symmpo", "cmdpo"), ("opadpo", "symmpo"), ("tpo", "opadpo")]
)
def test_a_group_of_several_objectives_passes_is_made(
    make_config: Configured, tmp_path: Path, objectives: tuple[str, str]
) -> None:
    """Each asks other columns of the rows; a study's passes are made together."""
    source = write_full_rows(tmp_path)
    wanted = {
        spec.key: (spec, config)
        for config in (make_config(objective=one, data__source=source) for one in objectives)
        for spec in list_cache_specs(config, {"content": "a"}, {"files": ["a"]})
        if not spec.is_features
    }
    (group,) = group_specs([spec for spec, _ in wanted.values()])
    together = build_config([wanted[spec.key] for spec in group])
    assert build_shard(group, together, cache=tmp_path / "cache") == ROWS
