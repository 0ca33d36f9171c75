"""The files that each benchmark publishes, and their sources.

None of them is shipped here: `--benchmark-data` holds a folder for each benchmark, with the
benchmark's name, in the layout in which its project publishes it. Sizes and licences are the
published ones, if they are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chip_core.evaluation import reading
from chip_core.utils.errors import UserError

SEE = "see the publisher"
#: The use of a file: to score answers, to answer its questions, or the judge's own prompt.
Use = Literal["scoring", "asking", "official judge"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkFile:
    """A file of a benchmark, or a folder of pictures."""

    names: tuple[str, ...]  # possible paths, the published one first; ending in /: a folder
    source: str  # the project, and the path in it
    use: Use = "scoring"
    size: int | None = None  # bytes; None: unknown
    parts: int = 1  # files that match the name pattern, or pictures


@dataclass(frozen=True, kw_only=True)
class BenchmarkSource:
    """A benchmark as it is published."""

    licence: str
    files: tuple[BenchmarkFile, ...]
    count: int | None = None  # questions
    count_questions: Callable[[Path], int] | None = None  # counts them in a folder


def count_rows(*names: str) -> Callable[[Path], int]:
    """Return a function that counts the rows of a benchmark's file, under one of several names."""
    return lambda folder: len(reading.read_rows(reading.find_file(folder, names, folder.name)))


def count_keys(*names: str) -> Callable[[Path], int]:
    """Return a function that counts the keys of a JSON file."""

    def count(folder: Path) -> int:
        path = reading.find_file(folder, names, folder.name)
        content = reading.read_json(path)
        if not isinstance(content, dict):
            raise UserError(f"{path} must be a JSON object")
        return len(content)

    return count


def _count_pope(folder: Path) -> int:
    return sum(count_rows(*_pope_names(split))(folder) for split in _POPE)


def _count_scienceqa(folder: Path) -> int:
    path = reading.find_file(folder, _scienceqa_names("pid_splits.json"), "scienceqa")
    splits = reading.read_json(path)
    if not isinstance(splits, dict) or not isinstance(splits.get("test"), list):
        raise UserError(f"{path} has no list 'test'")
    return len(splits["test"])


def _pope_names(split: str) -> tuple[str, ...]:
    file = f"coco_pope_{split}.json"
    return (file, f"coco/{file}", f"output/coco/{file}")


def _scienceqa_names(file: str) -> tuple[str, ...]:
    return (file, f"data/scienceqa/{file}")


def _amber_names(file: str) -> tuple[str, ...]:
    return (file, f"data/{file}")


_POPE = {"random": 368_166, "popular": 370_190, "adversarial": 370_401}
_AMBER = "github.com/junyangwang0410/AMBER"
_CHIP = "github.com/LVUGAI/CHiP, eval/"
_MMHAL = "Hugging Face data set Shengcao1006/MMHal-Bench"
_HALLUSION = "github.com/tianyi-lab/HallusionBench"
_SCIENCE = "github.com/lupantech/ScienceQA"
_LLAVA = "Hugging Face data set liuhaotian/llava-bench-in-the-wild"
_COCO = "cocodataset.org, 2014"
_QUERIES = ("query_all.json", "query/query_all.json", "data/query/query_all.json")

SOURCES: Mapping[str, BenchmarkSource] = {
    "amber": BenchmarkSource(
        licence="Apache-2.0",
        count=15_220,
        count_questions=count_rows(*_amber_names("annotations.json")),
        files=(
            BenchmarkFile(
                names=_amber_names("annotations.json"), source=f"{_AMBER}, data/", size=1_813_301
            ),
            BenchmarkFile(
                names=_amber_names("relation.json"), source=f"{_AMBER}, data/", size=12_699
            ),
            BenchmarkFile(names=_amber_names("safe_words.txt"), source=f"{_AMBER}, data/", size=57),
            BenchmarkFile(
                names=_QUERIES, source=f"{_AMBER}, data/query/", use="asking", size=1_844_750
            ),
            BenchmarkFile(
                names=("image/", "images/", "data/image/"),
                source=f"{_AMBER}, link in its README",
                use="asking",
                parts=1_004,
            ),
        ),
    ),
    "objhal": BenchmarkSource(
        licence="RLHF-V: data CC BY-NC 4.0; CHiP: Apache-2.0; COCO: " + SEE,
        files=(
            BenchmarkFile(names=("synonyms_refine.txt",), source=_CHIP, size=3_594),
            BenchmarkFile(
                names=("../coco/annotations/*_*2014.json", "../coco/*_*2014.json"),
                source=f"{_COCO}: instances and captions of train and val (241 MB)",
                parts=4,
            ),
            BenchmarkFile(
                names=("obj_halbench_300_with_image.jsonl",),
                source="github.com/RLHF-V/RLHF-V, eval/data/",
                use="asking",
            ),
        ),
    ),
    "chair": BenchmarkSource(
        licence=SEE,
        files=(
            BenchmarkFile(
                names=("synonyms.txt",),
                source="github.com/LisaAnne/Hallucination, data/; "
                "github.com/Maxlinn/CHAIR-metric-standalone holds it in chair.py",
            ),
            BenchmarkFile(
                names=("../coco/annotations/*_*2014.json", "../coco/*_*2014.json"),
                source=f"{_COCO}: instances and captions of train and val (241 MB)",
                parts=4,
            ),
            BenchmarkFile(
                names=("questions.jsonl",),
                source="yours: rows of image_id, and question where you have one",
                use="asking",
            ),
            BenchmarkFile(
                names=(
                    "val2014/",
                    "images/val2014/",
                    "../coco/val2014/",
                    "../coco/images/val2014/",
                ),
                source=f"{_COCO}: pictures of val (6 GB)",
                use="asking",
            ),
        ),
    ),
    "mmhal": BenchmarkSource(
        licence="Apache-2.0",
        count=96,
        count_questions=count_rows("mmhal-bench_answer_template.json", "response_template.json"),
        files=(
            BenchmarkFile(
                names=("response_template.json", "mmhal-bench_answer_template.json"),
                source=f"{_MMHAL}; {_CHIP}",
                size=50_519,
            ),
            BenchmarkFile(
                names=("images/", "mmhal-bench_with_image.jsonl"),
                source=f"{_MMHAL}, test_data.zip (174 MB)",
                use="asking",
                parts=96,
            ),
            BenchmarkFile(
                names=("eval_gpt4.py", "eval_gpt_mmhal.py"),
                source=f"{_MMHAL}; {_CHIP}",
                use="official judge",
            ),
        ),
    ),
    "hallusionbench": BenchmarkSource(
        licence="BSD-3-Clause",
        count=1_129,
        count_questions=count_rows("HallusionBench.json"),
        files=(
            BenchmarkFile(names=("HallusionBench.json",), source=_HALLUSION, size=431_987),
            BenchmarkFile(
                names=("hallusion_bench/", "./"),
                source=f"{_HALLUSION}, link in its README",
                use="asking",
                parts=346,
            ),
            BenchmarkFile(
                names=("utils.py",), source=_HALLUSION, use="official judge", size=17_600
            ),
        ),
    ),
    "pope": BenchmarkSource(
        licence="MIT; COCO: " + SEE,
        count=3 * 3_000,
        count_questions=_count_pope,
        files=(
            *(
                BenchmarkFile(
                    names=_pope_names(split),
                    source="github.com/AoiDragon/POPE, output/coco/",
                    size=size,
                )
                for split, size in _POPE.items()
            ),
            BenchmarkFile(
                names=(
                    "val2014/",
                    "images/val2014/",
                    "../coco/val2014/",
                    "../coco/images/val2014/",
                ),
                source=f"{_COCO}: pictures of val (6 GB)",
                use="asking",
                parts=500,
            ),
        ),
    ),
    "mmmu": BenchmarkSource(
        licence="Apache-2.0",
        count=900,
        count_questions=count_keys("answer_dict_val.json", "mmmu/answer_dict_val.json"),
        files=(
            BenchmarkFile(
                names=("answer_dict_val.json", "mmmu/answer_dict_val.json"),
                source="github.com/MMMU-Benchmark/MMMU, mmmu/",
                size=102_911,
            ),
            BenchmarkFile(
                names=("*/validation-*.parquet", "*/*/validation-*.parquet"),
                source="Hugging Face data set MMMU/MMMU",
                use="asking",
                parts=30,
            ),
        ),
    ),
    "scienceqa": BenchmarkSource(
        licence="CC BY-NC-SA 4.0",
        count=4_241,
        count_questions=_count_scienceqa,
        files=(
            BenchmarkFile(
                names=_scienceqa_names("problems.json"), source=f"{_SCIENCE}, data/scienceqa/"
            ),
            BenchmarkFile(
                names=_scienceqa_names("pid_splits.json"),
                source=f"{_SCIENCE}, data/scienceqa/",
                size=502_927,
            ),
            BenchmarkFile(
                names=("images/test/", "test/", "images/", "data/scienceqa/images/test/"),
                source=f"{_SCIENCE}, tools/download.sh",
                use="asking",
            ),
        ),
    ),
    "llava_bench": BenchmarkSource(
        licence="Apache-2.0",
        count=60,
        count_questions=count_rows("questions.jsonl"),
        files=(
            *(
                BenchmarkFile(names=(file,), source=f"{_LLAVA} ({size})")
                for file, size in {
                    "questions.jsonl": "8.25 kB",
                    "context.jsonl": "8.04 kB",
                    "answers_gpt4.jsonl": "46.5 kB",
                }.items()
            ),
            BenchmarkFile(
                names=("rule.json",),
                source="github.com/haotian-liu/LLaVA, llava/eval/table/",
                size=9_098,
            ),
            BenchmarkFile(names=("images/", "./"), source=_LLAVA, use="asking", parts=24),
        ),
    ),
    # lmms-eval downloads these itself.
    "mmbench": BenchmarkSource(licence=SEE, files=()),
    "mmbench_cn": BenchmarkSource(licence=SEE, files=()),
    "mmvet": BenchmarkSource(licence="data CC BY-NC 4.0", files=()),
}
