"""A folder in Hugging Face's form, with small random weights; the network is compared with a second one written in NumPy."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from model_formats.build.build import BuildOptions, build_model_folder
from model_formats.build.dataset import BuildData, Rows
from model_formats.export.hf_folder import HfFolder
from model_formats.export.source import SourceRefused
from model_formats.runtimes.select import open_session

WIDTH, LAYERS, HEADS, WORDS = 32, 2, 4, 60
CONFIG = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"0": "calm", "1": "loud", "2": "sad"},
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    found: dict[str, np.ndarray] = {}

    def linear(name: str, inner: int, outer: int) -> None:
        found[f"{name}.weight"] = (rng.normal(size=(outer, inner)) / np.sqrt(inner)).astype(np.float32)
        found[f"{name}.bias"] = rng.normal(size=outer, scale=0.1).astype(np.float32)

    def norm(name: str) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)

    for name, size in (("word", WORDS), ("position", 40), ("token_type", 2)):
        found[f"bert.embeddings.{name}_embeddings.weight"] = rng.normal(size=(size, WIDTH)).astype(np.float32)
    norm("bert.embeddings.LayerNorm")
    for n in range(LAYERS):
        at = f"bert.encoder.layer.{n}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{at}.attention.{part}", WIDTH, WIDTH)
        norm(f"{at}.attention.output.LayerNorm")
        linear(f"{at}.intermediate.dense", WIDTH, 64)
        linear(f"{at}.output.dense", 64, WIDTH)
        norm(f"{at}.output.LayerNorm")
    linear("bert.pooler.dense", WIDTH, WIDTH)
    linear("classifier", WIDTH, 3)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "calm-bert"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(CONFIG))
    save_file(_weights(), place / "model.safetensors")
    return place


def _tokens(rows: int, length: int = 12) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    mask = (np.arange(length) < rng.integers(3, length + 1, rows)[:, None]).astype(np.int64)
    return {"input_ids": rng.integers(1, WORDS, (rows, length)) * mask, "attention_mask": mask}


def _by_hand(tokens: dict[str, np.ndarray]) -> np.ndarray:
    """BERT in NumPy, float64: erf by its series, since SciPy is not among our tools."""
    from math import erf

    weights = {name: array.astype(np.float64) for name, array in _weights().items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    at = "bert.embeddings"
    x = weights[f"{at}.word_embeddings.weight"][ids] + weights[f"{at}.position_embeddings.weight"][: ids.shape[1]]
    x = norm(f"{at}.LayerNorm", x + weights[f"{at}.token_type_embeddings.weight"][0])
    for n in range(LAYERS):
        at = f"bert.encoder.layer.{n}"
        q, k, v = (
            linear(f"{at}.attention.self.{p}", x).reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2)
            for p in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(WIDTH // HEADS) + (mask[:, None, None] - 1) * 1e4
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        seen = ((scores / scores.sum(-1, keepdims=True)) @ v).swapaxes(1, 2).reshape(x.shape)
        x = norm(f"{at}.attention.output.LayerNorm", x + linear(f"{at}.attention.output.dense", seen))
        up = linear(f"{at}.intermediate.dense", x)
        up = up * 0.5 * (1 + np.vectorize(erf)(up / np.sqrt(2)))
        x = norm(f"{at}.output.LayerNorm", x + linear(f"{at}.output.dense", up))
    return linear("classifier", np.tanh(linear("bert.pooler.dense", x[:, 0])))


def test_the_folder_gives_the_answers_of_a_second_implementation(folder: Path, tmp_path: Path) -> None:
    source = HfFolder(folder)
    source.export(tmp_path / "out.onnx", source.contract())
    for tokens in (_tokens(5), _tokens(3, length=20)):
        got = open_session(tmp_path / "out.onnx").run(tokens, ["logits"])[0]
        np.testing.assert_allclose(got, _by_hand(tokens), atol=1e-4)


def test_a_text_classifier_is_built_with_dynamic_int8_and_an_adaptable_head(folder: Path, tmp_path: Path) -> None:
    source = HfFolder(folder)
    contract = source.contract()
    assert contract.classes == ("calm", "loud", "sad")

    def rows(count: int) -> Rows:
        return Rows(_tokens(count), _by_hand(_tokens(count)).argmax(axis=1))

    options = BuildOptions("calm", 1, "Calm or loud", "Apache-2.0", contract, ("eu",), ("gdpr",), max_drop=0.2)
    built = build_model_folder(source, tmp_path / "m", BuildData(rows(80), rows(60)), options)
    assert built.spec.adapter is not None
    assert built.evidence.lineage.source_format == "huggingface"
    assert built.evidence.claim("onnx-fp32") == 1.0
    assert {f.id for f in built.profile.features} >= {"input_ids.length", "attention_mask.length", "confidence"}


def test_a_folder_without_a_classifier_is_an_embedding_of_length_one(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["BertModel"]}))
    source = HfFolder(folder)
    assert source.contract().task == "embedding"
    source.export(tmp_path / "out.onnx", source.contract())
    found = open_session(tmp_path / "out.onnx").run(_tokens(4), ["embedding"])[0]
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _linked(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "real")
    (folder / "model.safetensors").symlink_to(folder / "real")


def _index_points_outside(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../../etc/passwd"}}))


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def _other_family(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "model_type": "llama"}))


def _wrong_width(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "hidden_size": 48}))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_pickle_only, "pytorch_model.bin is a pickle"),
        (_linked, "a link"),
        (_index_points_outside, "outside the folder"),
        (_cut, "not a readable safetensors"),
        (_other_family, "'llama'"),
        (_wrong_width, "not those of config.json"),
    ],
)
def test_folders_that_cannot_be_trusted_are_refused(folder: Path, tmp_path: Path, spoil, told: str) -> None:  # type: ignore[no-untyped-def]
    spoil(folder)
    with pytest.raises(SourceRefused, match=told):
        HfFolder(folder).export(tmp_path / "out.onnx", HfFolder(folder).contract())
