"""Strategies in the configuration and the fingerprint; a user's own."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from chip_core.config.identity import find_inert_keys, fingerprint, training_identity
from chip_core.config.strategies import STRATEGIES, NoParameters
from chip_core.config.trial import RejectedImageConfig, TrialConfig
from chip_core.config.validation import find_key_problem, parse_trial_config
from chip_core.data.rejected_images import REJECTED_IMAGES, RejectedImageMaker
from chip_core.data.rejected_images.conformance import conformance, sample_image
from chip_core.recipes import parse_yaml
from chip_core.utils.errors import ConfigError

ROOT = Path(__file__).parents[4]

OWN = '''
from PIL import ImageOps

from chip_core.data.rejected_images import ImageStrategy, Traits
from chip_core.config.fields import Section, hashed


class Parameters(Section):
    bits: int = hashed(2, ge=1, le=8, doc="kept of each value")


class Posterize(ImageStrategy[Parameters]):
    """Few colours."""

    parameters = Parameters
    traits = Traits(random=False, keeps_size=True, void_where="an image of few colours")

    def reject(self, source):
        return ImageOps.posterize(source.image, self.settings.bits)


class Unfinished(ImageStrategy[Parameters]):
    parameters = Parameters
    traits = Traits(random=False, keeps_size=True)


class Liar(Posterize):
    traits = Traits(random=True, keeps_size=True, void_where="an image of few colours")


class Loose(Posterize):
    parameters = dict


class Stranger:
    parameters = Parameters
    traits = None


NUMBER = 3
'''


@pytest.fixture
def plugin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "my_images.py").write_text(OWN)
    (folder / "broken_images.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "my_images", raising=False)
    yield folder / "my_images.py"
    sys.modules.pop("my_images", None)


def parse_trial(rejected_image: Any) -> TrialConfig:
    return parse_trial_config({"model": "shapes", "rejected_image": rejected_image}, "x.yaml")


def make_fingerprint(rejected_image: Any) -> str:
    return fingerprint(
        training_identity(parse_trial(rejected_image), {"content": "m"}, {"content": "d"})
    )


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "inpaint"])
def test_what_is_inert_follows_from_the_traits(strategy: str) -> None:
    inert = find_inert_keys(parse_trial(strategy))
    for name, section in STRATEGIES.items():
        assert (f"rejected_image.{name}" in inert) == (
            name != strategy and section is not NoParameters
        )
    random = REJECTED_IMAGES[strategy].traits.random
    assert ("rejected_image.corruption_seed" in inert) != random
    assert ("rejected_image.redraw" in inert) != random
    assert (
        make_fingerprint({"strategy": strategy, "redraw": "each_epoch"})
        == make_fingerprint(strategy)
    ) != random
    assert make_fingerprint({"strategy": strategy, "parameters": {"any": 1}}) == make_fingerprint(
        strategy
    )


def test_settings_of_the_chosen_strategy_count() -> None:
    crop = {"strategy": "crop"}
    assert make_fingerprint({**crop, "crop": {"share": 0.2}}) != make_fingerprint(crop)
    assert make_fingerprint({**crop, "rotate": {"low": 20}}) == make_fingerprint(crop)
    assert make_fingerprint(
        {"strategy": "diffusion", "diffusion": {"schedule": "cosine"}}
    ) != make_fingerprint("diffusion")


def test_a_pipeline_counts_by_its_content(pipeline: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(pipeline, copy)
    at = [{"strategy": "inpaint", "inpaint": {"path": str(path)}} for path in (pipeline, copy)]
    assert make_fingerprint(at[0]) == make_fingerprint(at[1])
    other = tmp_path / "other"
    shutil.copytree(pipeline, other)
    (other / "tokenizer" / "merges.txt").write_text("#version: 0.3\n")
    assert make_fingerprint(
        {"strategy": "inpaint", "inpaint": {"path": str(other)}}
    ) != make_fingerprint(at[0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("diffsion", "rejected_image.strategy: unknown level 'diffsion': did you mean 'diffusion'"),
        ({"strategy": "crop", "crop": {"share": 2}}, "rejected_image.crop.share: input should be"),
        ({"rotate": {"low": 90}}, "rejected_image.rotate: low is 90, above high, 80: swap them"),
        ("inpaint", "'inpaint' needs rejected_image.inpaint.path: a pipeline's folder"),
        ({"strategy": "inpaint", "inpaint": {"path": "/no"}}, "no diffusers pipeline in /no"),
        ("nowhere_module:X", "module nowhere_module cannot be imported (ModuleNotFoundError: No"),
        ("broken_images:X", "No module named 'nowhere_to_be_found'"),
        (":X", "':X' does not name any code: write module:attr"),
        ("my_images:Absent", "'my_images:Absent': module my_images has no 'Absent'"),
        ("my_images:NUMBER", "strategy: 'my_images:NUMBER' is not a rejected-image strategy"),
        ("my_images:Loose", "`parameters` is not a subclass of chip_core.config.fields.Section"),
        ({"strategy": "my_images:Posterize", "parameters": {"bits": 9}}, "bits: Input should be"),
        ({"strategy": "my_images:Posterize", "parameters": {"bit": 1}}, "bit: Extra inputs are"),
    ],
)
def test_errors_are_one_line(plugin_folder: Path, settings: Any, expected: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_trial(settings)
    (line,) = raised.value.problems
    assert line.startswith("x.yaml: rejected_image")
    assert expected in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("my_images:Unfinished", "is not complete: it has no reject()"),
        ("my_images:Stranger", "make it a subclass of"),
    ],
)
def test_what_is_no_strategy_is_told_when_planned(
    plugin_folder: Path, name: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match="is n") as raised:
        make_fingerprint(name)
    assert expected in str(raised.value)


def test_a_strategy_of_ones_own(plugin_folder: Path) -> None:
    config = RejectedImageConfig.model_validate(
        {"strategy": "my_images:Posterize", "parameters": {"bits": 1}}
    )
    assert set(conformance(config).values()) == {None}
    made = RejectedImageMaker(config).preview(_make_pair(sample_image(0)))
    assert set(made.image.convert("RGB").getchannel("R").tobytes()) <= {0, 128}


def test_the_example_of_the_documentation(plugin_folder: Path) -> None:
    text = (ROOT / "docs" / "rejected-images.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    plugin_folder.write_text(example)
    (written,) = re.findall(r"```yaml\n(rejected_image: .*?)```", text, re.DOTALL)
    config = parse_trial(parse_yaml(written, "docs")["rejected_image"]).rejected_image
    assert set(conformance(config).values()) == {None}


def test_its_settings_and_its_source_are_in_the_fingerprint(plugin_folder: Path) -> None:
    plain = make_fingerprint("my_images:Posterize")
    # Default.
    assert make_fingerprint({"strategy": "my_images:Posterize", "parameters": {"bits": 2}}) == plain
    assert make_fingerprint({"strategy": "my_images:Posterize", "parameters": {"bits": 3}}) != plain
    plugin_folder.write_text(OWN + "\n# changed\n")
    assert make_fingerprint("my_images:Posterize") != plain


def test_the_suite_finds_a_false_declaration(plugin_folder: Path) -> None:
    found = conformance(RejectedImageConfig(strategy="my_images:Liar"))
    wrong = {check: problem for check, problem in found.items() if problem}
    assert wrong == {
        "another key gives another draw where it is random": (
            "declared random, but another seed gives the same image"
        )
    }


def test_keys_of_a_users_own_settings_may_be_varied() -> None:
    assert find_key_problem("rejected_image.parameters.bits") is None
    assert find_key_problem("rejected_image.parameter.bits") is not None


def _make_pair(image: Image.Image) -> Any:
    from chip_core.data.preferences import PreferencePair

    return PreferencePair(id="x", image=image, prompt="", chosen="", rejected="")
