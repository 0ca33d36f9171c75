"""Simulate how often people's preferences show a difference of two arms that are equal.

Sixty items, each judged once, divided over the training seeds; 30 % ties; a training shifts the
chance of a win by a normal draw whose standard deviation, on win less lose, is `sd`. Printed: the
share of studies with p < .05, and the share in which the interval over items alone excludes 0.

Run: python benchmarks/human_simulation.py [STUDIES]
"""

from __future__ import annotations

import sys

import numpy as np

from orchestrator.human_eval.preference import compute_human_figures
from orchestrator.human_eval.replies import Judgement, Verdict

ITEMS, TIES = 60, 0.3


def draw_study(random: np.random.Generator, seeds: int, sd: float) -> list[Judgement]:
    made = []
    for seed in range(seeds):
        lean = random.normal(0, sd)
        for item in range(ITEMS // seeds):
            drawn = random.random()
            win = drawn < (1 - TIES) / 2 + lean / 2
            verdict: Verdict = "tie" if drawn > 1 - TIES else "win" if win else "lose"
            name = f"{seed}/{item}"
            made.append(Judgement(item=name, seed=seed, sheet=1, verdict=verdict, chose_a=None))
    return made


def main(studies: int) -> None:
    random = np.random.default_rng(0)
    print("seeds  sd    p < .05  over items alone")
    for seeds in (2, 3, 5):
        for sd in (0.0, 0.1, 0.25):
            with_seeds = items_alone = 0
            for _ in range(studies):
                found = compute_human_figures(draw_study(random, seeds, sd)).preference
                assert found is not None and found.p is not None and found.over_items is not None
                with_seeds += found.p < 0.05
                items_alone += not found.over_items[0] <= 0 <= found.over_items[1]
            print(
                f"{seeds}      {sd:.2f}  {with_seeds / studies:.3f}    {items_alone / studies:.3f}"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
