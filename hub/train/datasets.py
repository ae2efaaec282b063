"""Datasets as immutable snapshots: each share is named by the digest of its bytes, and splits are the same on every machine."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from model_formats.build.dataset import Rows
from model_formats.core.runtime import Array

__all__ = ["SITE_ROWS", "Shares", "breast_cancer", "digits"]

SITE_ROWS = {"dubai": 180, "frankfurt": 400, "clinic": 157}
"""Digits that belong to each site of the demo; the hub never trains on them."""


@dataclass(frozen=True, slots=True)
class Shares:
    """One dataset, divided: what the hub trains on, what it holds out, and what belongs to each site."""

    train: Rows
    held_out: Rows
    sites: Mapping[str, Rows]


def digits() -> Shares:
    """scikit-learn's 1797 handwritten digits: `image` FP32 [n, 1, 8, 8], raw 0..16, labels 0..9. 760 train, 300 held out."""
    from sklearn.datasets import load_digits

    found = load_digits()
    rows = Rows({"image": found.images.astype(np.float32)[:, None]}, found.target.astype(np.int64))
    return _divide(rows, train=760, held_out=300, sites=SITE_ROWS)


def breast_cancer() -> Shares:
    """scikit-learn's Wisconsin breast cancer: `cells` FP32 [n, 30], labels 0 malignant, 1 benign. 320 train, 149 held out."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    size = np.where(found.data[:, 0] > np.median(found.data[:, 0]), "large", "small")
    rows = Rows({"cells": found.data.astype(np.float32)}, found.target.astype(np.int64), {"radius": size})
    return _divide(rows, train=320, held_out=149, sites={"clinic": 100})


def _divide(rows: Rows, *, train: int, held_out: int, sites: Mapping[str, int]) -> Shares:
    order = _shuffled(len(rows))
    cuts = np.cumsum([train, held_out, *sites.values()])
    parts = [rows.take(part) for part in np.split(order, cuts)[: len(cuts)]]
    return Shares(parts[0], parts[1], dict(zip(sites, parts[2:], strict=True)))


def _shuffled(rows: int) -> Array:
    """A fixed order by a multiplicative hash: the same in every version of NumPy, which its generators do not promise."""
    keys = (np.arange(1, rows + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20)
    return np.argsort(keys * np.uint64(0xD1342543DE82EF95), kind="stable")
