"""Read annotators' replies, and decode which arm each prefers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from chip_core.utils.errors import UserError
from chip_core.utils.files import read_json
from orchestrator.human_eval.assignment import SheetKey, read_sheet_key

REPLIES_FORMAT = "chip-ablate human replies 1"
#: Valid ids of an export, which name the key's file: no path that leaves its folder.
_EXPORT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
CHOICES = ("a", "b", "tie", "cant_tell")

#: Of the second arm against the first.
Verdict = Literal["win", "tie", "lose", "cant_tell"]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """One person's choice on one item."""

    item: str
    seed: int  # the training seed whose answers were shown
    sheet: int
    verdict: Verdict
    chose_a: bool | None  # None if neither was chosen


@dataclass(frozen=True, kw_only=True)
class SheetReplies:
    """One saved sheet."""

    file: Path
    export: str
    sheet: int
    annotator: str
    choices: tuple[str | None, ...]


def read_replies(files: Sequence[Path]) -> list[SheetReplies]:
    """Return the sheets that people saved, all of one export.

    Raises:
        UserError: a file is not a saved sheet, or they are of more than one export.
    """
    sheets = [_read_sheet(file) for file in files]
    for sheet in sheets:
        if sheet.export != sheets[0].export:
            raise UserError(
                f"{sheet.file} belongs to export {sheet.export}, but {sheets[0].file} to export "
                f"{sheets[0].export}: import one export at a time"
            )
    by_sheet: dict[int, SheetReplies] = {}
    for sheet in sheets:
        earlier = by_sheet.setdefault(sheet.sheet, sheet)
        if earlier is not sheet:
            raise UserError(
                f"{earlier.file} and {sheet.file} are both sheet {sheet.sheet}: "
                "give the one that counts"
            )
    return sheets


def find_sheet_key(
    folder: Path, key_file: Path | None, export: str, files: Sequence[Path]
) -> SheetKey:
    """Return the key of an export.

    Args:
        folder: the study's folder of keys.
        key_file: a key file to use instead.
        export: the export's id.
        files: the saved sheets, for the message.

    Raises:
        UserError: there is no such key, or it belongs to another export.
    """
    path = folder / f"{export}.json" if key_file is None else key_file
    if not path.exists():
        raise UserError(
            f"{files[0]} is of export {export}, which this study does not have: give its --key, "
            "or the --workdir that it was exported from"
            if key_file is None
            else f"--key: no file {key_file}"
        )
    try:
        key = read_sheet_key(read_json(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path} is not a key of an export ({error})") from None
    if key.export != export:
        raise UserError(
            f"{files[0]} belongs to export {export}, but the key {path} to export {key.export}: "
            "give the key that was written with the sheets"
        )
    return key


def decode_judgements(key: SheetKey, replies: Sequence[SheetReplies]) -> list[Judgement]:
    """Return every choice that was made, without open questions.

    Raises:
        UserError: a sheet does not belong to the export.
    """
    decoded = []
    for sheet in replies:
        if not 1 <= sheet.sheet <= len(key.sheets):
            raise UserError(f"{sheet.file}: export {key.export} has no sheet {sheet.sheet}")
        entries = key.sheets[sheet.sheet - 1]
        if len(entries) != len(sheet.choices):
            raise UserError(
                f"{sheet.file} has {len(sheet.choices)} choices, but sheet {sheet.sheet} has "
                f"{len(entries)} questions: the file was changed"
            )
        for entry, choice in zip(entries, sheet.choices, strict=True):
            if choice is not None:
                decoded.append(
                    Judgement(
                        item=entry.item,
                        seed=entry.seed,
                        sheet=sheet.sheet,
                        verdict=_decode_verdict(choice, entry.left),
                        chose_a=None if choice in ("tie", "cant_tell") else choice == "a",
                    )
                )
    return decoded


def _decode_verdict(choice: str, left: int) -> Verdict:
    if choice == "tie":
        return "tie"
    if choice == "cant_tell":
        return "cant_tell"
    chosen_arm = left if choice == "a" else 1 - left
    return "win" if chosen_arm == 1 else "lose"


def _read_sheet(file: Path) -> SheetReplies:
    try:
        raw: Any = read_json(file)
        if raw["format"] != REPLIES_FORMAT:
            raise ValueError("another format")
        if not _EXPORT_ID.fullmatch(str(raw["export"])):
            raise ValueError("the export's name is invalid")
        choices = tuple(raw["choices"])
        if any(choice is not None and choice not in CHOICES for choice in choices):
            raise ValueError(f"choices are {', '.join(CHOICES)} or null")
        return SheetReplies(
            file=file,
            export=str(raw["export"]),
            sheet=int(raw["sheet"]),
            annotator=str(raw["annotator"]),
            choices=choices,
        )
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{file} is not a saved sheet ({reason})") from None
