"""Lets transformers load a checkpoint of a known layout into our decoder: `import qspec.models.hf`, then
`AutoModel.from_pretrained(folder)`, `AutoModelForMaskedLM` or `AutoModelForCausalLM`. No remote code runs.

The transformers model has the decoder's own submodules as its children, so both see one set of weights under
the checkpoint's names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Unpack, cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils import ModelOutput

from qspec.errors import InputError
from qspec.models import llada, qwen
from qspec.models.checkpoint import Checkpoint
from qspec.models.decoder import Decoder
from qspec.models.fields import spelled
from qspec.models.forms import BUFFERS
from qspec.models.registry import family_of
from qspec.models.sampler import Sampling, check_block, sample, settings_for
from qspec.models.samplers.common import SampleStep
from qspec.models.shift import predictors

IGNORED = -100  # a label that asks for nothing, as everywhere in transformers


@dataclass(frozen=True)
class _Asked:
    """What transformers passes to a model by name alone, and LLaDA's own code; a name of nobody's is a TypeError."""

    use_cache: bool | None = None
    output_attentions: bool | None = None
    output_hidden_states: bool | None = None
    return_dict: bool | None = None
    cache_position: None = None
    num_logits_to_keep: int = 0
    attention_bias: Tensor | None = None
    token_type_ids: Tensor | None = None


class DecoderConfig(PreTrainedConfig):  # type: ignore[misc]
    """A config.json of a known family, its keys kept as they are."""

    spellings: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self, **keys: Any) -> None:
        """transformers 5 calls `rope_scaling`, also where it is null, a deprecated spelling of `rope_parameters`.

        Raises InputError for one thing given in two spellings that differ, of which transformers would take the last.
        """
        spelled(keys, self.spellings)
        rotary = spelled(keys, {"rope_parameters": "rope_scaling"})["rope_parameters"]
        keys.pop("rope_scaling", None)
        if rotary is not None:
            keys["rope_parameters"] = rotary
        super().__post_init__(**keys)


@dataclass
class DiffusionOutput(ModelOutput):  # type: ignore[misc]
    """What `diffusion_generate` returns. sequences: int64 [b, prompt + new]; history: the canvas after each step."""

    sequences: Tensor | None = None
    history: tuple[Tensor, ...] | None = None


class LLaDAConfig(DecoderConfig):
    """LLaDA's keys, which can also be read by the names that transformers uses."""

    model_type = "llada"
    spellings = llada.SPELLINGS
    attribute_map = {  # noqa: RUF012 (transformers reads a plain class attribute)
        "hidden_size": "d_model",
        "intermediate_size": "mlp_hidden_size",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "num_key_value_heads": "n_kv_heads",
        "max_position_embeddings": "max_sequence_length",
    }


class DreamConfig(DecoderConfig):
    """Dream's keys are those that transformers itself uses."""

    model_type = "Dream"
    spellings = qwen.SPELLINGS


class SDARConfig(DecoderConfig):
    """SDAR's keys are those that transformers itself uses."""

    model_type = "sdar"
    spellings = qwen.SPELLINGS


class SDARMoeConfig(DecoderConfig):
    """SDAR-MoE's keys are those that transformers itself uses."""

    model_type = "sdar_moe"
    spellings = qwen.SPELLINGS


class FastDLLMConfig(DecoderConfig):
    """Fast-dLLM v2's keys are those that transformers itself uses."""

    model_type = "Fast_dLLM_Qwen"
    spellings = qwen.SPELLINGS


class DecoderModel(PreTrainedModel):  # type: ignore[misc]
    """`Decoder` as a transformers model: logits [b, t, vocab] of ids [b, t], its attention as published."""

    base_model_prefix = ""
    main_input_name = "input_ids"
    _no_split_modules = ["DecoderBlock"]  # noqa: RUF012
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected = [BUFFERS.pattern]  # noqa: RUF012

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        keys = config.to_dict()
        family = family_of(keys)
        decoder = Decoder(family, family.shape(keys))
        self._unregistered = (decoder,)  # in a tuple, so that its modules are listed once
        for name, child in decoder.named_children():
            self.add_module(name, child)
        self.post_init()

    @property
    def decoder(self) -> Decoder:
        return self._unregistered[0]

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.decoder.embedding

    def get_output_embeddings(self) -> torch.nn.Module | None:
        return self.decoder.head

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Weights come from a checkpoint; torch's own initialisation stands until then."""

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers has it, except that a tensor too few or too many is an InputError and not a warning.

        Rotary tables and an equal head beside a tied embedding are none too many (`Checkpoint.open`).
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        head, folder = f"{model.decoder.family.globals['head']}.weight", Path(str(model.config.name_or_path))
        if model.decoder.shape.tied and head in info["unexpected_keys"] and folder.is_dir():
            Checkpoint.open(folder)
            info["unexpected_keys"] = {name for name in info["unexpected_keys"] if name != head}
        for kind in ("missing", "unexpected"):
            if names := sorted(info[f"{kind}_keys"]):
                raise InputError(
                    f"{len(names)} tensors are {kind}, the first is {names[0]}",
                    where=str(model.config.name_or_path),
                    hint="an artifact that qspec compiled loads only after `import qspec.hf`",
                )
        return (model, info) if output_loading_info else model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | str | None = None,
        position_ids: Tensor | None = None,
        past_key_values: None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **others: Any,
    ) -> MaskedLMOutput | tuple[Tensor, ...]:
        """Logits [b, t, vocab] of ids [b, t] or of inputs_embeds [b, t, d], and what else is asked for.

        attention_mask: [b, t], nonzero = real; Dream's own "full" (all are real) and [b, 1, t, t], True where a query
        sees a key; or added to the scores, as LLaDA's attention_bias [b or 1, heads or 1, t, t] is. position_ids
        [b or 1, t]: None counts the real tokens. labels [b, t], -100 where nothing is asked: loss is the mean of
        -log p of the labelled tokens, each predicted as the samplers do (from the position before it in a shifted
        model). hidden_states: the embedding's output and every block's, the last one after the final norm.
        num_logits_to_keep: logits of so many last positions alone; 0, of all. others: fields of `_Asked`.

        Raises ValueError for what is not computed (a cache, attention weights) and for what does not fit together.
        """
        asked = _Asked(**others)
        self._check_computed(past_key_values, asked)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        decoder = self.decoder
        x = decoder.embed(cast(Tensor, input_ids)) if inputs_embeds is None else inputs_embeds
        batch, length, _ = x.shape
        padding, masks = _masks(attention_mask, asked.attention_bias)
        positions = None if position_ids is None else _positions(position_ids, batch, length)
        context = decoder.context((batch, length), padding, positions=positions)
        context = replace(context, mask=_one_mask([context.mask, *masks], x))
        states = [x]
        for block in decoder.blocks:
            states.append(block(states[-1], context))
        hidden = states[-1]
        loss = None
        if labels is not None:
            loss = self._loss(predictors(hidden, decoder.shape, padding), labels)
        if asked.num_logits_to_keep:
            hidden = hidden[:, -asked.num_logits_to_keep :]
        states_too = asked.output_hidden_states
        shown = self.config.output_hidden_states if states_too is None else states_too
        output = MaskedLMOutput(
            loss=loss,
            logits=decoder.finish(hidden),
            hidden_states=(*states[:-1], decoder.final_norm(states[-1])) if shown else None,
        )
        whole = self.config.return_dict if asked.return_dict is None else asked.return_dict
        return output if whole else output.to_tuple()

    @torch.no_grad()
    def diffusion_generate(
        self,
        inputs: Tensor,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 128,
        steps: int | None = None,
        block: int | None = None,
        *,
        return_dict_in_generate: bool = False,
        output_history: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Tensor | DiffusionOutput:
        """Denoises `max_new_tokens` tokens behind prompts: ids [b, p] -> [b, p + max_new_tokens], as Dream's own method
        of this name does; it runs the family's sampler, which is greedy unless `temperature` is given.

        attention_mask [b, p]: 1 = real. steps, block, sampling: as `qspec.generate` has them. output_history: with
        return_dict_in_generate, the canvas after every step too. Errors: as `qspec.generate`.
        """
        shape = self.decoder.shape
        check_block(shape, max_new_tokens, block)
        settings = settings_for(shape, max_new_tokens, steps, block, **sampling)
        canvas = functional.pad(inputs, (0, max_new_tokens), value=shape.mask_token)
        history: list[Tensor] = []

        def keep(step: SampleStep) -> None:
            nonlocal canvas
            tail = torch.where(step.committed, step.tokens, canvas[:, inputs.shape[1] :].to(step.tokens.device))
            canvas = torch.cat((inputs.to(tail.device), tail), dim=1)
            history.append(canvas)

        ids = sample(self.decoder, inputs, attention_mask, settings, keep if output_history else None)
        if not return_dict_in_generate:
            return ids
        return DiffusionOutput(sequences=ids, history=tuple(history) if output_history else None)

    def _check_computed(self, kept: object, asked: _Asked) -> None:
        """Raises ValueError for what other models of transformers do and these do not."""
        if kept is not None or asked.use_cache or asked.cache_position is not None:
            raise ValueError(
                "past_key_values, use_cache and cache_position are not supported: every token sees every other, so "
                "that keys and values of an earlier pass do not hold; qspec.generate(..., cache=...) approximates"
            )
        weights_too = asked.output_attentions
        if self.config.output_attentions if weights_too is None else weights_too:
            raise ValueError("output_attentions is not supported: attention weights are never formed")
        if asked.token_type_ids is not None and bool(asked.token_type_ids.any()):
            raise ValueError("token_type_ids is not supported: these models have one kind of token")

    def _loss(self, predicting: Tensor, labels: Tensor) -> Tensor:
        """The mean of -log p in float32, of labels [b, t] under what predicts each [b, t, d]."""
        if labels.shape != predicting.shape[:2]:
            raise ValueError(f"labels have shape {list(labels.shape)}, the tokens {list(predicting.shape[:2])}")
        asked = labels != IGNORED
        return functional.cross_entropy(self.decoder.finish(predicting[asked]).float(), labels[asked])


def _masks(attention_mask: Tensor | str | None, bias: Tensor | None) -> tuple[Tensor | None, list[Tensor]]:
    """The padding mask [b, t], if there is one, and the masks [b or 1, heads or 1, t, t], bool or to be added."""
    masks = []
    if isinstance(attention_mask, str):
        if attention_mask != "full":
            raise ValueError(f'attention_mask is {attention_mask!r}; give a tensor, "full" or None')
        attention_mask = None
    padding = attention_mask
    if attention_mask is not None and attention_mask.ndim == 4:
        padding = None
        masks.append(attention_mask)
    if bias is not None:
        masks.append(bias)
    for mask in masks:
        if mask.ndim != 4 or not (mask.dtype == torch.bool or mask.is_floating_point()):
            raise ValueError(
                f"a mask of shape {list(mask.shape)} and {mask.dtype} is not supported: give [b, t], or "
                "[b, 1, t, t] as bool (True where a query sees a key) or as numbers to be added to the scores"
            )
    return padding, masks


def _one_mask(masks: list[Tensor | None], like: Tensor) -> Tensor | None:
    """All of them as one, bool or in the dtype of `like` to be added to the scores."""
    whole: Tensor | None = None
    for mask in masks:
        if mask is None:
            continue
        own = mask.to(like.device, mask.dtype if mask.dtype == torch.bool else like.dtype)
        if whole is None:
            whole = own
        elif own.dtype == torch.bool and whole.dtype == torch.bool:
            whole = whole & own
        else:
            whole = _added(whole, like.dtype) + _added(own, like.dtype)
    return whole


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers: 0 where a query sees a key, -inf where it does not."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)


def _positions(position_ids: Tensor, batch: int, length: int) -> Tensor:
    if position_ids.is_floating_point() or tuple(position_ids.shape) not in ((batch, length), (1, length)):
        raise ValueError(
            f"position_ids have shape {list(position_ids.shape)} and {position_ids.dtype}; "
            f"give whole numbers [{batch}, {length}] or [1, {length}]"
        )
    return position_ids


class LLaDAModelLM(DecoderModel):
    """LLaDA under its published class name."""

    config_class = LLaDAConfig


class DreamModel(DecoderModel):
    """Dream under its published class name; logits at position i predict token i + 1, as there."""

    config_class = DreamConfig


class SDARForCausalLM(DecoderModel):
    """SDAR under its published class name: block-causal, as there."""

    config_class = SDARConfig


class SDARMoeForCausalLM(DecoderModel):
    """SDAR-MoE under its published class name: block-causal, as there."""

    config_class = SDARMoeConfig


class Fast_dLLM_QwenForCausalLM(DecoderModel):  # noqa: N801 (the published name)
    """Fast-dLLM v2 under its published class name: block-causal, and logits at position i predict token i + 1."""

    config_class = FastDLLMConfig


def register() -> None:
    """Makes transformers' Auto classes know the families; runs on import, and again without effect."""
    for model in (LLaDAModelLM, DreamModel, SDARForCausalLM, SDARMoeForCausalLM, Fast_dLLM_QwenForCausalLM):
        config = model.config_class
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForMaskedLM.register(config, model, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)


register()
