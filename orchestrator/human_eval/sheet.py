"""Write a sheet: one HTML page that needs no other file."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from chip_core.data.image_files import to_rgb
from orchestrator.human_eval.assignment import SheetKey
from orchestrator.human_eval.pairs import Pool

_PAGE = Path(__file__).with_name("sheet.html")
_SIDE = 768  # pixels of an image's longest side
_LOSSLESS = 128  # pixels up to which an image is not compressed with loss
#: `</script>` and `<!--` would end the data's element; the line separators end old scripts' lines.
_ESCAPES = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def sheet_page(
    key: SheetKey, number: int, pool: Pool, images: Mapping[str, Sequence[Image.Image]]
) -> str:
    """Return sheet `number` (from 1) as a page.

    It has no study, arms, seeds or item names, so that nothing reveals which arm is which.
    """
    answers = {(pair.item, pair.seed): pair for pair in pool.pairs}
    entries = []
    for entry in key.sheets[number - 1]:
        pair = answers[entry.item, entry.seed]
        shown = (pair.first, pair.second)
        entries.append(
            {
                "images": [_data_uri(image) for image in images[entry.item]],
                "question": pair.prompt,
                "a": shown[entry.left],
                "b": shown[1 - entry.left],
            }
        )
    data = {"export": key.export, "sheet": number, "entries": entries}
    text = json.dumps(data, ensure_ascii=False)
    for mark, escape in _ESCAPES.items():
        text = text.replace(mark, escape)
    return _PAGE.read_text(encoding="utf-8").replace("{{data}}", text)


def _data_uri(image: Image.Image) -> str:
    out = io.BytesIO()
    small = to_rgb(image).copy()
    if max(image.size) <= _LOSSLESS:
        kind = "png"
        small.save(out, "PNG", optimize=True)
    else:
        kind = "jpeg"
        small.thumbnail((_SIDE, _SIDE))
        small.save(out, "JPEG", quality=88)
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
