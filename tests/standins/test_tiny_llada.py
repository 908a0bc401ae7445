"""The bundled checkpoint: what its folder promises, read without the code that wrote it."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from qspec.models.sampler import SamplerSettings

FOLDER = Path(__file__).parents[2] / "qspec" / "standins" / "tiny-llada"
MIB = 1024 * 1024
KINDS = ("recall", "arithmetic", "brackets")


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / "data" / f"{name}.jsonl").read_text().splitlines()]


def settings(name: str) -> dict[str, object]:
    value: dict[str, object] = json.loads((FOLDER / name).read_text())
    return value


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(FOLDER)


def test_the_folder_is_small() -> None:
    sizes = [file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(sizes) <= 16 * MIB
    assert max(sizes) <= 8 * MIB


def test_config_has_llada_s_keys_and_the_ratios_of_the_8b_model() -> None:
    config = settings("config.json")
    official = """d_model n_layers n_heads n_kv_heads mlp_hidden_size embedding_size vocab_size max_sequence_length
        weight_tying block_type activation_type layer_norm_type include_bias include_qkv_bias rope_theta rms_norm_eps
        mask_token_id eos_token_id pad_token_id block_group_size"""
    assert set(official.split()) <= set(config)
    assert config["mlp_hidden_size"] == 3 * config["d_model"]  # 12288 = 3 * 4096
    assert config["embedding_size"] >= config["vocab_size"]
    assert all(config[key] % 128 == 0 for key in ("d_model", "mlp_hidden_size"))  # rotations in blocks of 128
    assert (config["rope_theta"], config["rms_norm_eps"], config["weight_tying"]) == (5e5, 1e-5, False)


def test_tensors_have_the_published_names_and_shapes() -> None:
    """The layout of LLaDA-8B, written out by hand for d = 256, FFN = 768, 640 rows."""
    expected = {f"model.transformer.{name}.weight": [640, 256] for name in ("wte", "ff_out")}
    expected["model.transformer.ln_f.weight"] = [256]
    for n in range(6):
        block = f"model.transformer.blocks.{n}"
        expected |= {f"{block}.{name}.weight": [256] for name in ("attn_norm", "ff_norm")}
        expected |= {f"{block}.{name}.weight": [256, 256] for name in ("q_proj", "k_proj", "v_proj", "attn_out")}
        expected |= {f"{block}.{name}.weight": [768, 256] for name in ("ff_proj", "up_proj")}
        expected[f"{block}.ff_out.weight"] = [256, 768]
    index = settings("model.safetensors.index.json")
    found = {}
    for shard in sorted(FOLDER.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                found[name] = list(file.get_slice(name).get_shape())
                assert file.get_slice(name).get_dtype() == "BF16"
                assert index["weight_map"][name] == shard.name  # type: ignore[index]
    assert found == expected
    assert set(index["weight_map"].values()) == {f"model-0000{k}-of-00002.safetensors" for k in (1, 2)}  # type: ignore[attr-defined,index]
    assert index["metadata"]["total_size"] == 2 * sum(int(torch.tensor(s).prod()) for s in expected.values())  # type: ignore[index]


def test_any_text_makes_the_round_trip(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [string.printable, "  two  spaces\tand\ttabs\n\n", "Grüße, 世界 🙂", "([{}])((", "0123456789" * 3]
    texts += [row["text"] for row in rows("heldout")[:20]]
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_digits_and_brackets_are_tokens_of_their_own(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("47+158") == ["4", "7", "+", "1", "5", "8"]
    assert tokenizer.tokenize("(([{") == ["(", "(", "[", "{"]


def test_special_tokens_are_those_of_config(tokenizer: PreTrainedTokenizerFast) -> None:
    config = settings("config.json")
    found = {name: getattr(tokenizer, name) for name in ("mask_token_id", "eos_token_id", "pad_token_id")}
    assert found == {name: config[name] for name in found}
    assert len(tokenizer) == config["vocab_size"]
    special = settings("special_tokens_map.json")
    assert special == {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "mask_token": "<|mask|>"}


def test_auto_tokenizer_reads_it_without_remote_code(tokenizer: PreTrainedTokenizerFast) -> None:
    found = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=False)
    assert found.get_vocab() == tokenizer.get_vocab()
    assert found("a 1")["input_ids"] == tokenizer("a 1")["input_ids"]


def test_standin_names_its_data_and_sampler() -> None:
    standin = settings("standin.json")
    assert (standin["name"], standin["family"]) == ("tiny-llada", "llada")
    assert set(standin["texts"]) == {"calibration", "heldout"}  # type: ignore[call-overload]
    tasks = standin["tasks"]
    assert isinstance(tasks, dict)
    assert {name: task["title"] for name, task in tasks.items()} == dict(
        zip(("mmlu", "gsm8k", "humaneval"), KINDS, strict=True)
    )
    for file in (*standin["texts"].values(), *(task["file"] for task in tasks.values())):  # type: ignore[attr-defined]
        assert (FOLDER / file).is_file()
    for task in tasks.values():
        SamplerSettings(length=task["length"], steps=task["steps"], block=task["block"])  # raises where they clash
        assert task["steps"] == task["length"]  # one token a step


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_fits_the_sampler_with_its_end(kind: str, tokenizer: PreTrainedTokenizerFast) -> None:
    (task,) = (t for t in settings("standin.json")["tasks"].values() if t["title"] == kind)  # type: ignore[attr-defined]
    for row in rows(kind):
        prompt = tokenizer.encode(row["prompt"], add_special_tokens=False)
        answer = tokenizer.encode(f" {row['answer']}", add_special_tokens=False)
        assert len(answer) < task["length"]
        assert len(prompt) + task["length"] <= 96


def test_answers_are_right() -> None:
    """Arithmetic by evaluating each step, brackets by closing with a stack, code by its name, recall by its choices."""
    for row in rows("arithmetic"):
        steps, result = row["answer"].split(" #### ")
        for step in steps.split("; "):
            left, right = step.split("=")
            assert eval(left) == int(right)  # the file is ours: digits and + - *
        assert right == result
    for row in rows("brackets"):
        if row["prompt"].startswith("Close: "):
            stack: list[str] = []
            for c in row["prompt"].split()[1]:
                if c in "([{":
                    stack.append({"(": ")", "[": "]", "{": "}"}[c])
                else:
                    assert stack.pop() == c
            assert row["answer"] == "".join(reversed(stack))
        else:
            name, rest = row["prompt"].removeprefix("def ").split("(")
            body = rest.split(")")[0]
            words = name.split("_")
            for sign, number in zip(words[::2], words[1::2], strict=True):
                operator = {"add": "+", "sub": "-", "times": "*", "mod": "%"}[sign]
                body = f"({body}){operator}{number}"
            n = 17
            scope = dict.fromkeys("nxyka", n)
            assert eval(row["answer"], {}, scope) == eval(body, {}, scope)
    for row in rows("recall"):
        assert row["answer"] in row["choices"]
        assert len(set(row["choices"])) == 4
        assert row["prompt"].splitlines()[1:5] == list(row["choices"])


def test_files_share_nothing() -> None:
    """No task prompt in either text, no document in both, and every row once."""
    prompts = [row["prompt"] for kind in KINDS for row in rows(kind)]
    calibration, heldout = ([row["text"] for row in rows(name)] for name in ("calibration", "heldout"))
    for values in (prompts, calibration, heldout):
        assert len(set(values)) == len(values)
    assert not set(calibration) & set(heldout)
    for text in (*calibration, *heldout):
        assert not any(text.startswith(prompt) for prompt in prompts)


def test_calibration_is_long_enough(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = sum(len(tokenizer.encode(row["text"], add_special_tokens=False)) for row in rows("calibration"))
    assert tokens >= 40 * 256
    assert any("####" in row["text"] for row in rows("calibration"))
    assert any("capital" in row["text"] for row in rows("calibration"))
