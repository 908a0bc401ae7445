"""DuQuant (arXiv 2406.01721): block rotation, zigzag permutation, block rotation, on the input of each linear."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from qspec import transforms
from qspec.passes.block import Block
from qspec.passes.linear import Linear
from qspec.passes.observed import Site
from qspec.passes.parameters import RotateDuquant


def rewrite(params: RotateDuquant, block: Block, uses: tuple[Linear, ...]) -> None:
    """x W^T --> T(x) (W T^-1)^T,  T(x) = (x R1)[zigzag] R2  (arXiv 2406.01721, sections 3.2-3.3).

    R1 and R2 are block diagonal, one orthogonal [block, block] matrix shared by all blocks of an input, found greedily:
    each step swaps the channel of the largest outlier to index 0 and multiplies by an orthogonal matrix whose first row
    is uniform, so that the outlier spreads over its block; the product of the first n steps is kept, n being the step
    at which the sample's rounding noise is lowest. The zigzag permutation deals channels, sorted by magnitude, over the
    blocks like cards, back and forth, so that every block gets the same share of large ones.

    Where we differ: the paper keeps the step with the lowest single peak. A token's rounding noise grows with the
    square of its own largest value, so we keep the step with the lowest mean square of the tokens' peaks, over rows
    drawn from the whole calibration set (the seed paper's code fitted on one averaged sequence).

    Finds one transform for each input that selected linears read, and one for the inputs of all experts' down, from
    the rows of all; their weights absorb its inverse.
    """
    stages: dict[str, list[Site]] = {}
    for site in block.sites(uses):
        stages.setdefault(site.stage, []).append(site)
    for stage, sites in stages.items():
        rows = torch.cat([block.observed.statistics(site.name).rows for site in sites])
        transform = fit(params, rows[:: len(sites)], block.generator(stage))
        for linear in (linear for site in sites for linear in site.linears):
            if linear in uses:
                linear.absorb(transform)


def fit(params: RotateDuquant, x: Tensor, generator: Generator) -> transforms.InputTransform:
    """The transform for a sample x [rows, in] of an input."""
    spread = spreading_rotation(params.block, generator).to(x)
    first = _greedy_rotation(params, x, spread)
    x = transforms.block_rotate(x, first.float())
    order = zigzag(x.abs().amax(0), params.block)
    second = _greedy_rotation(params, x[:, order], spread)
    return transforms.InputTransform((first, second), order.to(torch.int32))


def _greedy_rotation(params: RotateDuquant, x: Tensor, spread: Tensor) -> Tensor:
    """float16 [block, block], the best prefix product of the greedy steps."""
    tokens = x.shape[0]
    x = x.reshape(-1, params.block)
    product = best = torch.eye(params.block, device=x.device)
    lowest = _noise(x, tokens)
    for _ in range(params.steps):
        rows = torch.arange(params.block, device=x.device)
        outlier = int(x.abs().amax(0).argmax())
        rows[0], rows[outlier] = outlier, 0
        step = spread[rows]
        x, product = x @ step, product @ step
        noise = _noise(x, tokens)
        if noise < lowest:
            lowest, best = noise, product
    return best.half()


def spreading_rotation(size: int, generator: Generator) -> Tensor:
    """Orthogonal float32 [size, size] whose first row is uniform, 1/sqrt(size), and whose rest is random.

    A random orthogonal matrix that leaves e_0 alone, times the Householder reflection that takes e_0 to the uniform
    vector.
    """
    inner = torch.eye(size)
    inner[1:, 1:] = torch.linalg.qr(torch.randn(size - 1, size - 1, generator=generator)).Q
    uniform = torch.full((size,), size**-0.5)
    normal = uniform - torch.eye(size)[0]
    return inner @ (torch.eye(size) - 2 * torch.outer(normal, normal) / normal.dot(normal))


def zigzag(peaks: Tensor, block: int) -> Tensor:
    """Order of channels, int64 [in]: sorted by peak, dealt to the blocks 0, 1, .., n-1, n-1, .., 1, 0, 0, 1, ..."""
    blocks = peaks.numel() // block
    ranked = peaks.argsort(descending=True, stable=True).reshape(block, blocks).clone()
    ranked[1::2] = ranked[1::2].flip(1)
    return ranked.T.reshape(-1)


def _noise(x: Tensor, tokens: int) -> float:
    return float(x.reshape(tokens, -1).abs().amax(1).square().mean())
