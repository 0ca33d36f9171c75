"""Tiny benchmark folders in their published layouts, with pictures of the embedded world.

Nothing of a benchmark's own is in them but the names of its files and fields.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from chip_core.shapes.world import SHAPES, Scene, draw_scene, make_scene


def draw_scenes(number: int) -> list[Scene]:
    return [make_scene("test", index) for index in range(number)]


def write_rows(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = isinstance(value, list) and path.suffix == ".jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in value) if lines else json.dumps(value)
    )


def save_picture(path: Path, image: Scene) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_scene(image).save(path)


def encode_picture(shown: Scene) -> str:
    buffer = io.BytesIO()
    draw_scene(shown).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def write_amber(root: Path, pictures: int = 3, *, describe: bool = True) -> Path:
    """Write a description a picture, and a yes/no question a shape and picture."""
    folder = root / "amber"
    queries: list[dict[str, Any]] = []
    truths: list[dict[str, Any]] = []
    for number, shown in enumerate(draw_scenes(pictures), start=1):
        save_picture(folder / "image" / f"AMBER_{number}.png", shown)
        present = sorted({thing.shape for thing in shown.things})
        absent = sorted(set(SHAPES) - set(present))
        if describe:
            row = {"id": number, "image": f"AMBER_{number}.png", "query": "what do you see?"}
            queries.append(row)
            truths.append(
                {"id": number, "type": "generative", "truth": present, "hallu": absent[:1]}
            )
    for number, shown in enumerate(draw_scenes(pictures), start=1):
        present = {thing.shape for thing in shown.things}
        for shape in sorted(SHAPES):
            item = 1001 + len(queries)
            query = f"is there a {shape} in this image?"
            queries.append({"id": item, "image": f"AMBER_{number}.png", "query": query})
            truth = "yes" if shape in present else "no"
            kind = "discriminative-hallucination"
            truths.append({"id": item, "type": kind, "truth": truth})
    write_rows(folder / "query" / "query_all.json", queries)
    write_rows(folder / "annotations.json", truths)
    write_rows(folder / "relation.json", {shape: [shape] for shape in SHAPES})
    (folder / "safe_words.txt").write_text("picture\n")
    write_rows(folder / "similarity.json", {})
    return folder


def write_pope(root: Path, pictures: int = 2) -> Path:
    """Write six questions a picture and split."""
    folder = root / "pope"
    for split in ("random", "popular", "adversarial"):
        rows: list[dict[str, Any]] = []
        for index, shown in enumerate(draw_scenes(pictures)):
            name = f"COCO_val2014_{index + 1:012d}.png"
            save_picture(root / "coco" / "val2014" / name, shown)
            there = {thing.shape for thing in shown.things}
            rows += [
                {
                    "question_id": len(rows) + place,
                    "image": name,
                    "text": f"is there a {shape} in the image?",
                    "label": "yes" if shape in there else "no",
                }
                for place, shape in enumerate(sorted(SHAPES)[:6], start=1)
            ]
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"coco_pope_{split}.json").write_text(lines)
    return folder


def write_mmhal(root: Path, *, embedded: bool = False) -> Path:
    folder = root / "mmhal"
    rows = []
    for number, shown in enumerate(draw_scenes(8)):
        name = f"{number}_o.png"
        if not embedded:
            save_picture(folder / "images" / name, shown)
        rows.append(
            {
                "question_type": "attribute",
                "image_id": f"id{number}",
                "image_src": f"https://example.org/8/{name}",
                "image_content": [thing.shape for thing in shown.things],
                "question": "what do you see?",
                "gt_answer": "shapes",
                "model_answer": "",
            }
        )
    write_rows(folder / "response_template.json", rows)
    if embedded:
        encoded = [
            {
                "image_id": row["image_id"],
                "question": row["question"],
                "image": encode_picture(shown),
            }
            for row, shown in zip(rows, draw_scenes(8), strict=True)
        ]
        write_rows(folder / "mmhal-bench_with_image.jsonl", encoded)
    return folder


def write_hallusionbench(root: Path) -> Path:
    """Write a figure, the figure edited, and the question without a figure."""
    folder = root / "hallusionbench"
    rows = []
    for figure, name in enumerate((None, "./VS/chart/0_1.png", "./VS/chart/0_2.png")):
        if name is not None:
            save_picture(folder / "hallusion_bench" / name, make_scene("test", figure))
        rows.append(
            {
                "category": "VS",
                "subcategory": "chart",
                "visual_input": str(figure),
                "set_id": "0",
                "figure_id": str(figure),
                "sample_note": "made",
                "question_id": "0",
                "question": "is there a star?",
                "gt_answer_details": "there is a star",
                "gt_answer": "1",
                "filename": name,
            }
        )
    write_rows(folder / "HallusionBench.json", rows)
    return folder


def write_mmmu(root: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    folder = root / "mmmu"
    encoded = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [
        {"bytes": base64.b64decode(encode_picture(shown)), "path": "a.png"}
        for shown in draw_scenes(3)
    ]
    rows = {
        "id": ["validation_Art_1", "validation_Art_2", "validation_Art_3"],
        "question": ["What is <image 1>?", "What do <image 1> and <image 2> share?", "How many?"],
        "options": ["['a star', 'a moon']", "['red', 'blue', 'none']", "[]"],
        "question_type": ["multiple-choice", "multiple-choice", "open"],
        "image_1": pa.array(images, encoded),
        "image_2": pa.array([None, images[0], None], encoded),
        **{f"image_{number}": pa.array([None] * 3, encoded) for number in range(3, 8)},
    }
    (folder / "Art").mkdir(parents=True)
    parquet.write_table(pa.table(rows), folder / "Art" / "validation-00000-of-00001.parquet")
    truths = {
        "validation_Art_1": {"question_type": "multiple-choice", "ground_truth": "A"},
        "validation_Art_2": {"question_type": "multiple-choice", "ground_truth": "B"},
        "validation_Art_3": {"question_type": "short-answer", "ground_truth": "3"},
    }
    write_rows(folder / "answer_dict_val.json", truths)
    return folder


def write_scienceqa(root: Path) -> Path:
    folder = root / "scienceqa"
    problem = {
        "question": "Which is it?",
        "choices": ["a star", "a moon"],
        "answer": 0,
        "hint": "",
        "image": "image.png",
        "grade": "grade3",
        "subject": "natural science",
    }
    save_picture(folder / "images" / "test" / "4" / "image.png", make_scene("test", 0))
    write_rows(
        folder / "problems.json", {"4": problem, "5": {**problem, "image": None, "hint": "Look."}}
    )
    write_rows(folder / "pid_splits.json", {"train": [], "val": [], "test": ["4", "5"]})
    return folder


def write_llava_bench(root: Path) -> Path:
    folder = root / "llava_bench"
    save_picture(folder / "images" / "001.jpg", make_scene("test", 0))
    rows = [
        {"question_id": number, "image": "001.jpg", "text": "what do you see?", "category": kind}
        for number, kind in enumerate(("conv", "detail", "complex"))
    ]
    write_rows(folder / "questions.jsonl", rows)
    write_rows(folder / "context.jsonl", [{"image": "001.jpg", "caption": "shapes"}])
    write_rows(
        folder / "answers_gpt4.jsonl", [{"question_id": n, "text": "shapes"} for n in range(3)]
    )
    rule = {"prompt": "Rate both.", "role": "Assistant"}
    kinds = ("conv", "detail", "complex")
    write_rows(folder / "rule.json", {f"llava_bench_{kind}": rule for kind in kinds})
    return folder


def write_coco(root: Path, images: dict[int, Scene]) -> Path:
    """Write annotations that say which shapes are in which image."""
    folder = root / "coco" / "annotations"
    categories = [{"id": number, "name": shape} for number, shape in enumerate(SHAPES, start=1)]
    numbers = {category["name"]: category["id"] for category in categories}
    listed = [{"id": number} for number in images]
    present = [
        {"image_id": number, "category_id": numbers[thing.shape]}
        for number, shown in images.items()
        for thing in shown.things
    ]
    for split, objects, captions in (
        ("val", present, [{"image_id": number, "caption": "shapes"} for number in images]),
        ("train", [], []),
    ):
        of_split = listed if split == "val" else []
        write_rows(
            folder / f"instances_{split}2014.json",
            {"images": of_split, "annotations": objects, "categories": categories},
        )
        write_rows(
            folder / f"captions_{split}2014.json", {"images": of_split, "annotations": captions}
        )
    return folder


def write_chair(root: Path) -> Path:
    folder = root / "chair"
    for number, shown in enumerate(draw_scenes(2), start=1):
        save_picture(root / "coco" / "val2014" / f"COCO_val2014_{number:012d}.jpg", shown)
    write_rows(folder / "questions.jsonl", [{"image_id": 1}, {"image_id": 2, "question": "what?"}])
    (folder / "synonyms.txt").write_text("".join(f"{shape}, {shape}s\n" for shape in SHAPES))
    write_coco(root, dict(enumerate(draw_scenes(2), start=1)))
    return folder


def write_objhal(root: Path) -> Path:
    folder = root / "objhal"
    rows = [
        {
            "org_idx": n,
            "image_id": 100 + n,
            "question": "what do you see?",
            "image": encode_picture(shown),
        }
        for n, shown in enumerate(draw_scenes(2))
    ]
    write_rows(folder / "obj_halbench_300_with_image.jsonl", rows)
    (folder / "synonyms_refine.txt").write_text("".join(f"{s}, {s}s\n" for s in SHAPES))
    write_coco(root, {100 + n: shown for n, shown in enumerate(draw_scenes(2))})
    return folder


def open_pictures(item: Any) -> list[Image.Image]:
    return [shown.read() for shown in item.pictures]
