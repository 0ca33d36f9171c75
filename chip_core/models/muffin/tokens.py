"""Build Muffin's tokenizer from a LLaMA checkpoint's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chip_core.models.muffin.processing import END, PATCH, START
from chip_core.utils.errors import UserError

#: Tokens added to LLaMA's vocabulary, in this order.
ADDED_TOKENS = ("[PAD]", PATCH, START, END)

_MAX_LENGTH = 2048


def build_tokenizer(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> Any:
    """Return a tokenizer like LLaMA's of 2023, with Muffin's tokens added.

    Text after an added token begins like a new sentence, with a space of its own. The tokenizer is
    saved as it is, not under the name of a class that would rebuild it differently.

    Args:
        vocabulary: piece -> id, including `<unk>`, `<s>` and `</s>`.
        merges: pairs of pieces, in the order in which they are merged.
    """
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    llama = LlamaTokenizer(
        vocab=dict(vocabulary), merges=list(merges), legacy=True, add_bos_token=True
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=llama.backend_tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    return add_tokens(tokenizer)


def add_tokens(tokenizer: Any) -> Any:
    """Return a tokenizer with Muffin's tokens added, in order, after all others."""
    padding, *images = ADDED_TOKENS
    if tokenizer.pad_token != padding:
        tokenizer.add_special_tokens({"pad_token": padding})
    tokenizer.add_special_tokens({"additional_special_tokens": images})
    return tokenizer


def read_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a released checkpoint's folder: `tokenizer.model`, SentencePiece's.

    Raises:
        UserError: it is missing or cannot be read, or its added tokens differ.
    """
    from google.protobuf.message import DecodeError
    from transformers.convert_slow_tokenizer import import_protobuf
    from transformers.tokenization_utils_base import generate_merges

    file = folder / "tokenizer.model"
    if not file.is_file():
        raise UserError(f"no {file}: copy the checkpoint's tokenizer next to its weights")
    model = import_protobuf().ModelProto()
    try:
        model.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise UserError(f"{file} is not a SentencePiece model ({error}): copy it again") from None
    vocabulary = {piece.piece: index for index, piece in enumerate(model.pieces)}
    if not {"<unk>", "<s>", "</s>"} <= set(vocabulary):
        raise UserError(f"{file} has no <unk>, <s> or </s>: it is not a LLaMA tokenizer")
    tokenizer = build_tokenizer(vocabulary, generate_merges(vocabulary))
    _check_added_tokens(folder / "added_tokens.json", tokenizer)
    return tokenizer


def _check_added_tokens(file: Path, tokenizer: Any) -> None:
    """Check that the added tokens are the ones expected here."""
    if not file.is_file():
        return
    for token, number in json.loads(file.read_text(encoding="utf-8")).items():
        expected = tokenizer.convert_tokens_to_ids(token)
        if expected != number:
            raise UserError(
                f"{file}: {token} is {number} there, but should be {expected}: the checkpoint has "
                f"other added tokens than {', '.join(ADDED_TOKENS)}"
            )
