"""Embedding and tokenizer of different sizes, the mask token, float16's range, ties: with models of a few rows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers import models as kinds
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from qspec import runtime
from qspec.calibrate.certainty import certainty
from qspec.calibrate.rollouts import trajectory
from qspec.calibrate.tokens import windows as stretches
from qspec.cli import main
from qspec.data import EXACT, Choice, TaskData, TaskItem, TextData
from qspec.errors import InputError, NumericsError
from qspec.evaluate.forward import MaskedRow, log_probabilities
from qspec.evaluate.likelihood import encode_choice
from qspec.evaluate.nelbo import measure_nelbo, windows
from qspec.evaluate.tasks import measure_task
from qspec.language.spec import NelboRequest
from qspec.models.commit import most_confident
from qspec.models.decoder import Decoder
from qspec.models.dream import DREAM
from qspec.models.family import DecoderShape, Family
from qspec.models.llada import LLADA
from qspec.models.sampler import DreamSettings, SamplerSettings, Settings, generate, sample
from qspec.models.tokens import check_mask_token, encode, know_tokens
from qspec.search.losses import LossRows
from tests.cli.test_generate import LETTERS, write_model
from tests.models import dream_layout, layout
from tests.models.dream_layout import TINY_DREAM
from tests.models.layout import TINY

ABSENT = [3, 30, 48, 49]  # of the 50 rows of the tiny models; 47 is the mask, 1 ends a text, 0 pads
FAMILIES: dict[str, tuple[Family, dict[str, Any], Any]] = {
    "llada": (LLADA, TINY, layout),
    "dream": (DREAM, TINY_DREAM, dream_layout),
}


class Words:
    """A tokenizer of all ids but `ABSENT` and the mask; the text "3" is token 3, whether there is one or not."""

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(47) if i not in ABSENT}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> str:
        return " ".join(map(str, token_ids))


def greedy_for_absent(family: str, dtype: torch.dtype = torch.float32) -> Decoder:
    """A random model that gives ids 3, 30, 48 and 49 by far the largest logits, whatever it sees."""
    own, config, module = FAMILIES[family]
    weights = {name: torch.from_numpy(w).to(dtype) for name, w in module.random_weights(config, seed=4).items()}
    model = Decoder(own, own.shape(config), dtype=dtype)
    model.load_state_dict(weights)
    model.finish = Shouting(model.finish)  # type: ignore[method-assign]
    return model.requires_grad_(False)


class Shouting:
    def __init__(self, finish: Callable[[Tensor], Tensor]) -> None:
        self.finish = finish

    def __call__(self, x: Tensor) -> Tensor:
        logits = self.finish(x).clone()
        logits[..., ABSENT] += 100
        return logits


SETTINGS: dict[str, tuple[str, Settings]] = {
    "llada": ("llada", SamplerSettings(8, 8, 4)),
    "llada, guidance, temperature": ("llada", SamplerSettings(8, 4, 4, cfg=1.5, temperature=1.0, seed=2)),
    "llada, random, dual cache": ("llada", SamplerSettings(8, 4, 4, remasking="random", cache="dual")),
    "dream": ("dream", DreamSettings(8, 4)),
    "dream, temperature, top-p": ("dream", DreamSettings(8, 4, temperature=0.5, top_p=0.95, alg="topk_margin")),
    "dream, origin, top-k, cache": (
        "dream",
        DreamSettings(8, 4, temperature=2.0, top_k=60, alg="origin", cache="prefix"),
    ),
}


@pytest.mark.parametrize(("family", "settings"), SETTINGS.values(), ids=SETTINGS)
def test_no_sampler_writes_an_id_that_the_tokenizer_lacks(family: str, settings: Settings) -> None:
    model, prompt = greedy_for_absent(family), torch.tensor([[5, 6, 7], [8, 9, 10]])
    assert set(sample(model, prompt, None, settings)[:, 3:].flatten().tolist()) & set(ABSENT)
    written = sample(know_tokens(model, Words()), prompt, None, settings)[:, 3:]
    assert not set(written.flatten().tolist()) & {*ABSENT, 47}


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_probabilities_are_of_the_tokens_that_there_are(family: str) -> None:
    """Likelihood, NELBO, KL, certainty, rollouts: softmax over the known ids alone, and never NaN."""
    model = know_tokens(greedy_for_absent(family), Words())
    absent = model.absent
    assert know_tokens(model, Words()).absent is absent  # where captured steps read it
    known = [i for i in range(47) if i not in ABSENT]
    hidden = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    expected = model.finish(hidden)[:, known].double().log_softmax(-1)
    torch.testing.assert_close(log_probabilities(model, hidden)[:, known].double(), expected, rtol=0, atol=1e-5)

    text = TextData("t", (Path("t"),), ("5 6 7 8 9 10 11 12",))
    found = measure_nelbo(model, model, Words(), text, NelboRequest(samples=1), 0)
    assert found.metric.baseline < 10  # ln 43 = 3.8 for a uniform model; the absent ids would leave over 100
    assert all(abs(bucket.kl) < 1e-9 for bucket in found.kl)

    ids = torch.tensor([[5, 6, 47, 8], [47, 10, 11, 47]])
    assert (certainty(model, ids, ids == 47)[ids == 47] < 0.999).all()
    states = trajectory(model, torch.tensor([[5, 6]]), 4, 8, 0)
    assert not set(states.flatten().tolist()) & set(ABSENT)
    rows = [MaskedRow(torch.tensor([5, 6, 7, 8]), torch.tensor([False, True, True, False]))]
    losses = LossRows(model, rows, "kl", 64)
    assert losses.loss(model.blocks[-1], [torch.zeros(1, 4, 24)]).mean < 20  # finite


def test_a_tokenizer_that_has_every_id_changes_nothing() -> None:
    model = greedy_for_absent("llada")

    class All(Words):
        def get_vocab(self) -> dict[str, int]:
            return {str(i): i for i in range(60)}

    assert know_tokens(model, All()).absent is None


def test_the_end_of_a_text_stays_possible() -> None:
    class Endless(Words):
        def get_vocab(self) -> dict[str, int]:
            return {"5": 5}

    model = know_tokens(greedy_for_absent("llada"), Endless())
    assert model.absent is not None
    assert (~model.absent).nonzero().flatten().tolist() == [1, 5]


def test_a_padded_vocabulary_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = layout.random_weights(TINY, seed=9)
    head = weights["model.transformer.ff_out.weight"]
    head[[0, 1, 47, 48]] = 0
    head[49] = head[5] * 3  # wherever "d" is likely, the padding behind the tokenizer's 47 entries is likelier
    folder = write_model(tmp_path, TINY, weights)
    assert main(["generate", str(folder), "--prompt", "ab", "--length", "16", "--device", "cpu"]) == 0
    assert len(capsys.readouterr().out.removesuffix("\n")) == 16
    model, _ = runtime.load(folder, device="cpu")
    assert model.absent.nonzero().flatten().tolist() == [47, 48, 49]
    raw = runtime.load_decoder(folder)(torch.tensor([[2, 3]])).logits
    assert torch.equal(model(torch.tensor([[2, 3]])).logits, raw)  # the published logits, padding and all
    assert len(LETTERS) == 47


def into_text(model: Decoder) -> dict[str, Callable[[str], object]]:
    """Every way from text to ids."""
    shape = model.shape
    choice = TaskItem("5", "6", (Choice("5", "6"),), 0)

    def task(text: str) -> TaskData:
        return TaskData("mmlu", "t", (EXACT,), (TaskItem(text, "6", choice.choices, 0),), 4, 4, 4)

    return {
        "encode": lambda text: encode(Words(), text, shape.vocab),
        "generate": lambda text: generate(model, Words(), text, length=4),
        "nelbo": lambda text: windows(TextData("t", (Path("t"),), (text,)), Words(), shape.vocab, 1, 8),
        "calibration": lambda text: stretches([text], Words(), shape.vocab, 1, 4, torch.Generator().manual_seed(0)),
        "context": lambda text: encode_choice(Choice(text, " 6"), Words(), shape),
        "choice": lambda text: encode_choice(Choice("6", f" {text}"), Words(), shape),
        "task": lambda text: measure_task(model, model, Words(), task(text), EXACT, 0),
    }


@pytest.mark.parametrize("way", ["encode", "generate", "nelbo", "calibration", "context", "choice", "task"])
def test_text_with_tokens_beyond_the_embedding_is_one_error(way: str) -> None:
    run = into_text(greedy_for_absent("llada"))[way]
    run("5 6 7 8 9 10 11 49")
    for text, token in (("5 6 7 8 9 10 11 50", 50), ("5 6 7 8 9 10 11 -1", -1)):
        with pytest.raises(InputError, match=f"token {token}, and the model has tokens 0 to 49"):
            run(text)


# --- the mask token ---


def tokenizer(mask: str | None, **special: str) -> PreTrainedTokenizerFast:
    """a .. d are 0 .. 3, the specials 4, 5, 6; what is marked as mask, eos or pad is up to the test."""
    inner = Tokenizer(kinds.WordLevel({letter: i for i, letter in enumerate("abcd")}, unk_token="a"))
    inner.add_special_tokens([AddedToken(name, special=True) for name in ("<eos>", "<pad>", "<mask>")])
    given = special | ({} if mask is None else {"mask_token": mask})
    return PreTrainedTokenizerFast(tokenizer_object=inner, **given)


def shape(mask: int, eos: int = 4, pad: int = 4) -> DecoderShape:
    return LLADA.shape(TINY | {"mask_token_id": mask, "eos_token_id": eos, "pad_token_id": pad})


def test_mask_tokens_that_are_right_pass() -> None:
    check_mask_token(shape(6), tokenizer("<mask>", eos_token="<eos>", pad_token="<eos>"), "here")
    check_mask_token(shape(6), tokenizer(None, eos_token="<eos>"), "here")  # a special token, not marked as the mask
    check_mask_token(shape(40), tokenizer(None), "here")  # behind the tokenizer's end: no text is encoded to it


@pytest.mark.parametrize(
    ("mask", "marked", "special", "what"),
    [
        (5, "<mask>", {}, r"mask_token_id is 5 \('<pad>'\), and the tokenizer's mask token is 6 \('<mask>'\)"),
        (40, "<mask>", {}, r"mask_token_id is 40 \(no entry\)"),
        (2, None, {}, "mask_token_id is 2, which the tokenizer has as the ordinary word 'c'"),
        (4, None, {"eos_token": "<eos>"}, "mask_token_id is 4, the tokenizer's eos token '<eos>'"),
        (5, "<pad>", {"pad_token": "<pad>"}, "mask_token_id is 5, the tokenizer's pad token '<pad>'"),
    ],
)
def test_mask_tokens_that_are_text_or_its_end_are_refused(
    mask: int, marked: str | None, special: dict[str, str], what: str
) -> None:
    with pytest.raises(InputError, match=what):
        check_mask_token(shape(mask, eos=1, pad=0), tokenizer(marked, **special), "here")


@pytest.mark.parametrize("key", ["eos_token_id", "pad_token_id"])
@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_config_whose_mask_ends_or_pads_is_refused(family: str, key: str) -> None:
    own, config, _ = FAMILIES[family]
    with pytest.raises(InputError, match=f"mask_token_id is 47, and so is {key}"):
        own.shape(config | {key: 47})
    assert own.shape(config | {"eos_token_id": 0, "pad_token_id": 0}).pad_token == 0  # these two may be one


def test_a_wrong_mask_token_stops_every_command_that_opens_the_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path, TINY, layout.random_weights(TINY))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mask_token_id": 5}))  # the letter d
    for command in (["generate", "--prompt", "ab"], ["inspect"]):
        assert main([command[0], str(folder), *command[1:], "--device", "cpu"]) == 3
        assert "mask_token_id is 5, which the tokenizer has as the ordinary word 'd'" in capsys.readouterr().err


# --- ties ---


@given(
    st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, -torch.inf]), min_size=40, max_size=40), min_size=1, max_size=3),
    st.integers(0, 40),
)
def test_equal_confidences_are_committed_from_the_left(rows: list[list[float]], count: int) -> None:
    expected = []
    for row in rows:
        order = sorted(range(40), key=lambda place: (-row[place], place))
        taken = [place for place in order[:count] if row[place] > -torch.inf]
        expected.append([place in taken for place in range(40)])
    assert most_confident(torch.tensor(rows), count).tolist() == expected


@pytest.mark.parametrize(
    "settings",
    [SamplerSettings(40, 20, 40), DreamSettings(40, 20), DreamSettings(40, 20, alg="topk_margin")],
    ids=["low_confidence", "entropy", "topk_margin"],
)
def test_a_model_that_is_equally_sure_everywhere_writes_from_left_to_right(settings: Settings) -> None:
    """All logits are equal, so that every position ties with every other in every step."""

    class Indifferent:
        shape = LLADA.shape(TINY)
        device = torch.device("cpu")
        absent = None

        def hidden(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return torch.zeros(*input_ids.shape, 50)

        def finish(self, x: Tensor) -> Tensor:
            return x

    places: list[int] = []
    sample(
        Indifferent(), torch.tensor([[5, 6]]), None, settings,
        lambda step: places.extend(step.committed[0].nonzero().flatten().tolist()),
    )  # fmt: skip
    assert places == list(range(40))


# --- float16 ---


def test_an_overflow_of_float16_is_told_from_broken_weights() -> None:
    """Weights that float16 holds, and activations of 1e5 that it does not; float32 and bfloat16 hold both."""
    own, config, module = FAMILIES["llada"]
    weights = {name: torch.from_numpy(w) for name, w in module.random_weights(config, seed=4).items()}
    for name in weights:
        if name.endswith(("up_proj.weight", "blocks.0.ff_out.weight")):
            weights[name] = weights[name] * 300
    hidden = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = Decoder(own, own.shape(config), dtype=dtype).requires_grad_(False)
        model.load_state_dict({name: t.to(dtype) for name, t in weights.items()})
        hidden[dtype] = model.hidden(torch.tensor([[5, 6, 47, 47]]))
        if dtype != torch.float16:
            sample(model, torch.tensor([[5, 6]]), None, SamplerSettings(2, 1, 2))
            continue
        with pytest.raises(NumericsError, match="exceed 65504, the largest number of float16") as caught:
            sample(model, torch.tensor([[5, 6]]), None, SamplerSettings(2, 1, 2))
        assert "bfloat16" in (caught.value.hint or "")
        next(iter(model.parameters())).data[5] = torch.nan
        with pytest.raises(NumericsError, match=r"logits are NaN or Inf\n") as caught:
            log_probabilities(model, model.hidden(torch.tensor([[5, 6]]))[0])
        assert "weights or scales are broken" in (caught.value.hint or "")
    assert 65504 < hidden[torch.float32].abs().max() < torch.inf
    assert hidden[torch.bfloat16].isfinite().all()
    assert not hidden[torch.float16].isfinite().all()


def test_every_pair_of_special_tokens_is_looked_at() -> None:
    """mask, eos and pad of three different ids in any order pass; a mask that equals one of the two never does."""
    for mask, eos, pad in itertools.product((4, 5, 6), repeat=3):
        keys = {"mask_token_id": mask, "eos_token_id": [eos, 9], "pad_token_id": pad}
        if mask in (eos, pad):
            with pytest.raises(InputError, match=f"mask_token_id is {mask}, and so is"):
                LLADA.shape(TINY | keys)
        else:
            assert LLADA.shape(TINY | keys).ends == (eos, 9)
