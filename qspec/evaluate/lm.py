"""LLaDA, Dream and artifacts as a model of lm-eval, called `qspec` there (`python -m qspec.lm_eval`).

Likelihoods are the Monte Carlo estimates of `qspec.evaluate.likelihood`, with draws that depend on the seed and the
text alone, so that every model that is compared has the same; texts are denoised by the family's own sampler.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from qspec import runtime
from qspec.data import Choice
from qspec.evaluate.likelihood import encode_choice, likelihoods, log_likelihoods, rate_tokens
from qspec.evaluate.tasks import denoise, encode_prompts, written
from qspec.models.sampler import Settings, settings_for, stops
from qspec.models.tokens import encode


@register_model("qspec")
class DiffusionLM(LM):  # type: ignore[misc]  # lm-eval has no types
    """path: an artifact, a checkpoint's folder or hub id in the local cache, or a stand-in's name.

    length, steps, block: the sampler's, unless a request's `gen_kwargs` have them; steps None is one a token. draws,
    seed: of likelihoods. Whether a continuation is what the sampler writes is found out where a document has one of
    them: a forward pass a token, which tasks with choices do not use. lm-eval's batch sizes have no effect: batches are
    filled by tokens. Errors: as `qspec.load`.
    """

    def __init__(
        self,
        path: str,
        device: str = "auto",
        length: int = 256,
        steps: int | None = None,
        block: int = 32,
        draws: int = 128,
        seed: int = 0,
        **_batches: Any,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = runtime.load(path, "cuda" if device.startswith("cuda") else device)
        self.length, self.steps, self.block = length, steps, block
        self.draws, self.seed = draws, seed
        self.path = path

    @property
    def tokenizer_name(self) -> str:
        return self.path.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        return str(self.tokenizer.chat_template or "") if chat_template else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        ends = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return str(self.tokenizer.apply_chat_template(chat_history, tokenize=False, **ends))

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log p, whether it is what the sampler writes) of each continuation behind its context."""
        choices = [Choice(*request.args) for request in requests]
        scores = likelihoods(self.model, self.tokenizer, choices, self.draws, self.seed)
        single = _single(requests)
        found = [
            (score, place in single and self._is_greedy(choice))
            for place, (choice, score) in enumerate(zip(choices, scores, strict=True))
        ]
        return self._kept("loglikelihood", requests, found)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """log p of each text: the sum over its parts of as many tokens as the model takes, each without the others."""
        found = []
        for request in requests:
            ids, most = encode(self.tokenizer, request.args[0], self.model.shape.vocab), self.model.shape.max_length
            seed = zlib.crc32(f"{self.seed}/{request.args[0]}".encode())
            parts = [ids[start : start + most] for start in range(0, len(ids), most)]
            found.append(sum(log_likelihoods(self.model, [rate_tokens([], part, self.draws, seed) for part in parts])))
        return self._kept("loglikelihood_rolling", requests, found)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The text behind each context, up to the first of its `until`."""
        groups: dict[Settings, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(self._settings(request.args[1]), []).append(place)
        texts = [""] * len(requests)
        for settings, places in groups.items():
            contexts = [requests[place].args[0] for place in places]
            prompts = encode_prompts(contexts, self.tokenizer, self.model.shape, settings, "lm-eval's requests")
            run = denoise(self.model, prompts, settings)
            for place, text in zip(places, written(self.tokenizer, run, self.model.shape.ends, ()), strict=True):
                texts[place] = _cut(text, requests[place].args[1])
        return self._kept("generate_until", requests, texts)

    def _settings(self, options: Mapping[str, Any]) -> Settings:
        length = int(options.get("length", self.length))
        steps = options.get("steps", self.steps)
        return settings_for(
            self.model.shape,
            length,
            length if steps is None else int(steps),
            int(options.get("block", min(self.block, length))),
            temperature=float(options.get("temperature", 0.0)) if options.get("do_sample") else None,
            seed=self.seed,
            stop=stops(self.model.shape),
        )

    def _is_greedy(self, choice: Choice) -> bool:
        """Whether the sampler, one token a step, writes this text."""
        context, target = encode_choice(choice, self.tokenizer, self.model.shape)
        run = denoise(self.model, [context], settings_for(self.model.shape, len(target), len(target), seed=self.seed))
        return run.tokens[0].tolist() == target

    def _kept(self, kind: str, requests: Iterable[Any], found: list[Any]) -> list[Any]:
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)
        return found


def _single(requests: Sequence[Any]) -> set[int]:
    """The places of requests that are alone in asking about their document."""
    owners: dict[Any, list[int]] = {}
    for place, request in enumerate(requests):
        owners.setdefault((request.task_name, request.doc_id), []).append(place)
    return {places[0] for places in owners.values() if len(places) == 1}


def _cut(text: str, options: Mapping[str, Any]) -> str:
    until = options.get("until") or ()
    for mark in [until] if isinstance(until, str) else until:
        text = text.split(mark, 1)[0] if mark else text
    return text
