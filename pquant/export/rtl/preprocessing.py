"""A description of the inputs and outputs of an exported model as Markdown."""

from collections.abc import Iterator
from typing import Any

import torch

from pquant.data.splits import Preprocessing, Splits

SHOWN = 64


def markdown(splits: Splits, round_mode: str, overflow_mode: str) -> str:
    """Return a description of the preprocessing of raw inputs, whether hardware could do it exactly, and of the outputs."""
    return "\n".join([*_inputs(splits.preprocessing, round_mode, overflow_mode), "", *_outputs(splits)]) + "\n"


def _inputs(done: Preprocessing | None, round_mode: str, overflow_mode: str) -> Iterator[str]:
    if done is None:
        yield "The data source does not state its preprocessing of raw inputs."
        return
    same = not bool(done.offset.any()) and bool((done.scale == 1).all())
    if done.note:
        yield f"Note: {done.note}."
    if same:
        yield f"Inputs are raw values, quantized to their port: round with {round_mode}, overflow with {overflow_mode}."
    else:
        yield "The host, or a block before this one, computes `(raw - offset) / scale` of each feature and then quantizes to the port:"
        yield f"round with {round_mode}, overflow with {overflow_mode}."
        yield _advice(done)
    yield from _table(done, same)


def _advice(done: Preprocessing) -> str:
    if bool((torch.frexp(done.scale).mantissa == 0.5).all()):
        return "All scales are powers of two: it is a subtraction and a move of the binary point; `export.raw_inputs=true` makes it the first layer."
    return (
        "It is not folded into the weights: the quantizer of the input lies between, and a division by these scales is not exact in fixed-point\n"
        "arithmetic. A model trained with `data.standardize=power_of_two` can be exported with `export.raw_inputs=true`, which is."
    )


def _table(done: Preprocessing, same: bool) -> Iterator[str]:
    names = list(done.features)
    columns: dict[str, list[Any]] = {"feature": names} if names else {}
    if not same:
        flat = [values.flatten().tolist() for values in (done.offset, done.scale)]
        count = max(map(len, (names, *flat)))
        sizes = {len(values) for values in (names, *flat) if len(values) > 1}
        if len(sizes) > 1:
            yield "Offsets and scales are in formats.json."
            return
        columns |= {title: (values * count)[:count] for title, values in zip(("offset", "scale"), flat, strict=True)}
    if columns:
        rows = list(zip(*columns.values(), strict=True))
        yield from ("", f"| | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|")
        for number, row in enumerate(rows[:SHOWN]):
            yield f"| {number} | {' | '.join(f'`{cell}`' if isinstance(cell, str) else f'{cell:.9g}' for cell in row)} |"
        if len(rows) > SHOWN:
            yield f"\n({len(rows) - SHOWN} more in formats.json)"


def _outputs(splits: Splits) -> Iterator[str]:
    if splits.classes:
        yield f"Outputs are scores of the classes, in this order: {', '.join(f'`{name}`' for name in splits.classes)}."
    elif splits.num_classes is None:
        yield f"An output in units of its target is `output * {splits.target_scale:.9g} + {splits.target_offset:.9g}`."
    else:
        yield "The data source does not name the classes."
