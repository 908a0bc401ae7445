"""Lets transformers load an artifact: `import qspec.hf`, then `AutoModel.from_pretrained(folder)`,
`AutoModelForMaskedLM` or `AutoModelForCausalLM`. The logits are those of `qspec.load`, and a changed file is refused
as there.

transformers' own loader places the tensors, by name: before it starts, every quantized linear is an empty holder
of the tensors that the artifact stores for it; afterwards `runtime.place` makes the holders QuantLinears.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from qspec.artifact import verify
from qspec.catalog import LayerKernels
from qspec.errors import InputError, MachineError
from qspec.kernels.packing import layout
from qspec.manifest import MANIFEST, Manifest, ModuleRecord
from qspec.models import hf as _families  # noqa: F401 (registers the model classes)
from qspec.models.decoder import Decoder
from qspec.models.shards import tensor_table
from qspec.runtime import TRANSFORM, place

METHOD = "qspec"


@register_quantization_config(METHOD)
class QspecConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The `quantization_config` of an artifact's config.json: where the manifest is, which says all the rest."""

    def __init__(self, quant_method: str = METHOD, manifest: str = MANIFEST, **unknown: Any) -> None:
        if quant_method != METHOD or manifest != MANIFEST or unknown:
            raise InputError(
                "the quantization_config is not one that qspec wrote",
                where="config.json",
                hint="compile the recipe again",
            )
        self.quant_method = quant_method
        self.manifest = manifest


@register_quantizer(METHOD)
class QspecQuantizer(HfQuantizer):  # type: ignore[misc]
    """Loads what the compiler packed; it quantizes nothing itself."""

    requires_calibration = True  # transformers then refuses a float checkpoint with our config
    is_trainable = False

    def is_serializable(self) -> bool:
        """`save_pretrained` would leave manifest and kernels behind: copy the artifact's folder instead."""
        return False

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, *, checkpoint_files: Sequence[str] | None, **_unused: Any
    ) -> None:
        """Verifies every file, then puts a holder in each quantized linear's place. The model is on meta."""
        if not checkpoint_files:
            raise InputError("an artifact is loaded from its folder, not from a state dict")
        self._folder = Path(checkpoint_files[0]).parent
        self._manifest = verify(self._folder)
        decoder = _decoder(model)
        _install_holders(decoder, self._manifest)
        _keep_float32_vectors(decoder, self._folder)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_unused: Any) -> None:
        """Makes the holders QuantLinears."""
        devices = {tensor.device for tensor in model.state_dict().values()}
        device = devices.pop()
        if devices or device.type == "meta":
            raise MachineError(
                "an artifact's tensors must all be on one device", hint='load with device_map="cpu" or "cuda:0"'
            )
        tensors = iter([_transforms_on_cpu(model.state_dict())])
        place(_decoder(model), self._manifest, tensors, device, model.config.dtype, self._folder / "kernels")


def _decoder(model: PreTrainedModel) -> Decoder:
    decoder = getattr(model, "decoder", None)
    if not isinstance(decoder, Decoder):
        raise InputError(f"qspec does not quantize a {type(model).__name__}", where="config.json")
    return decoder


def _install_holders(decoder: Decoder, manifest: Manifest) -> None:
    names = {name for name, _ in decoder.named_modules()}
    for record in manifest.modules:
        if record.module not in names:
            raise InputError(
                f"the manifest lists {record.module!r}, which the model of config.json lacks", where=MANIFEST
            )
        if record.kernels is not None:
            decoder.set_submodule(record.module, _holder(record, record.kernels))


def _holder(record: ModuleRecord, kernels: LayerKernels) -> nn.Module:
    """Empty buffers for every tensor that the artifact stores under this linear's name."""
    holder = nn.Module()
    for suffix, (dtype, shape) in layout(kernels, record.out_features, record.in_features, record.bias).items():
        group, _, name = suffix.rpartition(".")
        if group and record.transform != record.module:
            continue  # stored once for each site, with its first linear
        if group and group not in dict(holder.named_children()):
            holder.add_module(group, nn.Module())
        home = holder.get_submodule(group)
        home.register_buffer(name, torch.empty(shape, dtype=dtype, device="meta"))
    return holder


def _keep_float32_vectors(decoder: Decoder, folder: Path) -> None:
    """Norm gains stay in float32 where they are stored so, whatever the model's dtype, as `runtime.place` has it."""
    stored = tensor_table(folder)
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 1 and name in stored and stored[name].dtype == "F32":
            parameter.data = parameter.data.float()


def _transforms_on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A QuantLinear copies its transform to where it runs; the original stays on the CPU."""
    return {name: t.cpu() if TRANSFORM in name else t for name, t in tensors.items()}
