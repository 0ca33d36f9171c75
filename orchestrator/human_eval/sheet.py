"""Write a sheet: one HTML page that needs no other file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from orchestrator.human_eval.assignment import SheetKey
from orchestrator.human_eval.pairs import AnswerPool
from orchestrator.report.figures.thumbnails import encode_image
from orchestrator.report.writers.html import format_data_uri

_PAGE = Path(__file__).with_name("sheet.html")
_MAX_SIDE = 768  # pixels of an image's longest side
_LOSSLESS_SIDE = 128  # pixels up to which an image is not compressed with loss
#: `</script>` and `<!--` would end the data's element; the line separators end old scripts' lines.
_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def render_sheet(
    key: SheetKey, number: int, pool: AnswerPool, images: Mapping[str, Sequence[Image.Image]]
) -> str:
    """Return sheet `number` (from 1) as a page.

    It has no study, arms, seeds or item names, so that nothing reveals which arm is which.
    """
    answers = {(pair.item, pair.seed): pair for pair in pool.pairs}
    entries = []
    for entry in key.sheets[number - 1]:
        pair = answers[entry.item, entry.seed]
        responses = (pair.first, pair.second)
        entries.append(
            {
                "images": [_to_data_uri(image) for image in images[entry.item]],
                "question": pair.prompt,
                "a": responses[entry.left],
                "b": responses[1 - entry.left],
            }
        )
    data = {"export": key.export, "sheet": number, "entries": entries}
    text = json.dumps(data, ensure_ascii=False)
    for character, escape in _ESCAPES.items():
        text = text.replace(character, escape)
    return _PAGE.read_text(encoding="utf-8").replace("{{data}}", text)


def _to_data_uri(image: Image.Image) -> str:
    media, content = encode_image(
        image, lossless_side=_LOSSLESS_SIDE, max_side=_MAX_SIDE, quality=88
    )
    return format_data_uri(content, media)
