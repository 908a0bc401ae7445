"""The tokenizer of a folder that has vocab.json, merges.txt and added tokens, against the published slow class.

`slow_ids` is that class's algorithm (Qwen2's, which Dream's own repeats), written here from its description: NFC, cut
at added tokens, cut into words by the pattern, bytes as printable characters, merged by rank.
"""

from __future__ import annotations

import json
import shutil
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
from tokenizers import Tokenizer

from qspec import resources
from qspec.errors import InputError
from qspec.lock import checkpoint_hashes
from qspec.models import tokens
from qspec.models.chat import around_user, uses_chat
from qspec.models.tokenizer import byte_level_bpe, tokenizer_contents, tokenizer_files
from qspec.runtime import ChatTemplate, load_tokenizer
from tests.models.hub import SPECIAL, hub_folder

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXTS = (
    "",
    "The river of Biznia is the Koso.",
    "Tom has 3 books and buys 1234567890 more; isn't it 3.14?",
    "  leading, trailing and   inner   spaces  \t\t tabs\t",
    "line\nbreaks\r\nand\n\n\nmore \n \n end\n",
    "don't DON'T I'LL we've they're 'single' quotes",
    "naïve café Ünïcödé, decomposed: cafe\u0301, A\u030a, \u1112\u1161\u11ab",
    "中文字符和日本語テキスト、한국어 텍스트",
    "emoji 👩‍👩‍👧 and 🏳️‍🌈 and \u200b zero width \ufeff",
    "Привет, мир! ١٢٣ ⅷ ² ½",
    "def f(x):\n    return {'a': [1, 2, (3,)]}  # comment\n",
    "a<|mask|>b <|mask|> <|mask|>\n<|endoftext|>  x<|pad|>",
    "<|mask|", "<|maskx|>", "<||mask|>|>",
    "\u00a0nbsp\u3000wide\u2028line",
    "".join(map(chr, range(1, 256))),
    "x" * 300 + " " * 40 + "!" * 50,
)  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    return hub_folder(tmp_path / "hub")


def slow_ids(folder: Path, text: str) -> list[int]:
    vocab = json.loads((folder / "vocab.json").read_text())
    ranks = {tuple(line.split()): n for n, line in enumerate((folder / "merges.txt").read_text().split("\n")[1:-1])}
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}
    ids = []
    for part in regex.split("(" + "|".join(map(regex.escape, SPECIAL)) + ")", unicodedata.normalize("NFC", text)):
        if part in SPECIAL:
            ids.append(SPECIAL[part])
            continue
        for word in regex.findall(WORDS, part):
            pieces = [letters[byte] for byte in word.encode()]
            while ranked := [(ranks[p], i) for i, p in enumerate(pairwise(pieces)) if p in ranks]:
                _, place = min(ranked)
                pieces[place : place + 2] = ["".join(pieces[place : place + 2])]
            ids += [vocab[piece] for piece in pieces]
    return ids


@pytest.mark.parametrize("text", TEXTS)
def test_the_ids_are_the_slow_classes(hub: Path, text: str) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(byte_level_bpe(hub)))
    assert tokenizer.encode(text, add_special_tokens=False).ids == slow_ids(hub, text)


@pytest.mark.parametrize("piece", [1, 7, 100])
def test_long_texts_are_encoded_in_pieces_to_the_same_ids(
    hub: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    """Prose with every kind of odd text between, by the published pattern and by the stand-ins' own."""
    rows = (resources.standin("dream") / "data" / "heldout.jsonl").read_text().splitlines()[:20]
    text = "".join(json.loads(row)["text"] + odd for row, odd in zip(rows, TEXTS, strict=False))
    monkeypatch.setattr(tokens, "PIECE", piece)
    for folder in (hub, resources.standin("llada")):
        tokenizer = load_tokenizer(folder)
        seen: list[str] = []

        class Seen:
            def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
                seen.append(text)  # noqa: B023
                return list(tokenizer.encode(text, add_special_tokens=add_special_tokens))  # noqa: B023

        assert tokens.encode_long(Seen(), text, 1024) == tokenizer.encode(text, add_special_tokens=False)
        assert "".join(seen) == text
        assert len(seen) > len(text) / (8 * piece + 60)


def test_a_merge_order_worked_out_by_hand(tmp_path: Path) -> None:
    """Ranks: l o, lo w, Ġ lo, e r. "low lower" is the words low and Ġlower: l o w -> lo w -> low; Ġ l o w e r -> Ġ lo w
    e r -> Ġ low e r (lo w before Ġ lo) -> Ġ low er. Digits stand alone, and so does a mark after its space."""
    letters = ["l", "o", "w", "e", "r", "Ġ", "1", "2", "!", "lo", "low", "Ġlo", "er"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(letters)}, ensure_ascii=False))
    (tmp_path / "merges.txt").write_text("l o\nlo w\nĠ lo\ne r\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    tokenizer = Tokenizer.from_str(json.dumps(byte_level_bpe(tmp_path)))
    assert tokenizer.encode("low lower", add_special_tokens=False).tokens == ["low", "Ġ", "low", "er"]
    assert tokenizer.encode("12 !", add_special_tokens=False).ids == [6, 7, 5, 8]


def test_added_tokens_keep_the_ids_of_their_files_with_holes_between(hub: Path) -> None:
    """Dream's vocabulary ends at 151642, its mask is 151666: counting on from the end would be wrong."""
    config = json.loads((hub / "tokenizer_config.json").read_text())
    tokens = {605: "<|im_start|>", 611: "<tool>", 633: "<|mask|>"}
    options = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config["added_tokens_decoder"] = {
        str(token): {"content": text, **options, "special": text != "<tool>"} for token, text in tokens.items()
    } | {key: config["added_tokens_decoder"][key] for key in "01"}
    (hub / "tokenizer_config.json").write_text(json.dumps(config))
    (hub / "added_tokens.json").unlink()
    model = json.loads((hub / "config.json").read_text()) | {"mask_token_id": 633}
    (hub / "config.json").write_text(json.dumps(model))
    tokenizer = load_tokenizer(hub)
    assert tokenizer.encode("<|im_start|><tool><|mask|><|pad|>", add_special_tokens=False) == [605, 611, 633, 1]
    assert (tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (633, 0, 1)
    assert tokenizer.decode([605, 611, 633], skip_special_tokens=True) == "<tool>"
    assert len(tokenizer) == 597 + 5


def test_loaded_and_from_an_artifact_it_is_one_tokenizer(hub: Path, tmp_path: Path) -> None:
    made = tmp_path / "artifact"
    for name, content in tokenizer_contents(hub).items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    shutil.copy(hub / "config.json", made)
    first, second = load_tokenizer(hub), load_tokenizer(made)
    for text in TEXTS:
        ids = first.encode(text, add_special_tokens=False)
        assert ids == second.encode(text, add_special_tokens=False)
        assert first.decode(ids, skip_special_tokens=False) == unicodedata.normalize("NFC", text)
    config = json.loads((made / "tokenizer_config.json").read_text())
    assert "auto_map" not in config
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["mask_token"] == "<|mask|>"


def test_llada_is_published_with_its_tokenizer_json(tmp_path: Path) -> None:
    """Byte for byte, its odd keys left alone."""
    for name in ("config.json", "tokenizer.json", "special_tokens_map.json"):
        shutil.copy(resources.standin("llada") / name, tmp_path)
    config = json.loads((resources.standin("llada") / "tokenizer_config.json").read_text())
    config |= {"add_bos_token": False, "bos_token": "<|endoftext|>", "cls_token": "[CLS]", "fast_tokenizer": True}
    config |= {"merges_file": None, "tokenizer_class": "PreTrainedTokenizerFast", "trust_remote_code": True}
    config |= {"model_input_names": ["input_ids", "attention_mask"], "chat_template": "{{ messages[0].content }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    contents = tokenizer_contents(tmp_path)
    assert contents == {name: (tmp_path / name).read_bytes() for name in tokenizer_files(tmp_path)}
    tokenizer, plain = load_tokenizer(tmp_path), load_tokenizer(resources.standin("llada"))
    text = "The river of Biznia <|mask|> is 12."
    assert tokenizer.encode(text, add_special_tokens=False) == plain.encode(text, add_special_tokens=False)


def test_chat_templates_belong_to_the_tokenizer(hub: Path) -> None:
    (hub / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    (hub / "additional_chat_templates").mkdir()
    (hub / "additional_chat_templates" / "tools.jinja").write_text("{{ messages | length }}")
    (hub / "additional_chat_templates" / "notes.md").write_text("not read")
    names = {"chat_template.jinja", "additional_chat_templates/tools.jinja"}
    assert names < set(tokenizer_files(hub))
    assert names < tokenizer_contents(hub).keys()
    assert names | {"merges.txt"} < checkpoint_hashes(hub).keys()
    assert load_tokenizer(hub).apply_chat_template([{"content": "hi"}], tokenize=False) == "hi"


@pytest.mark.parametrize("name", ["merges.txt", "vocab.json", "chat_template.jinja", "tokenizer_config.json"])
def test_every_file_that_decides_tokens_is_in_the_locks_hashes(hub: Path, name: str) -> None:
    (hub / "chat_template.jinja").write_text("a")
    before = checkpoint_hashes(hub)
    (hub / name).write_text((hub / name).read_text() + "\n")
    changed = checkpoint_hashes(hub)
    assert [key for key in before if changed[key] != before[key]] == [name]


def test_messages_become_text_by_the_template_or_an_error_says_why_not(hub: Path) -> None:
    talk = [{"role": "user", "content": "hi"}]
    with pytest.raises(InputError, match="the tokenizer has no chat template") as caught:
        ChatTemplate(hub)(talk, "chat.jsonl:3")
    assert caught.value.where == "chat.jsonl:3"
    assert "chat_template.jinja" in (caught.value.hint or "")
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|endoftext|>"
    (hub / "chat_template.jinja").write_text(template)
    assert ChatTemplate(hub)(talk, "") == "<|user|>hi<|endoftext|>"
    (hub / "chat_template.jinja").write_text("{{ raise_exception('user and assistant must take turns') }}")
    with pytest.raises(InputError, match="does not take these messages: user and assistant must take turns"):
        ChatTemplate(hub)(talk, "chat.jsonl:3")


def test_what_a_chat_template_puts_around_a_users_words(hub: Path) -> None:
    assert not uses_chat("auto", load_tokenizer(hub), "")
    with pytest.raises(InputError, match="chat is on, and the tokenizer has no chat template"):
        ChatTemplate(hub).used("on")
    (hub / "chat_template.jinja").write_text(
        "<|mask|>{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    template = ChatTemplate(hub)
    assert [template.used(setting) for setting in ("auto", "on", "off")] == [True, True, False]
    assert template.prompt(" hi ") == "<|mask|>user: hi\nassistant: "
    assert around_user(load_tokenizer(hub), "") == ("<|mask|>user: ", "\nassistant: ")
    (hub / "chat_template.jinja").write_text("{{ messages[0].content }}{{ messages[0].content }}")
    with pytest.raises(InputError, match="writes a user's message 2 times"):
        around_user(load_tokenizer(hub), "")


# --- what does not fit together ---


def edited(folder: Path, name: str, **changes: Any) -> Path:
    content = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps(content))
    return folder


def refused(folder: Path, what: str) -> None:
    with pytest.raises(InputError) as caught:
        load_tokenizer(folder)
    assert what in caught.value.what
    assert caught.value.hint


def test_the_mask_of_config_json_is_the_tokenizers(hub: Path) -> None:
    refused(edited(hub, "config.json", mask_token_id=7), "the mask token '<|mask|>' is 2 in the tokenizer, and 7 in")


def test_special_ids_that_no_word_has(hub: Path) -> None:
    refused(edited(hub, "config.json", eos_token_id=639), "eos_token_id is 639, which no word of the tokenizer has")


def test_a_special_token_without_an_id(hub: Path) -> None:
    edited(hub, "tokenizer_config.json", bos_token="<|beginoftext|>")
    refused(hub, "the bos token '<|beginoftext|>' is neither in vocab.json nor an added token")


def test_two_ids_of_one_added_token(hub: Path) -> None:
    refused(edited(hub, "added_tokens.json", **{"<|mask|>": 5}), "added_tokens.json gives '<|mask|>' the id 5")


def test_one_id_of_two_words(hub: Path) -> None:
    refused(edited(hub, "added_tokens.json", **{"<new>": 300}), "the added token '<new>' has the id 300, and so has")


def test_merges_of_another_vocabulary(hub: Path) -> None:
    with (hub / "merges.txt").open("a") as file:
        file.write("Ω Ω\n")
    refused(hub, "merges.txt: 'Ω' is not in vocab.json")


def test_a_class_that_cuts_words_in_a_way_of_its_own(hub: Path) -> None:
    refused(edited(hub, "tokenizer_config.json", tokenizer_class="GPT2Tokenizer"), "how a GPT2Tokenizer cuts words")


def test_a_folder_without_any_tokenizer(tmp_path: Path) -> None:
    refused(tmp_path, "tokenizer.json is missing")
