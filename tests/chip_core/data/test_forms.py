"""Rows as people write them: what is read, what is told, and why."""

from __future__ import annotations

import codecs
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from chip_core import data
from chip_core.config.trial import DataConfig
from chip_core.data.checks import check_rows
from chip_core.data.preferences import load_pairs
from chip_core.data.rows import BadRow
from chip_core.data.source import open_source
from chip_core.utils.errors import ConfigError

from . import files

SAID = ("What is it?", "A red ball.", "A red ball and a dog.")
USER = {"role": "user", "content": SAID[0]}
CHOSEN, REJECTED = ({"role": "assistant", "content": text} for text in SAID[1:])
TEXT = {"question": SAID[0], "chosen": SAID[1], "rejected": SAID[2]}
PROMPTED = {"prompt": SAID[0], "chosen": SAID[1], "rejected": SAID[2]}
WHOLE = {"chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]}


def to_parts(message: dict[str, Any], images: int = 0) -> dict[str, Any]:
    return files.make_message(message["role"], message["content"], images)


def make_system_message(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


#: All of these say SAID about images/0.jpg.
READ: dict[str, dict[str, Any]] = {
    "RLHF-V: text as JSON": {"image": "images/0.jpg", "text": json.dumps(TEXT)},
    "RLHF-V: text as an object": {"image": "images/0.jpg", "text": TEXT},
    "RLHF-V: text made into JSON twice": {
        "image": "images/0.jpg",
        "text": json.dumps(json.dumps(TEXT)),
    },
    "RLHF-V: images": {"images": ["images/0.jpg"], "text": TEXT},
    "RLHF-V: image_path": {"image": None, "image_path": "images/0.jpg", "text": TEXT},
    "RLAIF-V: an id of numbers": {"image": {"path": "images/0.jpg"}, **TEXT, "idx": 7},
    "RLAIF-V: an id of letters": {"image": {"path": "images/0.jpg"}, **TEXT, "idx": "r7"},
    "a path and a prompt": {"image": "images/0.jpg", **PROMPTED},
    "a path and a question": {"image": "images/0.jpg", **TEXT},
    "images beside question": {"images": ["images/0.jpg"], **TEXT},
    "images as a path": {"images": "images/0.jpg", **TEXT},
    "images as an object": {"images": {"bytes": None, "path": "images/0.jpg"}, **TEXT},
    "images as a list of one object": {"images": [{"path": "images/0.jpg"}], **TEXT},
    "image as a list of one": {"image": ["images/0.jpg"], **TEXT},
    "TRL: texts": {"images": ["images/0.jpg"], **PROMPTED},
    "TRL: messages": {
        "images": ["images/0.jpg"],
        "prompt": [USER],
        "chosen": [CHOSEN],
        "rejected": [REJECTED],
    },
    "TRL: messages of parts": {
        "images": ["images/0.jpg"],
        "prompt": [to_parts(USER, 1)],
        "chosen": [to_parts(CHOSEN)],
        "rejected": [to_parts(REJECTED)],
    },
    "TRL: the prompt within": {"images": ["images/0.jpg"], **WHOLE},
    "TRL: the prompt within, as parts": {
        "images": ["images/0.jpg"],
        "chosen": [to_parts(USER, 1), to_parts(CHOSEN)],
        "rejected": [to_parts(USER, 1), to_parts(REJECTED)],
    },
    "TRL: a text beside whole conversations": {
        "images": ["images/0.jpg"],
        "prompt": SAID[0],
        **WHOLE,
    },
    "TRL: another text beside whole conversations": {
        "images": ["images/0.jpg"],
        "prompt": f"<image>\n{SAID[0]}",
        **WHOLE,
    },
    "TRL: messages beside whole conversations": {
        "images": ["images/0.jpg"],
        "prompt": [USER],
        **WHOLE,
    },
    "TRL: a text, and answers as messages": {
        "images": ["images/0.jpg"],
        "prompt": SAID[0],
        "chosen": [CHOSEN],
        "rejected": [REJECTED],
    },
    "TRL: answers as single messages": {
        "images": ["images/0.jpg"],
        "prompt": SAID[0],
        "chosen": CHOSEN,
        "rejected": REJECTED,
    },
    "TRL: questions as messages": {
        "images": ["images/0.jpg"],
        "question": [USER],
        "chosen": [CHOSEN],
        "rejected": [REJECTED],
    },
    "TRL: conversations as JSON": {
        "images": ["images/0.jpg"],
        "prompt": json.dumps([USER]),
        "chosen": json.dumps([CHOSEN]),
        "rejected": json.dumps([REJECTED]),
    },
    "a path, and conversations as JSON": {
        "image": "images/0.jpg",
        "question": json.dumps([USER]),
        "chosen": json.dumps([CHOSEN]),
        "rejected": json.dumps([REJECTED]),
    },
    "TRL: an empty system message": {
        "images": ["images/0.jpg"],
        "prompt": [make_system_message(""), USER],
        "chosen": [CHOSEN],
        "rejected": [REJECTED],
    },
    "TRL: a blank one of parts": {
        "images": ["images/0.jpg"],
        "prompt": [make_system_message([{"type": "text", "text": " \n"}]), USER],
        "chosen": [CHOSEN],
        "rejected": [REJECTED],
    },
    "TRL: one without content, within": {
        "images": ["images/0.jpg"],
        "chosen": [make_system_message(None), USER, CHOSEN],
        "rejected": [make_system_message(None), USER, REJECTED],
    },
    "dates": {
        "image": "images/0.jpg",
        "question": "2024-01-01",
        "chosen": "2024-01-02",
        "rejected": "2024-01-03",
    },
    "tags": {**PROMPTED, "image": "images/0.jpg", "chosen": "An <image> tag and <b>."},
}


@pytest.mark.parametrize("row", READ.values(), ids=READ.keys())
def test_each_form_of_a_row_is_read(tmp_path: Path, row: dict[str, Any]) -> None:
    files.write_images(tmp_path, 1)
    (pair,) = load_pairs(DataConfig(source=str(files.write_lines(tmp_path / "a.jsonl", [row]))))
    said = SAID
    if not any(SAID[2] in str(value) for value in row.values()):  # the dates
        said = (row["question"], row["chosen"], row["rejected"])
    elif row.get("chosen") != SAID[1] and "tag" in str(row.get("chosen")):
        said = (SAID[0], row["chosen"], SAID[2])
    assert (pair.prompt, pair.chosen, pair.rejected) == said
    assert pair.image.size == files.SIZE
    assert pair.id == str(row.get("idx", "a.jsonl:0"))


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list, lambda of: pa.list_(of, 2)])
def test_messages_of_parquet_in_any_kind_of_list(tmp_path: Path, kind: Any) -> None:
    said = pa.struct({"role": pa.string(), "content": pa.string()})
    columns = {name: pa.array([WHOLE[name]], kind(said)) for name in WHOLE}
    table = pa.table(
        {**columns, "images": pa.array([[files.make_image_bytes()]], pa.list_(pa.binary()))}
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    (pair,) = load_pairs(DataConfig(source=str(tmp_path / "a.parquet")))
    assert (pair.prompt, pair.chosen, pair.rejected) == SAID


@pytest.mark.parametrize("kind", ["struct", "JSON"])
def test_text_of_parquet(tmp_path: Path, kind: str) -> None:
    row = files.make_rlhf_v_row(0, text=TEXT if kind == "struct" else json.dumps(TEXT), more=[1.5])
    path = files.write_parquet(tmp_path / "a.parquet", [row])
    (pair,) = load_pairs(DataConfig(source=str(path)))
    assert (pair.prompt, pair.chosen, pair.rejected) == SAID


V, Q, P = "RLHF-V: text as an object", "images beside question", "a path and a prompt"
M = "TRL: messages"
ANSWERS = {"chosen": [CHOSEN], "rejected": [REJECTED]}
TURNS = [USER, CHOSEN, USER]
#: Beside a good row of a form.
TOLD: dict[str, tuple[str, dict[str, Any], str]] = {
    "text is null": (V, {"image": "a", "text": None}, "no text"),
    "text is absent": (V, {"image": "a", "idx": 1}, "no text"),
    "text is a list": (
        V,
        {"image": "a", "text": [TEXT]},
        "text is not a JSON object of question, ",
    ),
    "text is too deep": (V, {"image": "a", "text": "[" * 100_000}, "text is not JSON (too deep, "),
    "text lacks one": (V, {"image": "a", "text": {"question": "?", "chosen": "a"}}, "no rejected"),
    "a system message": (
        M,
        {"images": ["a"], "prompt": [make_system_message("Be brief."), USER], **ANSWERS},
        "prompt has messages of system, user: one of user is supported",
    ),
    "a tool": (
        M,
        {"images": ["a"], "prompt": [USER, {"role": "tool", "content": "1"}], **ANSWERS},
        "prompt has messages of user, tool: one of user is supported",
    ),
    "three turns": (
        M,
        {"images": ["a"], "chosen": [*TURNS, CHOSEN], "rejected": [*TURNS, REJECTED]},
        "prompt has messages of user, assistant, user: one of user is supported",
    ),
    "other questions": (
        M,
        {
            "images": ["a"],
            "prompt": SAID[0],
            "chosen": [USER, CHOSEN],
            "rejected": [{**USER, "content": "Where?"}, REJECTED],
        },
        "chosen and rejected do not begin alike",
    ),
    "more than one answer": (
        M,
        {"images": ["a"], "prompt": [USER], "chosen": [CHOSEN, CHOSEN], "rejected": [REJECTED]},
        "chosen has messages of assistant, assistant: one of assistant is supported",
    ),
    "a part without text": (
        M,
        {"images": ["a"], "prompt": [{"role": "user", "content": [{"type": "text"}]}], **ANSWERS},
        "prompt holds a part of type 'text' without a text",
    ),
    "no answer": (M, {"images": ["a"], "prompt": "?", **ANSWERS, "chosen": []}, "chosen has messa"),
    "an empty answer": (M, {"images": ["a"], **PROMPTED, "chosen": ""}, "chosen is empty"),
    "equal": (M, {"images": ["a"], **PROMPTED, "chosen": SAID[2]}, "chosen and rejected are equal"),
    "several images": (Q, {"images": ["a", "b"], **TEXT}, "images holds 2 images: one image per"),
    "several as one": (
        Q,
        {"image": ["a", "b"], **TEXT},
        "image holds 2 images: one image per pair",
    ),
    "an id of true": (P, {"image": "a", **PROMPTED, "id": True}, "id is of type bool, not text or"),
    "an id of false": (P, {"image": "a", **PROMPTED, "idx": False}, "idx is of type bool"),
    "an id of halves": (P, {"image": "a", **PROMPTED, "id": 1.5}, "id is of type float"),
}


@pytest.mark.parametrize(("good", "row", "reason"), TOLD.values(), ids=TOLD.keys())
def test_a_row_of_no_known_form_is_reported(
    tmp_path: Path, good: str, row: dict[str, Any], reason: str
) -> None:
    files.write_images(tmp_path, 1)
    path = files.write_lines(tmp_path / "a.jsonl", [READ[good], row])
    (bad,) = [
        checked
        for checked in check_rows(open_source(DataConfig(source=str(path))))
        if isinstance(checked, BadRow)
    ]
    assert str(bad).startswith(f"{path} line 2: {reason}")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("chosen", datetime(2024, 1, 2)),
        ("question", datetime(2024, 1, 2).date()),
        ("rejected", datetime(2024, 1, 2).time()),
    ],
)
def test_a_text_that_was_stored_as_a_time_is_told(
    tmp_path: Path, column: str, value: object
) -> None:
    path = files.write_parquet(
        tmp_path / "a.parquet", [files.make_rlaif_v_row(0, **{column: value})]
    )
    (bad,) = check_rows(open_source(DataConfig(source=str(path))))
    assert isinstance(bad, BadRow)
    assert bad.reason == (
        f"{column} is a date or a time, not text, and its original spelling is lost: store the "
        "column as text"
    )


def test_images_may_begin_late(tmp_path: Path) -> None:
    """Each row without one is told, and the file is read."""
    files.write_images(tmp_path, 1)
    rows = [files.make_path_row(number, image=None) for number in range(20)]
    del rows[3]["image"]
    rows.append(files.make_path_row(20, image="images/0.jpg"))
    path = files.write_lines(tmp_path / "a.jsonl", rows)
    checked = list(check_rows(open_source(DataConfig(source=str(path)))))
    reasons = [one.reason for one in checked if isinstance(one, BadRow)]
    assert reasons == ["no image"] * 20
    (pair,) = load_pairs(DataConfig(source=str(path), on_bad_row="skip"))
    assert pair.id == "pair-20"


def test_texts_and_messages_may_be_mixed(tmp_path: Path) -> None:
    files.write_images(tmp_path, 1)
    rows = [{**READ[name], "image": "images/0.jpg"} for name in ("TRL: texts", "TRL: messages")]
    path = files.write_lines(tmp_path / "a.jsonl", rows)
    pairs = load_pairs(DataConfig(source=str(path)))
    assert [pair.chosen for pair in pairs] == [SAID[1]] * 2


ROWS = [
    files.make_path_row(0),
    files.make_path_row(1, chosen="Ein Bär, groß."),
    files.make_path_row(2),
]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
#: Content -> where row 1 lies.
LAID: dict[str, tuple[str | bytes, str]] = {
    "lines": (LINES, "line 2"),
    "lines that end as DOS's": (LINES.replace("\n", "\r\n"), "line 2"),
    "lines that end as the first Mac's": (LINES.replace("\n", "\r"), "row 1"),
    "blank lines": ("\n\n" + LINES.replace("\n", "\n \n\n"), "line 6"),
    "a byte order mark": (codecs.BOM_UTF8 + LINES.encode(), "line 2"),
    "a mark, DOS's ends and blanks": (
        codecs.BOM_UTF8 + b"\r\n" + LINES.replace("\n", "\r\n\r\n").encode(),
        "line 4",
    ),
    "an array on one line": (json.dumps(ROWS), "row 1"),
    "an array, and a mark": (codecs.BOM_UTF8 + json.dumps(ROWS).encode(), "row 1"),
    "an array, indented": (json.dumps(ROWS, indent=2, ensure_ascii=False), "line 9"),
    "an array, a row a line": (f"[\n{LINES}]".replace("}\n", "},\n"), "line 3"),
    "an array behind blanks": ("\n\n " + json.dumps(ROWS) + "\n\n", "row 1"),
    "objects over several lines": ("\n".join(json.dumps(r, indent=1) for r in ROWS), "line 8"),
    "an array, a mark, DOS's ends": (
        codecs.BOM_UTF8 + json.dumps(ROWS, indent=2).replace("\n", "\r\n").encode(),
        "line 9",
    ),
}


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize(("content", "place"), LAID.values(), ids=LAID.keys())
def test_a_file_of_rows(tmp_path: Path, content: str | bytes, place: str, suffix: str) -> None:
    files.write_images(tmp_path, 3)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    source = open_source(DataConfig(source=str(path)))
    assert str(source.location(1)) == f"{path} {place}"
    pairs = load_pairs(DataConfig(source=str(path)))
    assert [pair.id for pair in pairs] == ["pair-0", "pair-1", "pair-2"]
    assert pairs[1].chosen == "Ein Bär, groß."
    assert pairs.response_texts(2) == ("A red ball.", "A red ball and a dog.")


@pytest.mark.parametrize("rows", [READ["RLHF-V: text as an object"], READ["TRL: messages"]])
def test_an_array_of_any_format(tmp_path: Path, rows: dict[str, Any]) -> None:
    files.write_images(tmp_path, 1)
    (tmp_path / "a.json").write_text(json.dumps([rows, rows]))
    assert len(load_pairs(DataConfig(source=str(tmp_path / "a.json")))) == 2


#: What is one line for the file, and not one for each row.
BROKEN: dict[str, tuple[str | bytes, str]] = {
    "an array without its end": (json.dumps(ROWS, indent=2)[:-3], "is neither JSON lines nor an a"),
    "an array that ends with a comma": ("[{},\n]", "(Expecting value at character 5)"),
    "an array and more": (json.dumps(ROWS, indent=1) + "x", "(Extra data after the array at"),
    "an object without its end": (json.dumps(ROWS[0], indent=2)[:-3], "is neither JSON lines nor"),
    "rows within an object": (json.dumps({"data": ROWS}, indent=2), "the columns data fit no form"),
    "UTF-16": (LINES.encode("utf-16"), "is neither JSON lines nor an array of rows ("),
    "Python": (str(ROWS), "is neither JSON lines nor an array of rows (Expecting property name"),
    "a table": ("image,prompt\na.jpg,What?", "is neither JSON lines nor an array of rows"),
    "too deep": ("[" * 100_000, "is neither JSON lines nor an array of rows"),
    "an empty array": ("[]", "has no rows"),
    "an array of texts": ('["a", "b"]', "a.jsonl holds no row: write one JSON object per line"),
    "lines of arrays": ("[1]\n[2]", "a.jsonl holds no row: write one JSON object per line"),
    "rows with commas behind": ("".join(f"{json.dumps(row)},\n" for row in ROWS), "is neither J"),
}


@pytest.mark.parametrize(("content", "told"), BROKEN.values(), ids=BROKEN.keys())
def test_a_file_of_no_rows_is_one_line(tmp_path: Path, content: str | bytes, told: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    problem = data.find_source_problem(DataConfig(source=str(path)))
    assert problem is not None
    assert "\n" not in problem
    assert told in problem


@pytest.mark.parametrize("first", [b"{", b"[1]", b'{"a": ', b"\xff", b"5"])
def test_a_bad_first_line_is_a_bad_row(tmp_path: Path, first: bytes) -> None:
    files.write_images(tmp_path, 3)
    path = files.write_lines(tmp_path / "a.jsonl", [first, *ROWS])
    checked = list(check_rows(open_source(DataConfig(source=str(path)))))
    assert [isinstance(one, BadRow) for one in checked] == [True, False, False, False]


@pytest.mark.parametrize(
    ("row", "anew"),
    [
        (READ["a path and a prompt"], False),
        (READ["TRL: messages"], False),
        (READ["TRL: the prompt within"], False),
        (READ["RLHF-V: text as JSON"], False),
        ({**READ["a path and a prompt"], "chosen": "2 < 3 and [1]"}, False),
        (READ["RLHF-V: text as an object"], True),
        (READ["RLHF-V: text made into JSON twice"], True),
        (READ["TRL: a text beside whole conversations"], True),
        (READ["TRL: conversations as JSON"], True),
        (READ["TRL: an empty system message"], True),
        (READ["tags"], True),
        ({**READ["a path and a prompt"], "prompt": "What does </s> do?"}, True),
    ],
)
def test_rows_that_are_read_anew_are_other_data(
    tmp_path: Path, row: dict[str, Any], anew: bool
) -> None:
    """What was computed before they were has another fingerprint; any other data keeps its own."""
    files.write_images(tmp_path, 1)
    path = files.write_lines(tmp_path / "a.jsonl", [READ["a path and a prompt"], row])
    changes = {"format": "trl"} if "images" in row else {}
    changes = {"format": "rlhf-v"} if "text" in row else changes
    found = data.identity(DataConfig(source=str(path), **changes))
    assert found.keys() - {"reading"} == {"files", "format", "images"}
    assert (found.get("reading") == 2) is anew


def test_a_folder_of_all_sorts_is_not_walked_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chip_core.data.files.MAX_ENTRIES", 10)
    for number in range(11):
        (tmp_path / str(number)).mkdir()
    with pytest.raises(
        ConfigError, match="holds more than 10 files: name the folder with only the data"
    ):
        open_source(DataConfig(source=str(tmp_path)))


def test_a_folder_with_json_alone_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    told = data.find_source_problem(DataConfig(source=str(tmp_path)))
    assert told == f"no *.parquet or *.jsonl in {tmp_path}: name a .json file itself"
