#!/usr/bin/env bash
# lmms-eval 0.7.3 reads plain answers as wrong or as another option.
#
# POPE counts an answer as right only if it equals the label to the letter: "Yes." and "Yes, there is
# a dog." are wrong. MMMU takes the article in "C. A bowl of soup" for option A, and draws a letter
# for "**C**". ScienceQA gives 0 for "Answer: B", "(B)" and "**B**". There is no error and no count: the
# figures are lower, or another option's. Seen on Python 3.11; exits non-zero once any of it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet install --no-deps lmms-eval==0.7.3 numpy==2.2.6
"$folder/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import importlib.util
import random
from pathlib import Path

found = importlib.metadata.distribution("lmms-eval")
root = Path(str(found.locate_file("lmms_eval/tasks")))
print("lmms-eval", found.version)


def load(path: str):
    """Load a task's own functions from their file: they need none of the package's dependencies."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), root / f"{path}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pope = load("pope/utils")
for said, score in (("Yes", 1.0), ("Yes.", 0.0), ("Yes, there is a dog.", 0.0)):
    seen = pope.pope_process_results({"answer": "yes", "question_id": 1}, [said])
    print("POPE, label yes:", repr(said), seen["pope_accuracy"]["score"])
    assert seen["pope_accuracy"]["score"] == score

options = {"A": "a plate of rice", "B": "a glass of milk", "C": "A bowl of soup", "D": "an apple"}
parse = load("_task_utils/mmmu_mcq_utils").parse_mmmu_multi_choice_response
letter = parse("C. A bowl of soup", list(options), options)
print("MMMU: 'C. A bowl of soup' is", letter)
assert letter == "A"
drawn = set()
for seed in range(20):
    random.seed(seed)
    drawn.add(parse("**C**", list(options), options))
print("MMMU: '**C**' is one of", sorted(drawn), "by the random state")
assert len(drawn) > 1

scienceqa = load("scienceqa/utils")
for said, score in (("B", 1.0), ("B. milk", 1.0), ("Answer: B", 0.0), ("(B)", 0.0), ("**B**", 0.0)):
    seen = scienceqa.sqa_process_results({"choices": ["rice", "milk"], "answer": 1}, [said])
    print("ScienceQA, answer B:", repr(said), seen["exact_match"])
    assert seen["exact_match"] == score
PYTHON
