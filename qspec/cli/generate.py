"""`qspec generate ARTIFACT --prompt TEXT`: denoise text with a compiled model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from qspec.cli.output import write
from qspec.errors import visible

if TYPE_CHECKING:
    from qspec.models.sampler import Denoiser, Settings, Tokenizer


OPTIONS = (
    "temperature", "seed", "cache", "cfg", "remasking", "threshold", "factor", "logits_eos_inf",
    "confidence_eos_eot_inf", "alg", "alg_temp", "top_p", "top_k",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "artifact", metavar="ARTIFACT", help="a compiled model, a checkpoint folder, hub id or stand-in"
    )
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    parser.add_argument("--length", type=int, default=128, help="tokens to generate (default: 128)")
    parser.add_argument("--steps", type=int, help="forward passes (default: one for each token)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--cache",
        choices=("prefix", "dual"),
        help="keep keys and values from a block's first step on, which changes the text (default: compute all; "
        "Dream's sampler has prefix)",
    )
    llada = parser.add_argument_group("LLaDA's sampler")
    llada.add_argument("--block", type=int, help="tokens denoised together (default: all of them)")
    llada.add_argument("--cfg", type=float, metavar="SCALE", help="guidance (default: 0, none)")
    llada.add_argument("--remasking", choices=("low_confidence", "random"), help="(default: low_confidence)")
    llada.add_argument(
        "--threshold",
        type=float,
        metavar="P",
        help="commit all tokens of this confidence or more: fewer steps",
    )
    llada.add_argument("--factor", type=float, metavar="F", help="commit by Fast-dLLM's bound on a row's confidences")
    llada.add_argument("--logits-eos-inf", action="store_true", default=None, help="never take the end-of-text token")
    llada.add_argument(
        "--confidence-eos-eot-inf", action="store_true", default=None, help="commit tokens that end the text last"
    )
    dream = parser.add_argument_group("Dream's sampler")
    algorithms = ("origin", "maskgit_plus", "topk_margin", "entropy")
    dream.add_argument("--alg", choices=algorithms, help="which masks are filled first (default: entropy)")
    dream.add_argument("--alg-temp", type=float, metavar="T", help="chance in that choice (default: 0, none)")
    dream.add_argument("--top-p", type=float, metavar="P", help="draw from the likeliest tokens up to this share")
    dream.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens")


def run(args: argparse.Namespace) -> int:
    from qspec.runtime import load

    settings = _settings(args)  # refuses what does not fit before a model is loaded
    model, tokenizer = load(args.artifact, device=args.device)
    write(_shown(_generate(model, tokenizer, args.prompt, settings)) + "\n")
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    from qspec.models.config import read_config
    from qspec.models.sampler import check_block, settings_for
    from qspec.runtime import checkpoint_folder

    _, shape, _ = read_config(checkpoint_folder(args.artifact))
    check_block(shape, args.length, args.block)
    options = {name: getattr(args, name) for name in OPTIONS}
    if shape.sampler == "llada":
        options["stop"] = True
    return settings_for(shape, args.length, args.steps, args.block, **options)


def _generate(model: Denoiser, tokenizer: Tokenizer, prompt: str, settings: Settings) -> str:
    """The text, with a progress bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    from qspec.models.sampler import continue_text

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("denoising", total=settings.steps)
        return continue_text(model, tokenizer, prompt, settings, lambda _: bar.advance(task))


def _shown(text: str) -> str:
    """Text as it may go to a terminal, which would obey a model's control characters; pipes get all of it."""
    if not sys.stdout.isatty():
        return text
    return visible(text)
