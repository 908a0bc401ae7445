"""What a folder holds that is not an unquantized checkpoint, said by name with the step that leads to one. No torch.

`check_form` looks at file names and config.json before anything is read; `blame` at the tensors, where these are not
the layout that config.json asks for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from qspec.errors import InputError
from qspec.models.config import MAX_CONFIG_BYTES, read_json

ARTIFACT = "qspec.json"
ADAPTER = "adapter_config.json"
METHODS = {  # quant_method of a config.json -> what people call it
    "gptq": "GPTQ",
    "awq": "AWQ",
    "compressed-tensors": "compressed-tensors",
    "bitsandbytes": "bitsandbytes",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8",
    "modelopt": "ModelOpt",
    "hqq": "HQQ",
    "aqlm": "AQLM",
    "quanto": "quanto",
    "torchao": "torchao",
    "mxfp4": "MXFP4",
}
QUANTIZED_TENSORS = {  # end of a tensor's name -> who stores it
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".g_idx": "GPTQ",
    ".weight_packed": "compressed-tensors",
    ".weight_scale": "compressed-tensors",
    ".weight.quant_state.bitsandbytes__nf4": "bitsandbytes",
    ".weight.quant_state.bitsandbytes__fp4": "bitsandbytes",
    ".weight.absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_scale_inv": "FP8",
    ".codes": "qspec",
}
BUFFERS = re.compile(  # rotary tables that some trainers save; they follow from config.json and are computed anew
    r"(?:.*\.)?(?:rotary_emb|rotary_pos_emb|rotary)\.(?:inv_freq|original_inv_freq|cos_cached|sin_cached)"
)
WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "_fsdp_wrapped_module.")
BLOCK = re.compile(r"\.(\d+)\.")
UNQUANTIZED = "give the unquantized checkpoint that it was made from"
DIFFERENT = "config.json and weights are of different models, or a file was left behind"


def check_file(path: Path) -> None:
    """Raises InputError for a file where a folder is wanted, by what the file is."""
    if path.suffix.lower() == ".gguf":
        raise _gguf(path)
    raise InputError(
        f"{path.name} is a file; a checkpoint is a folder",
        where=str(path),
        hint="give the folder that holds config.json and *.safetensors",
    )


def check_form(folder: Path) -> None:
    """Raises InputError where the folder is an artifact, already quantized, an adapter or of GGUF files."""
    if (folder / ARTIFACT).is_file():
        what = "this is a model that qspec compiled already"
        raise InputError(what, where=str(folder), hint=UNQUANTIZED)
    names = {path.name for path in folder.iterdir()}
    if not any(name.endswith(".safetensors") for name in names):
        for name in sorted(names):
            if name.lower().endswith(".gguf"):
                raise _gguf(folder / name)
    if ADAPTER in names and not _has_weights(names):
        raise _adapter(folder / ADAPTER)
    if "config.json" in names:
        _check_config(folder, read_json(folder / "config.json", MAX_CONFIG_BYTES))
    for name in ("quantize_config.json", "quant_config.json"):  # beside what AutoGPTQ and AutoAWQ wrote
        if name in names:
            raise _quantized(folder / name, "GPTQ" if name == "quantize_config.json" else "AWQ")


def blame(expected: Collection[str], found: Collection[str]) -> str:
    """Why a folder's tensors are not those that its config.json asks for, by their names: the next step."""
    missing = [name for name in expected if name not in found]
    for name in found:
        for end, method in QUANTIZED_TENSORS.items():
            if name.endswith(end):
                return f"the weights are quantized already ({method} stores such tensors): {UNQUANTIZED}"
        if ".lora_A." in name or ".lora_B." in name:
            return "the weights are an adapter's: merge it into its base model, and give the whole model"
    for wrapper in WRAPPERS:
        if any(f"{wrapper}{name}" in found for name in missing):
            return f'the names begin with "{wrapper}", which a trainer put there: save the model that it wraps'
    wanted, there = _blocks(expected), _blocks(found)
    if there and wanted != there:
        return f"config.json asks for {len(wanted)} blocks, the weights have {len(there)}"
    if missing and not any(BLOCK.search(name) for name in missing):
        return "if the head is the embedding, config.json must say so: tie_word_embeddings, in LLaDA's weight_tying"
    return DIFFERENT


def _blocks(names: Iterable[str]) -> set[str]:
    return {match[1] for name in names if (match := BLOCK.search(name))}


def _check_config(folder: Path, config: Mapping[str, Any]) -> None:
    quantization = config.get("quantization_config")
    if quantization is None:
        return
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if method == "qspec":
        what = "config.json is that of a model that qspec compiled"
        raise InputError(what, where=f"{folder / 'config.json'}: quantization_config", hint=UNQUANTIZED)
    name = METHODS.get(method, method) if isinstance(method, str) else "a method that config.json does not name"
    raise _quantized(folder / "config.json", name[:60])


def _quantized(path: Path, method: str) -> InputError:
    what = f"the checkpoint is quantized already ({method}); its rounding cannot be undone"
    return InputError(what, where=str(path), hint=UNQUANTIZED)


def _gguf(path: Path) -> InputError:
    what = f"{path.name} is a GGUF file, of llama.cpp's own layout and mostly quantized already"
    hint = "give the folder of the original checkpoint: config.json beside *.safetensors"
    return InputError(what, where=str(path), hint=hint)


def _adapter(path: Path) -> InputError:
    base = read_json(path, MAX_CONFIG_BYTES).get("base_model_name_or_path")
    name = f" for {base[:120]!r}" if isinstance(base, str) and base else ""
    return InputError(
        f"the folder holds an adapter{name}, not a whole model",
        where=str(path),
        hint="merge it into its base model (peft: merge_and_unload, then save_pretrained) and give that folder",
    )


def _has_weights(names: Collection[str]) -> bool:
    return any(name.endswith(".safetensors") and not name.startswith("adapter_") for name in names)
