"""A loss term of a user's own: checked as the shipped ones, part of the fingerprint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from chip_core.config.identity import fingerprint, training_identity
from chip_core.config.trial import TrialConfig
from chip_core.objectives import ObjectiveConfig
from chip_core.objectives.custom import check_term, load_term, term_needs
from chip_core.objectives.forms import compute_objective
from chip_core.objectives.losses import Inputs
from chip_core.objectives.scores import ResponseScores
from chip_core.utils.errors import TrialError

from ..naive_forward import compute_view_objective

SOURCE = """
import torch.nn.functional as F

def conditional(chosen, rejected, rejected_image, beta):
    return -F.logsigmoid(beta * (chosen.log_ratio() - rejected_image.log_ratio()))

conditional.needs = {"rejected_image"}

def whole_batch(chosen, rejected, rejected_image, beta):
    return chosen.log_ratio() - chosen.log_ratio().mean()

def sees_padding(chosen, rejected, rejected_image, beta):
    return chosen.policy_logps.sum(-1)

def scalar(chosen, rejected, rejected_image, beta):
    return chosen.log_ratio().mean()

def raises(chosen, rejected, rejected_image, beta):
    raise KeyError("no")

def constant(chosen, rejected, rejected_image, beta):
    return chosen.reference_sum()

def greedy(chosen, rejected, rejected_image, beta):
    return chosen.log_ratio()

greedy.needs = {"gold"}

def drift(chosen, rejected, rejected_image, beta):
    return beta * rejected.divergence()

drift.needs = {"divergence"}

number = 3

def one_name(chosen, rejected, rejected_image, beta):
    return beta * rejected.divergence()

one_name.needs = "divergence"

def no_names(chosen, rejected, rejected_image, beta):
    return chosen.log_ratio()

no_names.needs = 5

def quits(chosen, rejected, rejected_image, beta):
    raise SystemExit(3)

def of_three(chosen, rejected, rejected_image, beta):
    if len(chosen.mask) != 3:
        raise IndexError("not three")
    return chosen.log_ratio()

def unseen(inputs, beta):
    gap = inputs.views["chosen"].log_ratio() - inputs.views["rejected_image_rejected"].log_ratio()
    return -F.logsigmoid(beta * gap) * inputs.fields["weight"]

unseen.reads = {"chosen", "rejected_image_rejected"}
unseen.fields = {"weight"}

def over_the_mean(inputs, beta):
    known = inputs.facts.table.columns
    mean = (known["policy_chosen"] - known["reference_chosen"]).mean()
    return beta * (inputs.views["chosen"].log_ratio() - mean) ** 2

over_the_mean.reads = {"chosen"}
over_the_mean.scope = "scores"

def of_nothing(inputs, beta):
    return inputs.views["third"].log_ratio()

of_nothing.reads = {"third"}

def fixed(chosen, rejected, rejected_image, beta):
    import torch
    return torch.ones(3, dtype=torch.float64)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    file = tmp_path / "own_terms.py"
    file.write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield file
    sys.modules.pop("own_terms", None)


def find_faults(name: str) -> list[str]:
    return [wrong for _, wrong in check_term(load_term(f"own_terms:{name}")) if wrong]


def test_a_good_term_passes_every_check(module: Path) -> None:
    checks = list(check_term(load_term("own_terms:conditional")))
    assert len(checks) == 6
    assert find_faults("conditional") == []


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("whole_batch", "a batch of 3 differs from 3 batches of 1"),
        ("sees_padding", "two padded tokens changed the loss"),
        ("scalar", "it returned (), not one loss per pair, (3,)"),
        ("raises", "KeyError: 'no'"),
        ("quits", "SystemExit: 3"),
        ("of_three", "IndexError: not three"),
        ("fixed", "a batch of 3 differs from 3 batches of 1"),
        ("constant", "the loss does not depend on the policy's chosen log-probabilities"),
    ],
)
def test_a_bad_term_is_told(module: Path, name: str, wrong: str) -> None:
    assert wrong in find_faults(name)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("own_terms:nothing", "has no 'nothing'"),
        ("no_such_module:term", "cannot be imported"),
        ("own_terms:greedy", "needs gold: it may need"),
        ("own_terms", "does not name any code: write module:attr"),
        ("own_terms:number", "'own_terms:number' is not a function"),
        ("own_terms:no_names", "`needs` is 5: write names, such as {'divergence'}"),
    ],
)
def test_a_term_that_is_not_there_is_told(module: Path, name: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        ObjectiveConfig(custom={name: 1.0})


def test_a_negative_weight_is_refused(module: Path) -> None:
    with pytest.raises(ValueError, match="'own_terms:conditional' is negative: use 0 or more"):
        ObjectiveConfig(custom={"own_terms:conditional": -0.5})


def test_a_weight_of_zero_takes_it_out(module: Path) -> None:
    config = ObjectiveConfig(preset="dpo", custom={"own_terms:conditional": 0.0})
    assert config.active_custom == ()
    assert not config.needs_rejected_image


def test_a_term_is_added_with_its_weight(module: Path) -> None:
    from .test_forms import L, V, W

    config = ObjectiveConfig(preset="dpo", custom={"own_terms:conditional": 0.5})
    assert config.needs_rejected_image
    found = compute_view_objective(config, chosen=W, rejected=L, rejected_image=V)
    expected = -F.logsigmoid(torch.tensor(0.1 * 0.5)) - 0.5 * F.logsigmoid(torch.tensor(0.1))
    assert found.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert set(found.terms) == {"response", "own_terms:conditional"}


def make_fingerprint(write: Callable[[], object] = lambda: None) -> str:
    write()
    config = TrialConfig(model="shapes", objective={"custom": {"own_terms:conditional": 1.0}})
    return fingerprint(training_identity(config, {"content": "x"}, {}))


def test_one_need_may_be_a_bare_name(module: Path) -> None:
    assert term_needs(load_term("own_terms:one_name")) == {"divergence"}


def test_a_loss_of_another_shape_is_told_in_training(module: Path) -> None:
    from .test_forms import L, W

    config = ObjectiveConfig(preset="dpo", custom={"own_terms:scalar": 1.0})
    with pytest.raises(
        TrialError, match=r"'own_terms:scalar' returned \(\), not one loss per pair, \(1"
    ):
        compute_view_objective(config, chosen=W, rejected=L, rejected_image=None)


def test_it_is_given_the_divergence_where_it_asks_for_it(module: Path) -> None:
    from .test_forms import L, W

    assert not ObjectiveConfig(preset="dpo").needs_divergence
    config = ObjectiveConfig(terms=(), custom={"own_terms:drift": 2.0})
    assert config.needs_divergence
    found = compute_view_objective(config, chosen=W, rejected=L, rejected_image=None)
    assert found.loss.item() == pytest.approx(2 * 0.1 * 0.8)  # D_l = 0.5 + 0.3


def test_its_source_is_part_of_the_fingerprint(module: Path) -> None:
    before = make_fingerprint()
    assert make_fingerprint() == before
    assert make_fingerprint(lambda: module.write_text(SOURCE + "\n# changed\n")) != before


def test_a_term_reads_what_it_declares(module: Path) -> None:
    config = ObjectiveConfig(preset="dpo", custom={"own_terms:unseen": 1.0})
    assert config.views == ("rejected", "chosen", "rejected_image_rejected")
    assert (config.fields, config.scope, config.needs_rejected_image) == (("weight",), None, True)
    of_batch = ObjectiveConfig(preset="dpo", custom={"own_terms:over_the_mean": 1.0})
    assert (of_batch.scope, of_batch.fields) == ("scores", ())
    for name in ("unseen", "over_the_mean"):
        found = dict(check_term(load_term(f"own_terms:{name}")))
        assert found.pop("a pair's loss is its own", None) is None
        assert not any(found.values()), found
    with pytest.raises(ValueError, match="name third: views are "):
        load_term("own_terms:of_nothing")


def test_a_term_of_the_batch_is_computed_over_it(module: Path) -> None:
    def scores(ratio: list[float]) -> ResponseScores:
        policy = torch.tensor(ratio, dtype=torch.float64)[:, None]
        mask = torch.ones_like(policy, dtype=torch.bool)
        zero = torch.zeros_like(policy)
        return ResponseScores(policy_logps=policy, reference_logps=zero, mask=mask, changed=mask)

    config = ObjectiveConfig(preset="dpo", custom={"own_terms:over_the_mean": 1.0})
    views = {"chosen": scores([1.0, 2.0, 6.0]), "rejected": scores([0.0, 0.0, 0.0])}
    terms = compute_objective(config, Inputs(views=views)).terms
    # beta 0.1 times the squares of 1 − 3, 2 − 3, 6 − 3
    assert terms["own_terms:over_the_mean"].tolist() == pytest.approx([0.4, 0.1, 0.9])
