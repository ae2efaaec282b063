"""Text to the token ids of BERT's uncased vocabularies: lower case, words and signs apart, longest known pieces first.

Devlin et al. 2018, as in the original `tokenization.py`; accents are stripped, other scripts are looked up letter by letter.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from model_formats.core.runtime import Array

__all__ = ["WordPiece"]

_LONGEST = 100


class WordPiece:
    """`vocabulary`: `vocab.txt` of a Hugging Face folder, one piece a line."""

    def __init__(self, vocabulary: Path) -> None:
        self._ids = {piece: i for i, piece in enumerate(vocabulary.read_text(encoding="utf-8").splitlines())}

    def __call__(self, texts: Sequence[str], tokens: int) -> dict[str, Array]:
        """`input_ids` and `attention_mask`, both int64 [texts, tokens]: cut, or filled up with 0."""
        ids = np.zeros((len(texts), tokens), np.int64)
        for row, text in zip(ids, texts, strict=True):
            found = [self._ids["[CLS]"], *list(self._of_text(text))[: tokens - 2], self._ids["[SEP]"]]
            row[: len(found)] = found
        return {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)}

    def _of_text(self, text: str) -> Iterator[int]:
        plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
        for word in "".join(c if c.isalnum() else f" {c} " for c in plain).split():
            yield from self._of_word(word)

    def _of_word(self, word: str) -> list[int]:
        found: list[int] = []
        start = 0
        while start < len(word) <= _LONGEST:
            ends = range(len(word), start, -1)
            end = next((e for e in ends if ("##" if start else "") + word[start:e] in self._ids), None)
            if end is None:
                break
            found.append(self._ids[("##" if start else "") + word[start:end]])
            start = end
        return found if start == len(word) else [self._ids["[UNK]"]]
