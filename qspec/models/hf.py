"""Lets transformers load a checkpoint of a known layout into our decoder: `import qspec.models.hf`, then
`AutoModel.from_pretrained(folder)` or `AutoModelForMaskedLM`. No remote code runs.

The transformers model has the decoder's own submodules as its children, so both see one set of weights under
the checkpoint's names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

from qspec.errors import InputError
from qspec.models.decoder import Decoder
from qspec.models.registry import family_of


class LLaDAConfig(PreTrainedConfig):  # type: ignore[misc]
    """A LLaDA config.json, its keys kept as they are."""

    model_type = "llada"
    attribute_map = {  # noqa: RUF012 (transformers reads a plain class attribute)
        "hidden_size": "d_model",
        "intermediate_size": "mlp_hidden_size",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "num_key_value_heads": "n_kv_heads",
        "max_position_embeddings": "max_sequence_length",
    }


class DreamConfig(PreTrainedConfig):  # type: ignore[misc]
    """A Dream config.json, whose keys are those that transformers itself uses."""

    model_type = "Dream"

    def __init__(self, rope_scaling: Any = None, **keys: Any) -> None:
        """Published configs say `rope_scaling: null`, which transformers 5 takes for a deprecated setting."""
        super().__init__(**keys if rope_scaling is None else keys | {"rope_scaling": rope_scaling})


class DecoderModel(PreTrainedModel):  # type: ignore[misc]
    """`Decoder` as a transformers model: logits [b, t, vocab] of ids [b, t], bidirectional, as published."""

    base_model_prefix = ""
    main_input_name = "input_ids"
    _no_split_modules = ["DecoderBlock"]  # noqa: RUF012
    _supports_sdpa = True

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
        """As transformers has it, except that a tensor too few or too many is an InputError and not a warning."""
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        for kind in ("missing", "unexpected"):
            if names := sorted(info[f"{kind}_keys"]):
                raise InputError(
                    f"{len(names)} tensors are {kind}, the first is {names[0]}",
                    where=str(model.config.name_or_path),
                    hint="an artifact that qspec compiled loads only after `import qspec.hf`",
                )
        return (model, info) if output_loading_info else model

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_unused: Any) -> MaskedLMOutput:
        return MaskedLMOutput(logits=self.decoder(input_ids, attention_mask).logits)


class LLaDAModelLM(DecoderModel):
    """LLaDA under its published class name."""

    config_class = LLaDAConfig


class DreamModel(DecoderModel):
    """Dream under its published class name; logits at position i predict token i + 1, as there."""

    config_class = DreamConfig


def register() -> None:
    """Makes transformers' Auto classes know the families; runs on import, and again without effect."""
    for model in (LLaDAModelLM, DreamModel):
        config = model.config_class
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForMaskedLM.register(config, model, exist_ok=True)


register()
