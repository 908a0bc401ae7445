"""`qspec generate ARTIFACT --prompt TEXT`: denoise text with a compiled model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qspec.cli.output import say, tell, write
from qspec.errors import UsageError, visible

if TYPE_CHECKING:
    from qspec.models.chat import ChatSetting
    from qspec.models.sampler import Denoiser, Settings, Tokenizer
    from qspec.models.samplers.run import Tally
    from qspec.plan.generating import TextSizes
    from qspec.texts import Prompt


TOKEN_BYTES = 4  # of a prompt, about
REMASKING = "random is LLaDA's alone, sequential that of block-causal models (default: low_confidence)"
OPTIONS = (
    "temperature", "seed", "cache", "cfg", "remasking", "threshold", "factor", "logits_eos_inf",
    "confidence_eos_eot_inf", "alg", "alg_temp", "top_p", "top_k", "part", "entropy_bound", "edit_threshold",
    "edit_steps", "t_min", "t_max", "stability_threshold", "confidence_threshold",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "artifact", metavar="ARTIFACT", help="a compiled model, a checkpoint folder, hub id or stand-in"
    )
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--prompt", metavar="TEXT", help="the text to continue")
    given.add_argument(
        "--file", metavar="FILE", help='JSON lines, each with a "prompt" or with chat "messages"; needs --out'
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="with --file: JSON lines with the texts; an interrupted run resumes",
    )
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="with --file: texts at once (default: 8)")
    parser.add_argument(
        "--chat",
        choices=("auto", "on", "off"),
        default="auto",
        help="make a prompt a user's message in the tokenizer's chat template (default: auto, where it has one)",
    )
    parser.add_argument(
        "--agreement",
        action="store_true",
        help="say how many tokens are those of one token a step, which fewer steps approximate (also in --out)",
    )
    add_sampling(parser)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How a text is denoised, and on which device."""
    parser.add_argument("--length", type=int, default=128, help="tokens to generate (default: 128)")
    parser.add_argument("--steps", type=int, help="forward passes (default: one for each token)")
    parser.add_argument("--temperature", type=float, help="0 takes the likeliest token (default)")
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
    llada.add_argument("--remasking", choices=("low_confidence", "random", "sequential"), help=REMASKING)
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
    shared = "also --remasking, --threshold, --top-p and --top-k"
    block = parser.add_argument_group(f"the sampler of block-causal models: {shared}")
    block.add_argument(
        "--entropy-bound",
        type=float,
        metavar="H",
        help="commit tokens while their entropies add up to less than H nats",
    )
    block.add_argument(
        "--edit-threshold",
        type=float,
        metavar="P",
        help="edit committed tokens of the block where another one is predicted with more confidence (LLaDA2.1, 2.2)",
    )
    block.add_argument("--edit-steps", type=int, metavar="N", help="passes that edit a full block (default: 16)")
    block.add_argument(
        "--part", type=int, metavar="N", help="fill N tokens of a block before the next N (default: all)"
    )
    noise = parser.add_argument_group("DiffusionGemma's sampler: also --entropy-bound (default: 0.1)")
    noise.add_argument("--t-min", type=float, metavar="T", help="temperature of the last pass, nearly (default: 0.4)")
    noise.add_argument("--t-max", type=float, metavar="T", help="of the first pass over a canvas (default: 0.8)")
    noise.add_argument(
        "--stability-threshold", type=int, metavar="N", help="passes before with the same likeliest tokens (default: 1)"
    )
    noise.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="H",
        help="and a mean entropy below this settle it (default: 0.005)",
    )


def run(args: argparse.Namespace) -> int:
    from qspec.models.sampler import agreement, new_tokens, one_token_a_step
    from qspec.models.samplers.run import Tally
    from qspec.runtime import load

    if (args.file is None) != (args.out is None):
        raise UsageError("--file and --out belong together", hint="texts for a file of prompts go to a file")
    if args.batch < 1:
        raise UsageError(f"--batch is {args.batch}; it must be at least 1")
    settings = settings_of(args)  # refuses what does not fit before a model is loaded
    if args.file is not None:
        return _fill(args, settings)
    model, tokenizer = load(args.artifact, args.device, texts=at_once(settings, [args.prompt]))
    ids = _prompt(tokenizer, args.prompt, args.chat, args.artifact).ids(tokenizer, model.shape.vocab)
    tally = Tally()
    write(shown(generated(model, tokenizer, ids, settings, tally)) + "\n")
    tell(tally)
    if args.agreement:
        ours, exact = (new_tokens(model, [ids], one) for one in (settings, one_token_a_step(settings)))
        _tell_agreement(*agreement(ours, exact, *model.shape.ends))
    tell_refused(model)
    return 0


def _fill(args: argparse.Namespace, settings: Settings) -> int:
    """Texts for a file of prompts."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from qspec.files import require_file
    from qspec.runtime import ChatTemplate, checkpoint_folder, load
    from qspec.texts import TextFile, read_prompts

    folder = checkpoint_folder(args.artifact)
    prompts = read_prompts(Path(args.file), ChatTemplate(folder), args.chat)
    texts = TextFile(Path(args.out), prompts, settings, args.batch, args.agreement)
    require_file(texts.path)
    texts.kept()  # refuses a file of other texts before a model is loaded
    sizes = at_once(settings, [prompt.text for prompt in prompts], args.batch)
    model, tokenizer = load(args.artifact, args.device, texts=sizes)
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("texts", total=len(prompts))
        tally = texts.fill(model, tokenizer, lambda count: bar.advance(task, count))
    if tally.steps:
        tell(tally)
    if args.agreement:
        _tell_agreement(texts.mean_agreement())
    tell_refused(model)
    say(f"texts: {texts.path}")
    return 0


def settings_of(args: argparse.Namespace) -> Settings:
    """What `add_sampling` was given, for the model that `args.artifact` names. Errors: UsageError, InputError."""
    from qspec.models.config import read_config
    from qspec.models.sampler import Sampling, generation_settings
    from qspec.runtime import checkpoint_folder

    _, shape, _ = read_config(checkpoint_folder(args.artifact))
    options: Sampling = {name: getattr(args, name) for name in OPTIONS}  # type: ignore[assignment]
    return generation_settings(shape, args.length, args.steps, args.block, options)


def _prompt(tokenizer: Tokenizer, text: str, chat: ChatSetting, where: str) -> Prompt:
    from qspec.models.chat import user_message, uses_chat
    from qspec.texts import Prompt

    if uses_chat(chat, tokenizer, where):
        return Prompt(user_message(tokenizer, text, where), templated=True)
    return Prompt(text)


def at_once(settings: Settings, prompts: Sequence[str], batch: int = 1) -> TextSizes:
    """What is denoised at once of texts behind prompts, which are no tokens before a model is loaded."""
    from qspec.runtime import text_sizes

    longest = max(len(prompt.encode(errors="replace")) for prompt in prompts)
    return text_sizes(settings, min(batch, len(prompts)), longest // TOKEN_BYTES + settings.length)


def generated(
    model: Denoiser, tokenizer: Tokenizer, ids: Sequence[int], settings: Settings, tally: Tally | None = None
) -> str:
    """The text; on a terminal it is shown as it is denoised."""
    from qspec.cli.live import LiveText
    from qspec.models.sampler import continue_ids
    from qspec.models.stream import stream_ids

    with LiveText() as live:
        if not live.shown:  # to look at a step is to wait for it
            (text,) = continue_ids(model, tokenizer, [ids], settings, tally)
            return text
        for commit in stream_ids(model, tokenizer, [ids], settings, tally):
            live.update(commit.text)
        return commit.text


def _tell_agreement(share: float) -> None:
    tell(f"{share:.0%} of the tokens are those of one token a step")


def tell_refused(model: Denoiser) -> None:
    """Says on standard error where steps were slower than they are meant to be, and why."""
    from qspec.models.sampler import refused

    why = refused(model)
    if why:
        tell(f"denoising steps: eager ({why})")


def shown(text: str) -> str:
    """Text as it may go to a terminal, which would obey a model's control characters; pipes get all of it."""
    if not sys.stdout.isatty():
        return text
    return visible(text)
