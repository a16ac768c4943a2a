"""h_l = decay_l h_{l-1} + drive_l over all tokens, in few vector operations."""

from itertools import pairwise

import torch
from torch import Tensor

_BLOCK = 16  # tokens per block; blocks are processed in parallel, their tokens one by one


def scan_in_place(decay: Tensor, drive: Tensor, reverse: bool = False) -> Tensor:
    """Replace `drive` by h_l = decay_l h_{l-1} + drive_l.

    By pairs (a, b)∘(a', b') = (a a', a' b + b'), in about 3 L multiplications and
    48 + 2 log2(L/16) vector operations. Products of decays stay in [0, 1] where the decays do, so
    nothing overflows, unlike with cumulative sums of logarithms. Not differentiable;
    `selective_scan` is.

    All blocks of tokens are processed in parallel, twice: first for the state after each block,
    then for every state; in between, Brent and Kung's scheme runs over the blocks. This moves half
    as much memory as their scheme over all tokens.

    Args:
        decay: [L, ...], unchanged.
        drive: [L, ...], of the same shape.
        reverse: run from the last token to the first, h_l = decay_l h_{l+1} + drive_l.

    Returns:
        `drive`.
    """
    length = len(drive)
    rest = length % _BLOCK
    whole = slice(rest, length) if reverse else slice(0, length - rest)
    order = range(_BLOCK)[::-1] if reverse else range(_BLOCK)
    a, b = (tensor[whole].unflatten(0, (-1, _BLOCK)) for tensor in (decay, drive))
    if len(b):
        product, state = a[:, order[0]].clone(), b[:, order[0]].clone()
        for place in order[1:]:
            torch.addcmul(b[:, place], a[:, place], state, out=state)
            product.mul_(a[:, place])
        _scan_blocks(product, state, reverse)
        begin, before = (slice(-1), slice(1, None)) if reverse else (slice(1, None), slice(-1))
        b[begin, order[0]].addcmul_(a[begin, order[0]], state[before])
        for earlier, place in pairwise(order):
            b[:, place].addcmul_(a[:, place], b[:, earlier])
    tokens = range(length)[::-1] if reverse else range(length)
    for earlier, place in pairwise(tokens[max(0, length - rest - 1) :]):
        drive[place].addcmul_(decay[place], drive[earlier])
    return drive


def _scan_blocks(decay: Tensor, drive: Tensor, reverse: bool) -> Tensor:
    """Brent and Kung's scheme: `drive` becomes h, `decay` products."""
    length = drive.shape[0]
    reach = 1
    while reach < length:
        later, earlier = _pairs(length, 2 * reach - 1, reach, reverse)
        drive[later].addcmul_(decay[later], drive[earlier])
        if 2 * reach < length:
            decay[later].mul_(decay[earlier])
        reach *= 2
    while reach >= 1:
        if 3 * reach <= length:
            later, earlier = _pairs(length, 3 * reach - 1, reach, reverse)
            drive[later].addcmul_(decay[later], drive[earlier])
        reach //= 2
    return drive


def _pairs(length: int, first: int, reach: int, reverse: bool) -> tuple[slice, slice]:
    """Tokens first, first + 2·reach, ... and those `reach` before each; reversed if asked."""
    step = 2 * reach
    if not reverse:
        return slice(first, length, step), slice(first - reach, length - reach, step)
    low = (length - 1 - first) % step
    high = length - first
    return slice(low, high, step), slice(low + reach, high + reach, step)
