"""Measure how long scoring AMBER's 15,220 answers takes, with a similarity table, on one core.

    python benchmarks/scoring.py --data AMBER
    python benchmarks/scoring.py --data AMBER --json

It needs AMBER's own folder (annotations.json, relation.json, safe_words.txt) and NLTK's data. The
answers are drawn: a description of about 90 words for each picture, of AMBER's vocabulary in frames
like those of models, and Yes or No to every question. Everything in a new process counts: imports,
reading and the figures.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from typing import Any

FRAMES = (
    "The image shows a {} next to a {} under the {}.",
    "In the background, several {}s can be seen near the {}, which adds depth to the scene.",
    "A {} is placed on the {}, and there is also a {} to the left of it.",
    "Overall, the {} and the {} create a calm and inviting atmosphere.",
    "Two {}s are standing beside a large {}, possibly waiting for something to happen.",
)
WORDS = 90  # of a description


def draw_answers(data: Path, draw: random.Random) -> list[dict[str, Any]]:
    """Return an answer to every question of AMBER."""
    relation = json.loads((data / "relation.json").read_text(encoding="utf-8"))
    nouns = sorted({*relation, *(word for words in relation.values() for word in words)})
    return [
        {
            "id": question["id"],
            "response": (
                draw_description(nouns, draw)
                if question["type"] == "generative"
                else draw.choice(["Yes", "No"])
            ),
        }
        for question in json.loads((data / "annotations.json").read_text(encoding="utf-8"))
    ]


def draw_description(nouns: list[str], draw: random.Random) -> str:
    """Return a description of at least `WORDS` words."""
    text = ""
    while len(text.split()) < WORDS:
        frame = draw.choice(FRAMES)
        text += frame.format(*(draw.choice(nouns) for _ in range(frame.count("{}")))) + " "
    return text.strip()


def draw_similarities(data: Path, draw: random.Random) -> dict[str, float]:
    """Return similarities of 20,000 word pairs, a tenth of them above AMBER's bound."""
    relation = json.loads((data / "relation.json").read_text(encoding="utf-8"))
    words = sorted(relation)
    return {"|".join(sorted(draw.sample(words, 2))): draw.uniform(0, 0.9) for _ in range(20_000)}


def measure(data: Path) -> dict[str, float]:
    """Score drawn answers in a new process; return its seconds and what it scored."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        given, table = Path(folder, "answers.json"), Path(folder, "similarity.json")
        rows = draw_answers(data, draw)
        given.write_text(json.dumps(rows), encoding="utf-8")
        table.write_text(json.dumps(draw_similarities(data, draw)), encoding="utf-8")
        command = [sys.executable, "-c", "from orchestrator.cli import main; main()", "score"]
        command += ["amber", "--data", str(data), "--responses", str(given), "--json"]
        before, began = getrusage(RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [*command, "--similarity", str(table)], check=True, capture_output=True, text=True
        )
        seconds, after = time.perf_counter() - began, getrusage(RUSAGE_CHILDREN)
    described = [row["response"] for row in rows if row["response"] not in ("Yes", "No")]
    return {
        "answers": json.loads(done.stdout)["n"],
        "words per description": sum(len(text.split()) for text in described) / len(described),
        "seconds": round(seconds, 1),
        "processor seconds": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="AMBER's folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    found = measure(given.data)
    if given.json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name}: {value:g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
