"""Presets that are sums of losses of margins: published cases, and cases with their arithmetic."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chip_core.config.identity import fingerprint, training_identity
from chip_core.config.trial import TrialConfig
from chip_core.config.validation import set_key
from chip_core.objectives import ObjectiveConfig
from chip_core.objectives.forms import compute_objective
from chip_core.objectives.from_logits import BatchOutput, PairLogits, batch_from_logits
from chip_core.objectives.global_batch import BatchTable, compute_batch_facts
from chip_core.objectives.losses import Inputs
from chip_core.objectives.parts import view_name
from chip_core.objectives.scores import ResponseScores

#: Case -> the objective that is to give it.
CASES: dict[str, dict[str, Any]] = {
    "trl_sigmoid": {"preset": "dpo"},
    "trl_hinge": {"preset": "hinge"},
    "trl_ipo": {"preset": "ipo"},
    "trl_nca_pair": {"preset": "nca_pair"},
    "trl_bco_pair": {"preset": "bco_pair"},
    "trl_sppo_hard": {"preset": "sppo_hard"},
    "trl_apo_zero": {"preset": "apo_zero"},
    "trl_apo_down": {"preset": "apo_down"},
    "trl_discopop": {"preset": "discopop"},
    "trl_sft": {"preset": "sft"},
    "trl_sigmoid_norm": {"preset": "sigmoid_norm"},
    "trl_sigmoid_beta_0.5": {"preset": "dpo", "beta": 0.5},
    "trl_hinge_beta_0.5": {"preset": "hinge", "beta": 0.5},
    "trl_ipo_beta_0.5": {"preset": "ipo", "beta": 0.5},
    "trl_sigmoid_norm_beta_2": {"preset": "sigmoid_norm", "beta": 2.0},
    "trl_robust": {"preset": "robust"},
    "trl_exo_pair": {"preset": "exo_pair"},
    "trl_aot": {"preset": "aot"},
    "trl_aot_unpaired": {"preset": "aot_unpaired"},
    "trl_sigmoid_forward_kl": {"preset": "forward_kl"},
    "trl_sigmoid_js_divergence": {"preset": "js_divergence"},
    "trl_sigmoid_ld_alpha_0.5": {"preset": "ld_dpo"},
    "trl_mpo": {"preset": "mpo"},
    "bco_pair_shift_first_batch": {"preset": "bco_pair", "method": {"shift": True}},
    "bco_pair_shift_second_batch": {"preset": "bco_pair", "method": {"shift": True}},
    "mpo_shift_first_batch": {"preset": "mpo", "method": {"shift": True}},
    "symmpo": {"preset": "symmpo"},
    "symmpo_beta2_0.2_lambda_1": {
        "preset": "symmpo", "method": {"second_beta": 0.2, "symmetric": 1.0},
    },
    "tpo": {"preset": "tpo"},
    "tpo_multiplied": {"preset": "tpo", "method": {"token_weights": "multiplied"}},
    "rdpo_released": {"preset": "rdpo", "form": "released"},
    "rdpo": {"preset": "rdpo"},
    "mdpo": {"preset": "mdpo"},
    "vdpo_gamma_0_dynamic": {"preset": "vdpo", "method": {"gamma": 0.0}},
    "vdpo_gamma_1": {"preset": "vdpo", "method": {"gamma": 1.0}},
    "vdpo_gamma_0.75_dynamic": {"preset": "vdpo"},
    "vdpo_gamma_1.5_dynamic": {"preset": "vdpo", "method": {"gamma": 1.5}},
    "vdpo_gamma_1.5_reference": {
        "preset": "vdpo", "method": {"gamma": 1.5, "guidance": "reference"},
    },
    "dama_first_step": {"preset": "dama"},
    "dama_gap_mean_0.8": {"preset": "dama"},
    "dadpo": {"preset": "dadpo"},
    "dadpo_alpha_0.5": {"preset": "dadpo", "method": {"alpha": 0.5}},
    "chairdpo": {"preset": "chairdpo"},
    "opadpo_padded_to_24": {"preset": "opadpo", "method": {"length": 24}},
    "opadpo_padded_to_896": {"preset": "opadpo"},
}  # fmt: skip

#: A response in the cases' names.
LETTERS = {"w": "chosen", "l": "rejected", "2": "other"}


def load_published_cases(oracles: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((oracles / "methods" / "cases.json").read_text())
    return loaded


def find_view(objective: ObjectiveConfig, key: str) -> str:
    """Return the view that a case's key means to an objective: its image 2 differs."""
    image, letter = key.split("_")
    second = "second_image" if objective.reads_image("second_image") else "rejected_image"
    return view_name("image" if image == "1" else second, LETTERS[letter])


def make_pairs(
    objective: ObjectiveConfig, rows: list[dict[str, Any]]
) -> tuple[list[PairLogits], list[dict[str, Tensor]]]:
    """Return a case's pairs, and each one's policy logits by key."""
    made, leaves = [], []
    for row in rows:
        start = len(row["prompt_ids"])

        def padded(logits: Tensor, start: int = start) -> Tensor:
            # Rows of the prompt but its last predict none of the response; nothing looks at them.
            return torch.cat([logits.new_full((start - 1, logits.shape[1]), torch.nan), logits])

        given = {
            who: {
                key: torch.tensor(values, dtype=torch.float64)
                for key, values in row[f"{who}_logits"].items()
            }
            for who in ("policy", "reference")
        }
        for logits in given["policy"].values():
            logits.requires_grad_()
        leaves.append(given["policy"])
        made.append(
            PairLogits(
                **{
                    f"{name}_ids": torch.tensor(row[f"{name}_ids"])
                    for name in ("prompt", "chosen", "rejected", "other")
                },
                **{
                    who: {
                        find_view(objective, key): padded(logits) for key, logits in by_key.items()
                    }
                    for who, by_key in given.items()
                },
                fields={name: row[name] for name in row if name.endswith("_scores")},
            )
        )
    return made, leaves


def compute_batch(
    objective: ObjectiveConfig, case: dict[str, Any], rows: list[dict[str, Any]]
) -> tuple[BatchOutput, list[dict[str, Tensor]]]:
    """Return a case's batch, with what its settings say came before."""
    settings = case["settings"]
    state = None
    if "first_batch" in settings:
        first, _ = make_pairs(objective, [rows[place] for place in settings["first_batch"]])
        state = batch_from_logits(objective, first).state
        assert state["mean"] == pytest.approx(settings["delta_first"], rel=1e-12)
        rows = [rows[place] for place in settings["this_batch"]]
    if "gap_mean" in settings:
        state = {"gap": settings["gap_mean"]}
    pairs, leaves = make_pairs(objective, rows)
    return batch_from_logits(objective, pairs, state=state, kept=settings.get("kept")), leaves


@pytest.mark.parametrize("name", CASES)
def test_published_cases(name: str, oracles: Path) -> None:
    cases = load_published_cases(oracles)
    case, rows = cases["expected"][name], cases["pairs"]
    objective = ObjectiveConfig.model_validate(CASES[name])
    found, leaves = compute_batch(objective, case, rows)
    assert found.loss.item() == pytest.approx(case["loss_batch"], rel=1e-9, abs=1e-9)
    for term, values in case.get("terms", {}).items():
        if term in found.terms and isinstance(values, list):
            assert found.terms[term].tolist() == pytest.approx(values, rel=1e-9, abs=1e-9)
    if "delta" in case["settings"] and objective.method.shift:
        assert found.state["mean"] == pytest.approx(case["settings"]["delta"], rel=1e-12)
    if "gap_mean_after" in case:
        assert found.state["gap"] == pytest.approx(case["gap_mean_after"], rel=1e-12)
    if name.startswith("bco_pair_shift_second"):
        return  # no norms are given
    found.loss.backward()
    for key in ("1_w", "1_l", "1_2", "2_w", "2_l", "2_2"):
        gradients = [leaf[key].grad for leaf in leaves]
        norm = math.sqrt(sum(float((one**2).sum()) for one in gradients if one is not None))
        assert norm == pytest.approx(case.get("grad_norm", {}).get(key, 0.0), rel=1e-8, abs=1e-10)


@pytest.mark.parametrize(
    "name", [name for name in CASES if not name.startswith(("dama", "bco_pair_shift", "mpo_shift"))]
)
def test_published_cases_pair_by_pair(name: str, oracles: Path) -> None:
    cases = load_published_cases(oracles)
    case, rows = cases["expected"][name], cases["pairs"]
    objective = ObjectiveConfig.model_validate(CASES[name])
    for row, expected in zip(rows, case.get("loss_per_pair", []), strict=False):
        found, _ = compute_batch(objective, case, [row])
        assert found.loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_all_published_cases_are_here(oracles: Path) -> None:
    assert set(load_published_cases(oracles)["expected"]) == set(CASES)


def compute_by_hand(w: float, l: float, beta: float) -> dict[str, float]:  # noqa: E741
    """Compute losses of two rewards, w of 4 tokens and l of 2, by docs/objectives.md."""

    def sigma(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    def nll(x: float) -> float:
        return -math.log(sigma(x))

    h, eps = beta * (w - l), 0.1
    k = sigma(h / 0.05)
    return {
        "hinge": max(0.0, 1 - h),
        "ipo": (w / 4 - l / 2 - 1 / (2 * beta)) ** 2,
        "sigmoid_norm": nll(beta * (w / 4 - l / 2)),
        "robust": ((1 - eps) * nll(h) - eps * nll(-h)) / (1 - 2 * eps),
        "exo_pair": sigma(h) * math.log(sigma(h) / 0.999) + sigma(-h) * math.log(sigma(-h) / 0.001),
        "nca_pair": nll(beta * w) + nll(-beta * w) / 2 + nll(-beta * l) / 2,
        "bco_pair": nll(beta * w) + nll(-beta * l),
        "sppo_hard": (w - 0.5 / beta) ** 2 + (l + 0.5 / beta) ** 2,
        "apo_zero": 1 - sigma(beta * w) + sigma(beta * l),
        "apo_down": sigma(beta * w) + 1 - sigma(h),
        "discopop": (1 - k) * nll(h) + k * math.exp(-h),
        "forward_kl": nll(beta * (math.exp(-l) - math.exp(-w))),
        "js_divergence": nll(beta * math.log(sigma(w) / sigma(l))),
        "alpha_divergence": nll(beta * (math.exp(-w / 2) - math.exp(-l / 2)) / -0.5),
        # A fourth of w's log-ratio lies on each of four tokens: two of them are beyond l's two.
        "ld_dpo": nll(beta * (0.75 * w - l)),
        "dadpo": nll(1.3 * h),
    }


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.7])
def test_ld_alpha_is_not_rounded(alpha: float) -> None:
    method = {"ld_alpha": alpha}
    objective = ObjectiveConfig.model_validate({"preset": "ld_dpo", "beta": 2.0, "method": method})
    found = compute_objective(objective, make_reward_pair(3.0, -1.0)).loss.item()
    # w's log-ratio of 3 is even over 4 tokens, two of them beyond l's two: 1.5 + alpha·1.5.
    margin = 2.0 * (1.5 + 1.5 * alpha + 1.0)
    assert found == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-12)


def make_reward_pair(w: float, l: float) -> Any:  # noqa: E741
    """Make a pair whose log-ratios are w, spread over 4 tokens, and l, over 2."""

    def scores(total: float, tokens: int) -> ResponseScores:
        logps = torch.full((1, 4), -1.0, dtype=torch.float64)
        mask = torch.arange(4)[None] < tokens
        return ResponseScores(
            policy_logps=logps + total / tokens, reference_logps=logps, mask=mask, changed=mask
        )

    fields = {
        "clip_scores/chosen": torch.tensor([0.2]),
        "clip_scores/rejected": torch.tensor([0.5]),
    }
    return Inputs(views={"chosen": scores(w, 4), "rejected": scores(l, 2)}, fields=fields)


@pytest.mark.parametrize("preset", sorted(compute_by_hand(1.0, 0.5, 0.3)))
@pytest.mark.parametrize(("w", "l"), [(0.8, -0.4), (-1.2, 0.6), (0.0, 0.0)])
def test_each_method_equals_its_formula_by_hand(preset: str, w: float, l: float) -> None:  # noqa: E741
    objective = ObjectiveConfig.model_validate({"preset": preset, "beta": 0.3})
    found = compute_objective(objective, make_reward_pair(w, l)).loss
    assert found.tolist() == pytest.approx(
        [compute_by_hand(w, l, 0.3)[preset]], rel=1e-7, abs=1e-12
    )


@pytest.mark.parametrize(
    ("objective", "reason"),
    [
        ({"preset": "exo_pair", "method": {"label_smoothing": 0.0}}, "label_smoothing above 0"),
        ({"preset": "robust", "method": {"label_smoothing": 0.5}}, "less than 0.5"),
        (
            {"preset": "bco_pair", "method": {"f_divergence": "forward_kl"}},
            "not defined for bco_pair",
        ),
        ({"preset": "mpo", "method": {"losses": {"sigmoid": -1}}}, "'sigmoid' is negative"),
        ({"preset": "mpo", "method": {"losses": {"sigmoit": 1}}}, "'sigmoit' is none of"),
        ({"preset": "mpo", "method": {"losses": {"sigmoid": 0}}}, "none has a weight above 0"),
        ({"preset": "symmpo", "method": {"symmetric": -0.5}}, "greater than or equal to 0"),
        ({"preset": "dama", "method": {"keep": 0.0}}, "greater than 0"),
        ({"preset": "ipo", "form": "one_sigmoid"}, "form one_sigmoid cannot do preset ipo"),
        ({"preset": "ipo", "average_logps": True}, "cannot do average_logps with preset ipo"),
        ({"preset": "ippo"}, "unknown level 'ippo': did you mean 'ipo'"),
        ({"preset": "rdpo:released"}, "unknown level 'rdpo:released'"),
    ],
)
def test_what_authors_code_cannot_have_is_refused(objective: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ObjectiveConfig.model_validate(objective)


def test_what_trains_nothing_is_told() -> None:
    still = {"preset": "vdpo", "method": {"gamma": 0.0}}
    assert "nothing is trained" in str(ObjectiveConfig.model_validate(still).warning)
    assert ObjectiveConfig.model_validate("vdpo").warning is None


def test_presets_that_are_one_objective_are_one_trial() -> None:
    def identity(objective: Any) -> str:
        config = TrialConfig.model_validate({"model": "shapes", "objective": objective})
        return fingerprint(training_identity(config, {}, {}))

    assert identity("rdpo") == identity("cmdpo")
    assert identity("chairdpo") == identity({"preset": "dpo", "beta": 0.2})
    assert identity({"preset": "chairdpo", "beta": 0.1}) == identity("dpo")
    assert identity("ipo") == identity({"preset": "mpo", "method": {"losses": {"ipo": 1.0}}})
    assert identity("ipo") != identity("hinge")
    assert identity("ipo") == identity({"preset": "ipo", "method": {"tau": 3.0}})
    tree = {"objective": {"preset": "chip", "beta": 0.1}}  # as recipes have it
    set_key(tree, "objective", "chairdpo")
    assert tree["objective"]["beta"] == 0.2


def test_a_draw_of_dama_keeps_four_fifths() -> None:
    table = BatchTable(
        tokens=1,
        pairs=10,
        columns={
            **{f"{who}_{side}": torch.zeros(10, dtype=torch.float64)
               for who in ("policy", "reference") for side in ("chosen", "rejected")},
            "image_text_scores/chosen": torch.zeros(10, dtype=torch.float64),
            "image_text_scores/rejected": torch.zeros(10, dtype=torch.float64),
        },
    )  # fmt: skip
    objective = ObjectiveConfig.model_validate("dama")
    facts, state = compute_batch_facts(
        objective, table, {}, generator=torch.Generator().manual_seed(1)
    )
    assert sorted(facts.pair["keep"].tolist()) == [0.0] * 2 + [1.25] * 8
    far = {**table.columns, "policy_chosen": torch.full((10,), 1e3, dtype=torch.float64)}
    gone = BatchTable(tokens=1, pairs=10, columns=far)  # all weights are 0
    facts, state = compute_batch_facts(
        objective, gone, state, generator=torch.Generator().manual_seed(1)
    )
    assert facts.pair["keep"].sum().item() == pytest.approx(10.0)
    assert state["gap"] == pytest.approx(100.0)  # 0.9·0 + 0.1·1000
