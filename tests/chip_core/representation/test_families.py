"""Every family's states are read the one way, and image states do not see what comes after."""

from __future__ import annotations

import numpy as np
import pytest

from chip_core.representation.described import DescribedImage
from chip_core.representation.states import Reading, compute_representations

from .. import families


@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_states_of_a_family(family: str) -> None:
    model, processor = families.build(family)
    described = [
        DescribedImage(
            id=pair.id,
            image=lambda pair=pair: pair.image,  # type: ignore[misc]
            prompt=pair.prompt,
            true=pair.chosen,
            hallucinated=pair.rejected,
        )
        for pair in families.make_pairs()[:2]
    ]
    found = compute_representations(model, processor, described, Reading())
    for part in (found.image, found.true, found.hallucinated):
        assert part.shape[0] == 2 and np.isfinite(part).all()
    assert not np.allclose(found.true, found.hallucinated)
    swapped = [
        DescribedImage(**{**vars(item), "true": item.hallucinated, "hallucinated": item.true})
        for item in described
    ]
    again = compute_representations(model, processor, swapped, Reading())
    assert again.image == pytest.approx(found.image, abs=1e-5)
    assert again.true == pytest.approx(found.hallucinated, abs=1e-5)
    alone = compute_representations(model, processor, described, Reading(alone=True, pool="last"))
    assert alone.true.shape == found.true.shape and np.isfinite(alone.true).all()
