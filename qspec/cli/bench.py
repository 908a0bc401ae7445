"""`qspec bench`: what the GEMMs take on this GPU, beside cuBLAS, the GPU's limits and other packages.

`qspec bench --step`: what a whole denoising step takes, beside the same model in bf16.
`qspec bench --generate`: what whole texts take by the sampler, beside the same model in bf16.
`qspec bench --evaluate`: what measuring by `qspec eval` takes, beside the same model in bf16.
`qspec bench --load`: what loading a model and its first token take, beside a plain read of its files.
`qspec bench --experts`: what grouped GEMMs of mixtures of experts take, beside torch's in bf16.
`qspec bench --rows`: what the activation quantization kernels take, beside a copy of the same bytes.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from qspec.cli.output import flush, say
from qspec.errors import UsageError

FORMATS = ("w4a16_g128", "w3a16_g128", "w4a4", "w4a8", "w8a8", "w8a8_fp8")
SHAPE = re.compile(r"([1-9]\d*)x([1-9]\d*)")
MODELS = ("llada", "dream")
WRITERS = (*MODELS, "sdar")  # that write texts
MIXTURES, EXPERT_TOKENS = ("llada2-mini", "sdar-30b"), "32,64,256,1024,4096"
TOKENS, STEP_TOKENS = "1,16,64,256,1024,4096", "32,1024"  # of GEMMs, of steps
ROW_TOKENS = "1,64,1024"
PROMPT, LENGTH, BATCHES = 128, 256, "1,8"  # of generated texts
RECIPES = ("rtn_w8a8", "rtn_w4a4", "duquant_w4a4", "gptq_w4a16")  # in recipes/paper: of both families


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_gemm_arguments(parser, TOKENS)
    parser.add_argument(
        "--step",
        nargs="*",
        metavar="RECIPE",
        help="time denoising steps of whole models under these recipes instead (none given: W8A8, W4A4, rotated W4A4 "
        f"and W4A16 of recipes/paper); --shape names models, and --tokens (default {STEP_TOKENS}) what a step computes "
        "of a canvas of 1024 tokens, the others kept by a dual cache",
    )
    parser.add_argument(
        "--generate",
        nargs="*",
        metavar="RECIPE",
        help="time whole texts by the sampler instead, under these recipes (none given: those of --step); --shape has "
        f"the models, of {', '.join(WRITERS)}",
    )
    parser.add_argument(
        "--evaluate",
        nargs="*",
        metavar="RECIPE",
        help="time what `qspec eval` computes for tasks of four shapes instead, under these recipes (none given: those "
        "of --step); --shape has the models",
    )
    parser.add_argument("--length", type=int, metavar="N", help=f"with --generate: new tokens (default: {LENGTH})")
    parser.add_argument("--prompt", type=int, metavar="N", help=f"with --generate: tokens before (default: {PROMPT})")
    parser.add_argument("--batch", metavar="LIST", help=f"with --generate: texts at once (default: {BATCHES})")
    parser.add_argument(
        "--load",
        nargs="?",
        const="",
        metavar="ARTIFACT",
        help="time loading this artifact or checkpoint instead, and its first token (none given: one of the model that "
        "--shape names, with random codes under duquant_w4a4, written to --out for the time being)",
    )
    parser.add_argument(
        "--rows",
        action="store_true",
        help="time the activation quantization kernels instead, of the models that --shape names (default: both); "
        f"--tokens {ROW_TOKENS}",
    )
    parser.add_argument(
        "--experts",
        action="store_true",
        help="time grouped GEMMs of mixtures of experts instead, of the models that --shape names "
        f"({' or '.join(MIXTURES)}, default: both); --tokens {EXPERT_TOKENS}",
    )
    parser.add_argument("--compile", action="store_true", help="with --step: also under torch.compile")
    parser.add_argument("--no-peers", action="store_true", help="time only qspec's kernels")
    parser.add_argument(
        "--results",
        action="append",
        metavar="FILE",
        help="show these files of earlier runs (bench.json; step.json, rows.json, experts.json) instead of measuring",
    )
    parser.add_argument("--document", metavar="FILE", help="Markdown file to put the tables into, between its marks")
    parser.add_argument(
        "--out", metavar="DIR", default="build/bench", help="folder of the results (default: %(default)s)"
    )


def add_gemm_arguments(parser: argparse.ArgumentParser, tokens: str) -> None:
    """What is timed: formats, shapes, numbers of tokens, these if none are given."""
    parser.add_argument("--format", action="append", choices=FORMATS, help="as often as wanted (default: all)")
    parser.add_argument(
        "--shape",
        action="append",
        metavar="NxK|MODEL",
        help=f"output x input channels, or the merged linears of {' or '.join(MODELS)} (default: llada)",
    )
    parser.add_argument("--tokens", metavar="LIST", help=f"numbers of tokens (default: {tokens})")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(args: argparse.Namespace) -> int:
    from qspec.bench.render import around
    from qspec.files import require_file, require_folder

    require_folder(Path(args.out))
    if args.document:
        require_file(Path(args.document))
        around(Path(args.document), mode_of(args))
    runs = {"bench": _gemms, "step": _steps, "generate": _generate, "evaluate": _evaluate, "load": _load, "rows": _rows}
    return (runs | {"experts": _experts})[mode_of(args)](args)


def mode_of(args: argparse.Namespace) -> str:
    """What is timed, which names its files and marks. Errors: UsageError for two modes at once."""
    lists = {mode: getattr(args, mode) is not None for mode in ("step", "generate", "evaluate", "load")}
    asked = lists | {"rows": args.rows, "experts": args.experts}
    modes: list[str] = [mode for mode, wanted in asked.items() if wanted] or ["bench"]
    if len(modes) > 1:
        raise UsageError(f"--{modes[0]} and --{modes[1]} are two runs", hint="ask for one")
    if args.generate is None and (args.prompt, args.length, args.batch) != (None, None, None):
        raise UsageError("--prompt, --length and --batch belong to --generate")
    return modes[0]


def _gemms(args: argparse.Namespace) -> int:
    if args.compile:
        raise UsageError("--compile belongs to --step")
    shapes, tokens = shapes_of(args.shape or ["llada"]), tokens_of(args.tokens or TOKENS)

    from qspec.bench import run_bench, write_bench
    from qspec.bench.data import read
    from qspec.bench.render import markdown
    from qspec.cli.terminal import Terminal
    from qspec.progress import Quiet

    progress = Quiet() if args.quiet else Terminal()
    if args.results:
        bench = read([Path(file) for file in args.results])
    else:
        bench = run_bench(args.format or FORMATS, shapes, tokens, not args.no_peers, progress)
    folder, text = Path(args.out), markdown(bench)
    _show(text)
    write_bench(bench, folder)
    return _place("bench", folder, text, args.document)


def _steps(args: argparse.Namespace) -> int:
    models, tokens = args.shape or ["llada"], tokens_of(args.tokens or STEP_TOKENS)
    if args.format or args.no_peers or not set(models) <= set(MODELS):
        raise UsageError(
            "--step takes recipes and whole models", hint=f"--shape {' or '.join(MODELS)}, no --format, no --no-peers"
        )

    from qspec.bench.step_data import markdown, read
    from qspec.cli.terminal import Terminal
    from qspec.progress import Quiet

    if args.results:
        steps = read([Path(file) for file in args.results])
    else:
        from qspec.bench.step import run_steps

        compiled = (False, True) if args.compile else (False,)
        progress = Quiet() if args.quiet else Terminal()
        steps = run_steps(recipes_of(args.step), models, tokens, compiled, progress)
    return _keep("step", Path(args.out), steps.as_json(), markdown(steps), args.document)


def _generate(args: argparse.Namespace) -> int:
    models = args.shape or ["llada"]
    if args.format or args.no_peers or args.compile or args.tokens or not set(models) <= set(WRITERS):
        raise UsageError(
            "--generate takes recipes and whole models",
            hint=f"--shape {' or '.join(WRITERS)}, --prompt, --length, --batch; not --format, --no-peers, --compile, "
            "--tokens",
        )
    batches = numbers_of(args.batch or BATCHES, "--batch")
    prompt, length = (n if given is None else given for given, n in ((args.prompt, PROMPT), (args.length, LENGTH)))
    if length < 1 or length % 32:
        raise UsageError(f"--length {length} is not a multiple of 32", hint="texts are filled in blocks of 32")
    if prompt < 1:
        raise UsageError(f"--prompt {prompt} is not a number of tokens")

    from qspec.bench.generation_data import markdown, read
    from qspec.cli.terminal import Terminal
    from qspec.progress import Quiet

    if args.results:
        run = read([Path(file) for file in args.results])
    else:
        from qspec.bench.generation import Texts, run_generation

        texts = Texts(prompt, length, batches, ("none", "prefix", "dual"))
        run = run_generation(recipes_of(args.generate), models, texts, Quiet() if args.quiet else Terminal())
    return _keep("generate", Path(args.out), run.as_json(), markdown(run), args.document)


def _evaluate(args: argparse.Namespace) -> int:
    models = args.shape or ["llada"]
    if args.format or args.no_peers or args.compile or args.tokens or not set(models) <= set(MODELS):
        raise UsageError("--evaluate takes recipes and whole models", hint=f"--shape {' or '.join(MODELS)}")

    from qspec.bench.evaluation_data import markdown, read
    from qspec.cli.terminal import Terminal
    from qspec.progress import Quiet

    if args.results:
        run = read([Path(file) for file in args.results])
    else:
        from qspec.bench.evaluation import SHAPES, run_evaluation

        run = run_evaluation(recipes_of(args.evaluate), models, SHAPES, Quiet() if args.quiet else Terminal())
    return _keep("evaluate", Path(args.out), run.as_json(), markdown(run), args.document)


def recipes_of(given: Sequence[str]) -> list[Path]:
    """These, or the ones of recipes/paper that models are timed under."""
    from qspec import resources

    return [Path(file) for file in given] or [resources.recipes() / "paper" / f"{name}.qs" for name in RECIPES]


def _load(args: argparse.Namespace) -> int:
    models = args.shape or ["llada"]
    if args.format or args.no_peers or args.compile or args.tokens or len(models) > 1 or not set(models) <= set(MODELS):
        raise UsageError(
            "--load takes an artifact, or one model's dimensions", hint=f"--shape {' or '.join(MODELS)}, nothing else"
        )

    from qspec.bench.loading_data import markdown, read
    from qspec.cli.terminal import Terminal
    from qspec.progress import Quiet

    if args.results:
        run = read([Path(file) for file in args.results])
    else:
        from qspec.bench.loading import run_loading

        run = run_loading(args.load or None, models[0], Path(args.out), Quiet() if args.quiet else Terminal())
    return _keep("load", Path(args.out), run.as_json(), markdown(run), args.document)


def _rows(args: argparse.Namespace) -> int:
    models, tokens = args.shape or MODELS, tokens_of(args.tokens or ROW_TOKENS)
    if args.format or args.no_peers or args.compile or not set(models) <= set(MODELS):
        raise UsageError(
            "--rows takes whole models", hint=f"--shape {' or '.join(MODELS)}, no other option but --tokens"
        )

    from qspec.bench.rows_data import markdown, read
    from qspec.cli.terminal import Terminal
    from qspec.progress import Quiet

    if args.results:
        rows = read([Path(file) for file in args.results])
    else:
        from qspec.bench.rows import run_rows

        rows = run_rows(models, tokens, Quiet() if args.quiet else Terminal())
    return _keep("rows", Path(args.out), rows.as_json(), markdown(rows), args.document)


def _experts(args: argparse.Namespace) -> int:
    models, tokens = args.shape or MIXTURES, tokens_of(args.tokens or EXPERT_TOKENS)
    if args.compile or not set(models) <= set(MIXTURES):
        raise UsageError("--experts takes mixtures of experts", hint=f"--shape {' or '.join(MIXTURES)}, no --compile")

    from qspec.bench.experts_data import markdown, read
    from qspec.cli.terminal import Terminal
    from qspec.progress import Quiet

    if args.results:
        run = read([Path(file) for file in args.results])
    else:
        from qspec.bench.experts import run_experts

        progress = Quiet() if args.quiet else Terminal()
        for run in run_experts(args.format or FORMATS, models, tokens, not args.no_peers, progress):
            _store("experts", Path(args.out), run.as_json(), markdown(run))  # what there is, if it is interrupted
    return _keep("experts", Path(args.out), run.as_json(), markdown(run), args.document)


def _keep(name: str, folder: Path, data: dict[str, object], text: str, document: str | None) -> int:
    """Shows a run's table, and writes it and its figures."""
    _show(text)
    _store(name, folder, data, text)
    return _place(name, folder, text, document)


def _store(name: str, folder: Path, data: dict[str, object], text: str) -> None:
    """Writes a run's figures and its table."""
    from qspec.files import write_whole

    write_whole(folder / f"{name}.json", json.dumps(data, indent=1) + "\n")
    write_whole(folder / f"{name}.md", text)


def _show(text: str) -> None:
    """Prints a run's table: before it is written, which may fail."""
    say(text)
    flush()


def _place(name: str, folder: Path, text: str, document: str | None) -> int:
    """Puts a run's table into a document, between its marks of this name; tells where the folder has it."""
    from qspec.bench.render import fill

    if document:
        fill(Path(document), name, text)
    say(f"{name}: {folder / f'{name}.md'}")
    return 0


def shapes_of(texts: Sequence[str]) -> list[tuple[int, int]]:
    """`12288x4096`, or a model's name for its merged linears."""
    found: list[tuple[int, int]] = []
    for text in texts:
        if text in MODELS:
            from qspec.bench.data import DREAM, LLADA

            found += {"llada": LLADA, "dream": DREAM}[text]
        elif match := SHAPE.fullmatch(text):
            found.append((int(match[1]), int(match[2])))
        else:
            hint = f"output x input channels such as 12288x4096, or {' or '.join(MODELS)}"
            raise UsageError(f"{text!r} is not a shape", hint=hint)
    return found


def tokens_of(text: str) -> list[int]:
    """`1,16,64` as numbers of tokens."""
    return numbers_of(text, "--tokens")


def numbers_of(text: str, option: str) -> list[int]:
    """`1,16,64` as numbers. Errors: UsageError for anything else."""
    parts = text.split(",")
    if not all(re.fullmatch(r"[1-9]\d{0,5}", part.strip()) for part in parts):
        raise UsageError(f"{option} {text!r} is not a list of numbers", hint="such as 1,16,64")
    return [int(part) for part in parts]
