from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qspec.cli import main
from qspec.errors import MachineError
from qspec.models import engine, sampler
from qspec.models.checkpoint import load_decoder
from qspec.models.config import read_config
from qspec.models.decoder import Decoder
from qspec.models.engine import Captured, Graphs, Step
from qspec.models.sampler import DreamSettings, SamplerSettings, Settings, sample, until
from qspec.models.stream import Draft
from qspec.models.tokens import know_tokens
from qspec.plan.generating import TextSizes, generating_memory
from qspec.runtime import load, load_tokenizer
from tests.models import dream_layout
from tests.models.layout import TINY, random_weights, write_checkpoint

LETTERS = ["<pad>", "<eos>", *(chr(code) for code in range(97, 97 + 26)), *"0123456789 +-=.,!?:"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-block checkpoint whose tokens are letters; 47, the mask, to 49 have no text."""
    weights = random_weights(TINY, seed=9)
    weights["model.transformer.ff_out.weight"][[0, 1, *range(len(LETTERS), 50)]] = 0
    return write_model(tmp_path_factory.mktemp("checkpoint"), TINY, weights)


@pytest.fixture(scope="module")
def dream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in Dream's layout."""
    weights = dream_layout.random_weights(dream_layout.TINY_DREAM, seed=9)
    weights["lm_head.weight"][[0, 1, *range(len(LETTERS), 50)]] = 0
    return write_model(tmp_path_factory.mktemp("dream"), dream_layout.TINY_DREAM, weights)


def write_model(path: Path, config: dict[str, Any], weights: dict[str, Any]) -> Path:
    write_checkpoint(path, config, weights)
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(LETTERS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", unk_token="<pad>"
    ).save_pretrained(path)
    return path


def instruct(folder: Path, room: Path) -> Path:
    """The same with a chat template."""
    other = Path(shutil.copytree(folder, room / "chat"))
    (other / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }},{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    )
    return other


def expected(folder: Path, prompt: str, settings: Settings) -> str:
    ids = torch.tensor([[LETTERS.index(c) for c in prompt]])
    model = know_tokens(load_decoder(folder), load_tokenizer(folder))  # an id without text is no token
    row = sample(model, ids, None, settings)[0, len(prompt) :].tolist()
    return "".join(LETTERS[t] for t in until(row, 1))


def test_it_prints_the_text_and_nothing_else(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--prompt", "2+2=", "--length", "12", "--steps", "6", "--block", "4", "--device", "cpu"]
    assert main(["generate", str(folder), *arguments]) == 0
    out, err = capsys.readouterr()
    assert out == expected(folder, "2+2=", SamplerSettings(12, 6, 4)) + "\n"
    assert err == "12 tokens in 6 steps, 2.0 a step\n"


def test_agreement_with_one_token_a_step_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every confidence reaches the threshold: a block in one step. The end-of-text token, 1, counts and ends a text."""
    options = ["--length", "12", "--block", "4", "--threshold", "1e-9", "--agreement", "--device", "cpu"]
    assert main(["generate", str(folder), "--prompt", "2+2=", *options]) == 0
    ids = torch.tensor([[LETTERS.index(c) for c in "2+2="]])
    kinds = (SamplerSettings(12, 12, 4, threshold=1e-9, stop=True), SamplerSettings(12, 12, 4, stop=True))
    fast, slow = (sample(load_decoder(folder), ids, None, one)[0, 4:].tolist() for one in kinds)
    counted = slow.index(1) + 1 if 1 in slow else 12
    equal = sum(a == b for a, b in zip(fast[:counted], slow[:counted], strict=True)) / counted
    said = capsys.readouterr().err.splitlines()
    assert said[1:] == [f"{equal:.0%} of the tokens are those of one token a step"]
    assert re.fullmatch(r"(4|8|12) tokens in [123] steps, 4\.0 a step", said[0])


def test_every_option_reaches_the_sampler(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--length 12 --steps 6 --block 6 --temperature 0.8 --cfg 1.5 --remasking random --seed 7 --cache dual"
    assert main(["generate", str(folder), "--prompt", "hello", "--device", "cpu", *options.split()]) == 0
    settings = SamplerSettings(12, 6, 6, 0.8, "random", 1.5, 7, "dual")
    assert capsys.readouterr().out == expected(folder, "hello", settings) + "\n"


def test_every_option_of_dream_reaches_its_sampler(dream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--length 12 --steps 6 --temperature 0.8 --alg topk_margin --alg-temp 0.4 --top-p 0.9 --top-k 20 --seed 7 "
    )
    options += "--cache prefix"
    assert main(["generate", str(dream), "--prompt", "hello", "--device", "cpu", *options.split()]) == 0
    settings = DreamSettings(12, 6, 0.8, 0.9, 20, "topk_margin", 0.4, 7, "prefix")
    assert capsys.readouterr().out == expected(dream, "hello", settings) + "\n"


def test_dream_s_defaults(dream: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(dream), "--prompt", "a", "--device", "cpu", "--length", "9"]) == 0
    assert capsys.readouterr().out == expected(dream, "a", DreamSettings(9, 9)) + "\n"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("--block 4", "the dream sampler has no blocks"),
        ("--cfg 1.5", "cfg is not a setting of the dream sampler"),
        ("--remasking random", "remasking is not a setting of the dream sampler"),
        ("--top-p 2", "top_p is 2.0; it must lie above 0 and up to 1"),
        ("--cache dual", "cache is dual, and nothing follows the text"),
        ("--alg greedy", "invalid choice: 'greedy'"),
    ],
)
def test_options_that_dream_refuses(dream: Path, capsys: pytest.CaptureFixture[str], options: str, what: str) -> None:
    assert main(["generate", str(dream), "--prompt", "a", "--length", "8", "--device", "cpu", *options.split()]) == 2
    assert what in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--alg entropy", "--alg-temp 0.5", "--top-p 0.9", "--top-k 3"])
def test_options_that_llada_refuses(folder: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main(["generate", str(folder), "--prompt", "a", "--length", "8", "--device", "cpu", *option.split()]) == 2
    name = option.split()[0].strip("-").replace("-", "_")
    err = capsys.readouterr().err
    assert f"{name} is not a setting of the llada sampler" in err
    assert "it has block, temperature, remasking, cfg, seed" in err


@pytest.mark.parametrize(
    ("options", "code", "what"),
    [
        (["--prompt", "a", "--length", "10", "--block", "4"], 2, "length 10 is not a multiple of block 4"),
        (["--prompt", "a", "--steps", "0"], 2, "steps is 0"),
        (["--prompt", "a", "--length", "64"], 3, "prompt of 1 and length 64 exceed the model's 64 tokens"),
        (["--prompt", "a\udcff", "--length", "4"], 3, "not valid text"),
        (["--prompt", "a", "--length", "x"], 2, "invalid int value"),
        ([], 2, "--prompt"),
    ],
)
def test_bad_options_give_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, what: str
) -> None:
    assert main(["generate", str(folder), "--device", "cpu", *options]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert what in err
    assert "Traceback" not in err


def test_a_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tmp_path / "none"), "--prompt", "a", "--device", "cpu"]) == 3
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_steps_that_cannot_be_captured_are_told_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text is the same; why it took longer is said beside it."""

    def refuses(_: Step) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    def runner(model: Decoder, *, captured: bool) -> Captured:
        assert captured
        return Captured(model, engine.CAPTURED.setdefault(model, Graphs(model, refuses)))

    arguments = ["--prompt", "2+2=", "--length", "12", "--block", "4", "--device", "cpu"]
    text = expected(folder, "2+2=", SamplerSettings(12, 12, 4))
    monkeypatch.setattr(sampler, "runner", runner)
    assert main(["generate", str(folder), *arguments]) == 0
    out, err = capsys.readouterr()
    assert out == text + "\n"
    why = "no CUDA graph could be captured: operation not permitted when stream is capturing"
    assert err == f"12 tokens in 12 steps, 1.0 a step\ndenoising steps: eager ({why})\n"


@pytest.mark.parametrize(
    "ending",
    [
        (torch.AcceleratorError("CUDA error: unspecified launch failure\nadvice"), 3, "the GPU failed: CUDA error: un"),
        (torch.OutOfMemoryError("CUDA out of memory."), 3, "the GPU is out of memory: CUDA out of memory."),
        (KeyboardInterrupt(), 130, "interrupted"),
        (None, 3, "the model's logits are NaN or Inf"),
    ],
)
@pytest.mark.parametrize("command", ["generate", "chat"])
def test_what_ends_a_text_is_one_message_and_a_clean_terminal(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    ending: tuple[BaseException | None, int, str],
) -> None:
    """In the third pass, while the terminal shows the canvas; None: logits that are not numbers."""
    (error, code, told), through, calls = ending, Decoder.through, 0

    def fails(self: Decoder, *given: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls < 3:
            return through(self, *given)
        if error is not None:
            raise error
        return through(self, *given) * torch.nan

    monkeypatch.setattr(Decoder, "through", fails)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("sys.stdin", io.StringIO("ab\nab\n"))
    given = [str(folder), "--prompt", "ab"] if command == "generate" else [str(instruct(folder, tmp_path))]
    assert main([command, *given, "--length", "8", "--device", "cpu"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\x1b[?25l") == err.count("\x1b[?25h") == 1  # the cursor was hidden, and is back
    assert err.index("\x1b[?25h") < err.index(f"qspec: {told}")
    assert "Traceback" not in err
    assert "advice" not in err


def test_a_terminal_does_not_obey_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from qspec.cli import generate

    text = "a\x1b[2J\n\tb\u202e\x07é"
    assert generate.shown(text) == text
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert generate.shown(text) == "a\\x1b[2J\n\tb\\u202e\\x07é"


def test_a_stand_in_is_named_as_for_plan(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--prompt", "Problem: 2+2", "--length", "4", "--block", "4", "--device", "cpu"]
    assert main(["generate", "tiny-llada", *arguments]) == 0
    assert capsys.readouterr().err == "4 tokens in 4 steps, 1.0 a step\n"


@pytest.mark.parametrize("name", ["tiny-nothing", "nobody/nothing", "no/such/folder"])
def test_a_name_that_is_no_model(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", name, "--prompt", "x"]) == 3
    err = capsys.readouterr().err
    assert "no such folder" in err or "is neither a folder nor a hub id" in err
    assert name in err


class TestFile:
    PROMPTS = ("2+2=", "hello", "a", "world", "0")
    OPTIONS = ("--length", "8", "--block", "4", "--device", "cpu", "--batch", "2")

    def arguments(self, folder: Path, tmp_path: Path, *more: str) -> list[str]:
        source = tmp_path / "prompts.jsonl"
        source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in self.PROMPTS))
        return [
            "generate",
            str(folder),
            "--file",
            str(source),
            "--out",
            str(tmp_path / "out.jsonl"),
            *self.OPTIONS,
            *more,
        ]

    def test_every_prompt_gets_the_text_that_it_gets_alone(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(self.arguments(folder, tmp_path)) == 0
        assert capsys.readouterr().out == f"texts: {tmp_path / 'out.jsonl'}\n"
        rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [row["prompt"] for row in rows] == list(self.PROMPTS)
        settings = SamplerSettings(8, 8, 4, stop=True)
        assert [row["text"] for row in rows] == [expected(folder, prompt, settings) for prompt in self.PROMPTS]
        assert {row["sampling"]["block"] for row in rows} == {4}

    def test_agreement_is_in_every_row_and_its_mean_said(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Every confidence reaches the threshold: a block in one step. Of a resumed file the mean is of all rows."""
        arguments = self.arguments(folder, tmp_path, "--threshold", "1e-9", "--agreement")
        out = tmp_path / "out.jsonl"
        assert main(arguments) == 0
        told, whole = capsys.readouterr().err, out.read_bytes()
        rows = [json.loads(line) for line in whole.splitlines()]
        model = load_decoder(folder)
        for prompt, row in zip(self.PROMPTS, rows, strict=True):
            ids = torch.tensor([[LETTERS.index(c) for c in prompt]])
            kinds = (SamplerSettings(8, 8, 4, threshold=1e-9), SamplerSettings(8, 8, 4))
            fast, slow = (sample(model, ids, None, one)[0, len(prompt) :].tolist() for one in kinds)
            counted = slow.index(1) + 1 if 1 in slow else 8
            equal = sum(a == b for a, b in zip(fast[:counted], slow[:counted], strict=True))
            assert (row["agreement"], row["tokens_a_step"]) == (pytest.approx(equal / counted), 4.0)
        mean = f"{sum(row['agreement'] for row in rows) / 5:.0%} of the tokens are those of one token a step"
        assert mean in told
        out.write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
        assert main(arguments) == 0
        assert mean in capsys.readouterr().err
        assert out.read_bytes() == whole
        assert main([one for one in arguments if one != "--agreement"]) == 3
        assert "the file holds texts of other prompts, or sampled otherwise" in capsys.readouterr().err

    @pytest.mark.parametrize("kept", [0, 1, 100, 300, 700, 900])
    def test_an_interrupted_run_ends_with_the_same_bytes(self, folder: Path, tmp_path: Path, kept: int) -> None:
        """Cut within a line, within a batch, and behind one."""
        out = tmp_path / "out.jsonl"
        assert main(self.arguments(folder, tmp_path)) == 0
        whole = out.read_bytes()
        out.write_bytes(whole[:kept])
        assert main(self.arguments(folder, tmp_path)) == 0
        assert out.read_bytes() == whole
        assert main(self.arguments(folder, tmp_path)) == 0
        assert out.read_bytes() == whole

    def test_texts_of_other_prompts_or_settings_are_left_alone(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(self.arguments(folder, tmp_path)) == 0
        whole = (tmp_path / "out.jsonl").read_bytes()
        capsys.readouterr()
        assert main(self.arguments(folder, tmp_path, "--seed", "1")) == 3
        err = capsys.readouterr().err
        assert "the file holds texts of other prompts, or sampled otherwise" in err
        assert f"{tmp_path / 'out.jsonl'}:1" in err
        assert (tmp_path / "out.jsonl").read_bytes() == whole

    def test_messages_need_a_chat_template(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = self.arguments(folder, tmp_path)
        messages = [{"role": "user", "content": "hello"}]
        (tmp_path / "prompts.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
        assert main(arguments) == 3
        assert "the tokenizer has no chat template" in capsys.readouterr().err
        other = Path(shutil.copytree(folder, tmp_path / "chat"))
        template = "{% for m in messages %}{{ m.content }}!{% endfor %}{% if add_generation_prompt %}={% endif %}"
        (other / "chat_template.jinja").write_text(template)
        arguments[1] = str(other)
        assert main(arguments) == 0
        (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
        assert row["prompt"] == "hello!="
        assert row["text"] == expected(folder, "hello!=", SamplerSettings(8, 8, 4, stop=True))

    @pytest.mark.parametrize(
        ("change", "code", "what"),
        [
            (lambda a: a[:4] + a[6:], 2, "--file and --out belong together"),
            (lambda a: [*a, "--prompt", "x"], 2, "not allowed with argument"),
            (lambda a: [*a, "--batch", "0"], 2, "--batch is 0"),
        ],
    )
    def test_options_that_do_not_fit(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, code: int, what: str
    ) -> None:
        assert main(change(self.arguments(folder, tmp_path))) == code
        assert what in capsys.readouterr().err

    def test_a_prompt_that_does_not_fit_is_known_before_the_first_text(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = self.arguments(folder, tmp_path)
        with (tmp_path / "prompts.jsonl").open("a") as stream:
            stream.write(json.dumps({"prompt": "a" * 60}) + "\n")
        assert main(arguments) == 3
        err = capsys.readouterr().err
        assert "prompt 6 has 60 tokens: with length 8 they exceed the model's 64" in err
        assert not (tmp_path / "out.jsonl").exists()

    @pytest.mark.parametrize(
        ("text", "what"), [("", "the file has no prompts"), ('{"text": "x"}\n', 'no field "prompt"')]
    )
    def test_files_without_prompts(
        self, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, what: str
    ) -> None:
        arguments = self.arguments(folder, tmp_path)
        (tmp_path / "prompts.jsonl").write_text(text)
        assert main(arguments) == 3
        assert what in capsys.readouterr().err


def test_a_draft_shows_what_is_decided() -> None:
    class Pieces:
        def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
            assert skip_special_tokens
            return "".join(chr(token) for token in token_ids)

    draft = Draft(Pieces(), 6, (ord("$"),), ord("_"))
    assert draft.text() == "······"
    draft.commit([1, 2], list(b"ab"))
    assert draft.text() == "·ab···"
    draft.commit([4], list(b"$"))
    assert draft.text() == "·ab·"
    draft.commit([0], list(b"o"))
    assert draft.text() == "oab·"
    draft.commit([1, 3], list(b"_c"))  # an edit took b's neighbour back
    assert draft.text() == "o·bc"


CHAT = "u:{{ messages[0].content }},{% if add_generation_prompt %}a:{% endif %}"


@pytest.mark.parametrize(
    ("chat", "prompt"), [(None, "u:2+2,a:"), ("auto", "u:2+2,a:"), ("on", "u:2+2,a:"), ("off", "2+2")]
)
def test_a_prompt_is_a_users_message_where_the_tokenizer_has_a_chat_template(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], chat: str | None, prompt: str
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "chat"))
    (other / "chat_template.jinja").write_text(CHAT)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "2+2"}) + "\n")
    options = ["--length", "8", "--block", "4", "--device", "cpu", *(["--chat", chat] if chat else [])]
    wanted = expected(folder, prompt, SamplerSettings(8, 8, 4, stop=True))
    assert main(["generate", str(other), "--prompt", "2+2", *options]) == 0
    assert capsys.readouterr().out == wanted + "\n"
    files = ["--file", str(tmp_path / "prompts.jsonl"), "--out", str(tmp_path / "texts.jsonl")]
    assert main(["generate", str(other), *files, *options]) == 0
    (row,) = map(json.loads, (tmp_path / "texts.jsonl").read_text().splitlines())
    assert (row["prompt"], row["text"]) == (prompt, wanted)


def test_chat_without_a_template(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(folder), "--prompt", "a", "--length", "4", "--chat", "on", "--device", "cpu"]) == 3
    assert "chat is on, and the tokenizer has no chat template" in capsys.readouterr().err


class TestChat:
    def talk(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str) -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        other = str(instruct(folder, tmp_path))
        return main(["chat", other, "--length", "8", "--block", "4", "--device", "cpu"])

    def test_answers_see_what_was_said_before(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        settings = SamplerSettings(8, 8, 4, stop=True)
        first = expected(folder, "u:2+2,a:", settings)
        second = expected(folder, f"u:2+2,a:{first},u:so,a:", settings)
        assert self.talk(folder, tmp_path, monkeypatch, "2+2\n\nso\n/new\n2+2\n") == 0
        assert capsys.readouterr().out == f"{first}\n{second}\n{first}\n"

    def test_what_does_not_fit_is_said_and_forgotten(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        long = "a" * 60
        assert self.talk(folder, tmp_path, monkeypatch, f"{long}\n2+2\n") == 0
        out, err = capsys.readouterr()
        assert out == expected(folder, "u:2+2,a:", SamplerSettings(8, 8, 4, stop=True)) + "\n"
        assert "exceed the model's 64 tokens" in err
        assert "/new begins anew" in err

    def test_a_model_without_a_template(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("sys.stdin", io.StringIO("x\n"))
        assert main(["chat", str(folder), "--device", "cpu"]) == 3
        err = capsys.readouterr().err
        assert "the tokenizer has no chat template" in err
        assert "Traceback" not in err


class TestMemory:
    """Before a model is loaded; a byte less free memory than is needed is refused. A prompt of 40 bytes counts as 10
    tokens; what torch keeps of what was freed is free."""

    @pytest.fixture
    def free(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """A GPU with so many bytes free; loading a model onto it gives an error."""
        free = [0]

        def load_decoder(*_: Any) -> None:
            raise RuntimeError("loaded")

        monkeypatch.setattr("qspec.runtime.load_decoder", load_decoder)
        monkeypatch.setattr("qspec.runtime.on_this_stream", lambda call, _: call)
        monkeypatch.setattr("qspec.runtime.find_device", lambda _: torch.device("cuda"))
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (free[0] - 1000, 1 << 40))
        monkeypatch.setattr("torch.cuda.memory_reserved", lambda _: 1300)
        monkeypatch.setattr("torch.cuda.memory_allocated", lambda _: 300)
        return free

    @pytest.mark.parametrize(
        ("command", "needs"),
        [
            (["generate", "--prompt", "2+2=" * 10, "--cache", "dual"], (TextSizes(1, 22, 4, cache=True), "the cache")),
            (["generate", "--file", "FILE", "--out", "OUT"], (TextSizes(2, 3 + 12, 4), "a step")),
            (["chat"], (TextSizes(1, 3 + 12, 4), "a step")),
        ],
    )
    def test_texts_at_once(
        self,
        folder: Path,
        free: list[int],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        command: list[str],
        needs: tuple[TextSizes, str],
    ) -> None:
        texts, what = needs
        (tmp_path / "FILE").write_text('{"prompt": "2+2="}\n{"prompt": "what is it ?"}\n')
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("qspec.runtime.ChatTemplate.prompt", lambda *_: "user: hello?")
        arguments = [command[0], str(folder), *command[1:], "--length", "12", "--block", "4"]
        shape, weights = read_config(folder)[1], 2 * sum(w.size for w in random_weights(TINY, seed=9).values())
        free[0] = generating_memory(shape, weights, texts).total - 1
        assert main(arguments) == 3
        message = capsys.readouterr().err
        assert f"the model and {texts} at once take about 0.1 GiB of GPU memory (0.0 for weights, " in message
        assert f" for {what}), and 0.1 GiB are free\n" in message
        assert "lower the length or the number of texts at once" in message
        free[0] += 1
        with pytest.raises(RuntimeError, match="loaded"):
            main(arguments)

    @pytest.mark.parametrize(("dtype", "size"), [(None, 2), (torch.float32, 4)])
    def test_a_model_alone(self, folder: Path, free: list[int], dtype: torch.dtype | None, size: int) -> None:
        free[0] = size * sum(w.size for w in random_weights(TINY, seed=9).values()) - 1
        with pytest.raises(MachineError, match=r"the model takes about 0\.0 GiB of GPU memory"):
            load(folder, "cuda", dtype)
        free[0] += 1
        with pytest.raises(RuntimeError, match="loaded"):
            load(folder, "cuda", dtype)
