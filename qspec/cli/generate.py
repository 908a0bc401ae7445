"""`qspec generate ARTIFACT --prompt TEXT`: denoise text with a compiled model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qspec.models.sampler import Denoiser, SamplerSettings, Tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", help="a compiled model, or a checkpoint folder")
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")
    parser.add_argument("--length", type=int, default=128, help="tokens to generate (default: 128)")
    parser.add_argument("--steps", type=int, help="forward passes (default: one for each token)")
    parser.add_argument("--block", type=int, help="tokens denoised together (default: all of them)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)")
    parser.add_argument("--cfg", type=float, default=0.0, metavar="SCALE", help="guidance (default: 0, none)")
    parser.add_argument("--remasking", choices=("low_confidence", "random"), default="low_confidence")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def run(args: argparse.Namespace) -> int:
    from qspec.models.sampler import SamplerSettings
    from qspec.runtime import load

    steps = args.length if args.steps is None else args.steps
    block = args.length if args.block is None else args.block
    settings = SamplerSettings(  # refuses what does not divide before a model is loaded
        args.length, steps, block, args.temperature, args.remasking, args.cfg, args.seed
    )
    model, tokenizer = load(args.artifact, device=args.device)
    print(_shown(_generate(model, tokenizer, args.prompt, settings)))
    return 0


def _generate(model: Denoiser, tokenizer: Tokenizer, prompt: str, settings: SamplerSettings) -> str:
    """The text, with a progress bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    from qspec.models.sampler import generate

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("denoising", total=settings.steps)
        return generate(
            model,
            tokenizer,
            prompt,
            length=settings.length,
            steps=settings.steps,
            block=settings.block,
            temperature=settings.temperature,
            cfg=settings.cfg,
            remasking=settings.remasking,
            seed=settings.seed,
            on_step=lambda _: bar.advance(task),
        )


def _shown(text: str) -> str:
    """Text as it may go to a terminal, which would obey a model's control characters; pipes get all of it."""
    if not sys.stdout.isatty():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)
