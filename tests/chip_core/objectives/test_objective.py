"""The objective against plain arithmetic in float64, written out here a second time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chip_core.objectives import ObjectiveConfig, objective_from_logits
from chip_core.objectives.parts import changed_positions

V = 11
LOG2 = math.log(2)
PROMPT, CHOSEN, REJECTED = [1, 2, 3], [4, 5, 6, 7, 8, 9], [4, 5, 6, 10, 8, 9, 4]


def draw_logits(seed: int, *, scale: float = 1.0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    lengths = {"chosen": len(CHOSEN), "rejected": len(REJECTED), "rejected_image": len(CHOSEN)}
    return {
        f"{who}_{what}_logits": scale
        * torch.randn(len(PROMPT) + n, V, generator=draw, dtype=torch.float64)
        for who in ("policy", "reference")
        for what, n in lengths.items()
    }


def compute_objective(config: ObjectiveConfig, given: dict[str, Tensor], **ids: list[int]):  # noqa: ANN201
    return objective_from_logits(
        config,
        prompt_ids=torch.tensor(ids.get("prompt", PROMPT)),
        chosen_ids=torch.tensor(ids.get("chosen", CHOSEN)),
        rejected_ids=torch.tensor(ids.get("rejected", REJECTED)),
        **given,
    )


def compute_by_hand(config: ObjectiveConfig, given: dict[str, Tensor]) -> dict[str, float]:
    """Compute the paper's formulas with lists and math alone."""
    values = {name: tensor.detach().tolist() for name, tensor in given.items()}

    def rows(name: str, ids: list[int]) -> list[list[float]]:
        first = len(PROMPT) - 1
        out = []
        for row in values[name][first : first + len(ids)]:
            top = max(row)
            log_sum = top + math.log(sum(math.exp(x - top) for x in row))
            out.append([x - log_sum for x in row])
        return out

    def log_ratio(what: str, ids: list[int], where: list[int] | None = None) -> float:
        policy, reference = (rows(f"{who}_{what}_logits", ids) for who in ("policy", "reference"))
        places = range(len(ids)) if where is None else where
        return sum(policy[t][ids[t]] - reference[t][ids[t]] for t in places)

    def divergence(what: str, ids: list[int]) -> float:
        policy, reference = (rows(f"{who}_{what}_logits", ids) for who in ("policy", "reference"))
        return sum(
            math.exp(r) * (r - p)
            for p_row, r_row in zip(policy, reference, strict=True)
            for p, r in zip(p_row, r_row, strict=True)
        )

    def preference(margin: float) -> float:
        return math.log1p(math.exp(-config.beta * margin))

    in_chosen, in_rejected = changed_positions(CHOSEN, REJECTED)
    chosen, rejected = log_ratio("chosen", CHOSEN), log_ratio("rejected", REJECTED)
    return {
        "response": preference(chosen - rejected),
        "segment": preference(
            log_ratio("chosen", CHOSEN, in_chosen) - log_ratio("rejected", REJECTED, in_rejected)
        ),
        "token": config.beta * (divergence("rejected", REJECTED) - divergence("chosen", CHOSEN)),
        "visual": preference(chosen - log_ratio("rejected_image", CHOSEN)),
    }


@pytest.mark.parametrize("preset", ["dpo", "cmdpo", "hdpo", "chip", "tdpo"])
def test_equals_the_formulas(preset: str) -> None:
    weights = {"response": 1.3, "segment": 3.0, "token": 0.2, "visual": 0.7}
    config = ObjectiveConfig(preset=preset, beta=0.3, weights=weights)
    given = draw_logits(1)
    expected = compute_by_hand(config, given)
    found = compute_objective(config, given)
    assert set(found.terms) == set(config.active_terms)
    for term, value in found.terms.items():
        assert value.item() == pytest.approx(expected[term], rel=1e-12)
    total = sum(weights[term] * expected[term] for term in config.active_terms)
    assert found.loss.item() == pytest.approx(total, rel=1e-12)
    assert found.loss.dim() == 0


def test_closed_value_where_policy_is_reference() -> None:
    given = draw_logits(2)
    same = {name: given[name.replace("policy", "reference")] for name in given}
    config = ObjectiveConfig(weights={"response": 1, "segment": 3, "token": 0.1, "visual": 2})
    assert compute_objective(config, same).loss.item() == pytest.approx(
        (1 + 3 + 2) * LOG2, rel=1e-12
    )


def test_no_changed_token_gives_no_segment_loss() -> None:
    given = draw_logits(3)
    for who in ("policy", "reference"):
        given[f"{who}_rejected_logits"] = given[f"{who}_chosen_logits"]
    found = compute_objective(ObjectiveConfig(), given, rejected=CHOSEN)
    assert found.terms["segment"].item() == 0.0
    assert found.terms["response"].item() == pytest.approx(LOG2, rel=1e-12)  # Δ_r = 0


def test_only_the_rejected_response_gets_the_token_terms_gradient() -> None:
    given = draw_logits(4)
    given["policy_chosen_logits"].requires_grad_()
    given["policy_rejected_logits"].requires_grad_()
    compute_objective(ObjectiveConfig(terms=("token",)), given).loss.backward()
    chosen = given["policy_chosen_logits"].grad
    assert chosen is None or chosen.abs().max() == 0
    assert given["policy_rejected_logits"].grad.abs().max() > 0


@pytest.mark.parametrize("preset", ["dpo", "cmdpo", "hdpo", "chip", "tdpo"])
def test_gradient_equals_finite_differences(preset: str) -> None:
    config = ObjectiveConfig(preset=preset, weights={"segment": 3.0, "token": 0.5})
    given = draw_logits(5)
    policy = [name for name in given if name.startswith("policy")]
    for name in policy:
        given[name].requires_grad_()
    compute_objective(config, given).loss.backward()
    step = 1e-6
    for name in policy:
        gradient = given[name].grad
        for t in (len(PROMPT) - 1, len(PROMPT) + 2, given[name].shape[0] - 1):
            moved = {}
            for sign in (1, -1):
                with torch.no_grad():
                    shifted = {**given, name: given[name].clone()}
                    shifted[name][t, 7] += sign * step
                    moved[sign] = compute_objective(config, shifted).loss.item()
                    if "token" in config.active_terms and name == "policy_chosen_logits":
                        # the stop-gradient part is held fixed: taken out of the difference
                        part = compute_objective(config, shifted).terms["token"].item()
                        moved[sign] -= config.weights.token * part
            slope = (moved[1] - moved[-1]) / (2 * step)
            found = 0.0 if gradient is None else gradient[t, 7].item()
            assert found == pytest.approx(slope, abs=1e-8)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 8))
def test_swapping_the_responses_flips_the_reward_margin(seed: int, scale: float) -> None:
    given = draw_logits(seed, scale=scale)
    config = ObjectiveConfig(preset="dpo")
    swapped = {
        name: given[
            name.replace("chosen", "x").replace("rejected_l", "chosen_l").replace("x", "rejected")
        ]
        for name in given
        if "image" not in name
    }
    swapped |= {name: tensor for name, tensor in given.items() if "image" in name}
    one = compute_objective(config, given)
    other = compute_objective(config, swapped, chosen=REJECTED, rejected=CHOSEN)
    margin = one.chosen_reward - one.rejected_reward
    assert (other.chosen_reward - other.rejected_reward).item() == pytest.approx(-margin.item())
    # −log σ(x) and −log σ(−x) differ by x
    assert (one.loss - other.loss).item() == pytest.approx(-margin.item(), abs=1e-9)


def test_a_weight_of_zero_takes_the_term_out() -> None:
    config = ObjectiveConfig(weights={"segment": 0, "visual": 0, "token": 0})
    assert config.active_terms == ("response",)
    given = draw_logits(6)
    assert (
        compute_objective(config, given).loss
        == compute_objective(ObjectiveConfig(preset="dpo"), given).loss
    )


def test_terms_take_the_presets_place() -> None:
    config = ObjectiveConfig(preset="mdpo", terms=("token", "response"))
    assert config.active_terms == ("response", "token")
    with pytest.raises(ValueError, match="a term is named twice: name each once"):
        ObjectiveConfig(terms=("response", "response"))


def test_no_active_term_is_refused() -> None:
    with pytest.raises(ValueError, match="no term is active"):
        ObjectiveConfig(preset="dpo", weights={"response": 0})


def test_padded_and_shifted_logits_are_taken() -> None:
    """Rows beyond the last token, and the last token's own row, are not looked at."""
    given = draw_logits(7)
    expected = compute_objective(ObjectiveConfig(), given).loss
    padded = {
        name: torch.cat([rows, torch.full((3, V), torch.nan)]) for name, rows in given.items()
    }
    shifted = {name: rows[:-1] for name, rows in given.items()}
    assert torch.equal(compute_objective(ObjectiveConfig(), padded).loss, expected)
    assert torch.equal(compute_objective(ObjectiveConfig(), shifted).loss, expected)


def test_logits_that_do_not_fit_are_told() -> None:
    given = draw_logits(8)
    short = {**given, "reference_rejected_logits": given["reference_rejected_logits"][:-2]}
    with pytest.raises(ValueError, match="reference_rejected_logits: 8 rows, fewer than 3 tokens"):
        compute_objective(ObjectiveConfig(), short)
    absent = {**given, "policy_rejected_image_logits": None}
    with pytest.raises(ValueError, match="policy_rejected_image_logits: None, fewer than"):
        compute_objective(ObjectiveConfig(), absent)
    assert compute_objective(ObjectiveConfig(preset="hdpo"), absent).loss.isfinite()
    with pytest.raises(ValueError, match="prompt_ids is empty"):
        compute_objective(ObjectiveConfig(), given, prompt=[])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_float_dtype_is_taken(dtype: torch.dtype) -> None:
    given = draw_logits(9)
    exact = compute_objective(ObjectiveConfig(), given).loss.item()
    rough = compute_objective(
        ObjectiveConfig(), {name: rows.to(dtype) for name, rows in given.items()}
    )
    assert rough.loss.item() == pytest.approx(exact, rel=0.05)


def test_any_whole_dtype_of_ids_is_taken() -> None:
    given = draw_logits(11)
    ids = {"prompt_ids": PROMPT, "chosen_ids": CHOSEN, "rejected_ids": REJECTED}
    small = {name: torch.tensor(values, dtype=torch.int32) for name, values in ids.items()}
    found = objective_from_logits(ObjectiveConfig(), **small, **given)
    assert torch.equal(found.loss, compute_objective(ObjectiveConfig(), given).loss)


@pytest.mark.parametrize("form", ["paper", "one_sigmoid", "released"])
@pytest.mark.parametrize("empty", ["chosen", "rejected"])
def test_an_empty_response_says_nothing(form: str, empty: str) -> None:
    config = ObjectiveConfig(form=form)
    given = draw_logits(10)
    found = compute_objective(config, given, **{empty: []})
    assert found.loss.isfinite()
    assert getattr(found, f"{empty}_reward").item() == 0.0
