"""QuaRot (arXiv 2404.00456): Hadamard rotations that spread outliers over all channels, most of them for nothing."""

from __future__ import annotations

import torch

from qspec import hadamard, transforms
from qspec.passes.block import Block
from qspec.passes.linear import Linear
from qspec.passes.outer_layers import OuterLayers
from qspec.passes.parameters import Quarot


def rewrite_outer_layers(params: Quarot, outer: OuterLayers) -> None:
    """Draws Q and rotates embedding and head."""
    if params.residual:
        signs = torch.randint(0, 2, (outer.shape.width, 1), generator=outer.generator("quarot")) * 2 - 1
        outer.rotate_residual((signs * hadamard.orthogonal(outer.shape.width)).float())


def rewrite(params: Quarot, block: Block, uses: tuple[Linear, ...]) -> None:
    """Rotates the residual stream, the heads' values and the MLP's hidden state (arXiv 2404.00456, section 4.1).

    With H_n a Hadamard matrix of order n over sqrt(n), g a norm's gain, D random signs drawn from the recipe's seed:

        residual (R1)  h --> h Q, Q = D H_width, offline: what reads the stream W --> W diag(g) Q, g --> 1; what writes
                       to it W --> Q^T W, b --> b Q; the embedding E --> E Q. It takes the whole model: the selector
                       names every linear of the blocks, and those that are kept are rotated too.
        heads (R2)     within: v --> v H_(head width) in each head, offline: rows and bias of v, columns of o; where o
                       is selected and quantized. Query heads that share a value head need no more than that.
                       across: z --> z H before o, over all heads, computed at run time as `online` is. The paper's
                       H_(heads) (x) H_(head width), the second factor of which it folds into v.
        online (R4)    z --> z H before down, computed at run time: H = H_b0 (x) H_b1 by R1 = H_b0, R2 = H_b1 and a
                       transposition between them (`qspec.transforms`), stored in float16; down absorbs the inverse of
                       what is stored. Where no such product has the width of the MLP, H is block-diagonal, of the
                       largest blocks that divide it (`qspec.hadamard.factors`): the paper refuses such a width.

    What is computed at run time is so only where the layer is selected and its activations are quantized: weights alone
    have no massive outliers there, and a rotation at run time would cost time for nothing. o then has its heads rotated
    within.

    Where we differ: the embedding is not centred, which would change the function of a model with RMSNorm; o's input is
    rotated within heads unless `across` is asked for, which is a second rotation at run time: which is better differs
    between models (docs/measurements.md). R3, on queries and keys after their rotary positions, helps a quantized KV
    cache alone, which no recipe can ask for.

    R1 on all linears; R2, R4 where o, down are among those selected.
    """
    if params.residual:
        block.rotate_residual()
    known: dict[tuple[str, tuple[int, ...]], transforms.InputTransform] = {}
    for linear in uses:
        if linear.scheme is None:
            continue
        orders = params.rotations(linear.entry, linear.scheme)
        if orders:
            shared = (linear.entry.stage, orders)
            if shared not in known:
                known[shared] = online_hadamard(orders, linear.entry.in_features).to(linear.weight.device)
            linear.absorb(known[shared])
        elif params.heads != "none" and linear.entry.role.part == "attention.o":
            block.rotate_heads(hadamard.orthogonal(block.shape.head_width))


def online_hadamard(orders: tuple[int, ...], channels: int) -> transforms.InputTransform:
    """x --> x (H_b1 (x) H_b0) up to the order of channels, in every block of b0 b1 channels; x H_b0 for one order.

    Channel i = a b0 + c of a block is at c b1 + a between the rotations.
    """
    rotations = tuple(hadamard.orthogonal(order).half() for order in orders)
    if len(orders) == 1:
        return transforms.InputTransform(rotations)
    size = orders[0] * orders[1]
    transposed = torch.arange(size, dtype=torch.int32).reshape(-1, orders[0]).T.reshape(-1)
    starts = torch.arange(0, channels, size, dtype=torch.int32)
    return transforms.InputTransform(rotations, (starts[:, None] + transposed).reshape(-1))
