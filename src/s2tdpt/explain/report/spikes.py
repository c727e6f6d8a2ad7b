"""The report's sections that only a spiking model has: firing rates, STDP window, attention maps, rasters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...ops.stdp import stdp_weights
from ..attention import AttentionRecord, attention_rollout, record_attention, window_curve
from ..firing import attention_neurons, firing_rates, spike_trains
from . import charts, page, pictures
from .material import Material
from .measured import BAND, percent

SIDE = 96  # tokens along the side of an attention map; more are thinned out evenly
HEADS, STEPS = 12, 8  # at most so many are shown
ROLLOUT_TOKENS = 512  # beyond, N x N matrices are not formed
RASTER_NEURONS = 48
SPIKE = (70, 130, 200)


def firing(m: Material) -> page.Html:
    """Rates of all neuron layers, attention neurons in colour, with the band they should keep to."""
    model, x = m.seen
    found = [firing_rates(model, part) for part in x.split(64)]
    share = [len(part) / len(x) for part in x.split(64)]
    layers = {n: sum(r.layers[n] * s for r, s in zip(found, share, strict=True)) for n in found[0].layers}
    special = attention_neurons(model)
    outside = [name for name in special if not BAND[0] <= layers[name] <= BAND[1]]
    rows = [
        (f"block {i + 1}", percent(layers[name]), "inside" if name not in outside else "OUTSIDE")
        for i, name in enumerate(special)
    ]
    label = f"Firing rates of {len(layers)} neuron layers, from {percent(min(layers.values()))} to "
    label += percent(max(layers.values()))
    chart = page.figure(
        charts.rate_chart(layers, set(special), label, BAND),
        "Firing rate of every neuron layer, logarithmic. Coloured: the attention neurons, the ones after w·V; shaded: "
        "the band from 0.5 to 50 % in which they carry information. An open dot on the edge never fires.",
    )
    lead = f"Spikes per neuron and step, measured on the {len(x)} images of this report."
    if outside:
        lead += (
            f" {len(outside)} of {len(special)} attention neurons are outside the band: their block's attention idles."
        )
    table = page.table(("attention neuron of", "rate", "0.5–50 %"), rows, "Attention neurons.", numbers=2)
    return page.join([page.paragraph(lead, "lead"), page.charts([chart, table])])


def firing_map(m: Material) -> page.Html:
    """Each image with the firing rate of its tokens."""
    model, x = m.seen
    maps = firing_rates(model, x[: m.shown]).maps.cpu()
    low, high = maps.min().item(), maps.max().item()
    figures = []
    for index, each in enumerate(maps):
        name = m.image_name(index)
        shown = page.image(pictures.picture(m.picture(index)), name)
        alt = f"Firing rate of the tokens of {name}: {percent(each.min().item())} to {percent(each.max().item())}"
        heat = page.image(pictures.heat_map(each, low, high), alt, "cells")
        pair = page.Html(f'<div class="pair">{shown}{heat}</div>')
        figures.append(page.figure(pair, f"{m.class_name(m.predictions[index])}: mean {percent(each.mean().item())}"))
    lead = "How often the attention neurons of each token fire: mean over heads, time steps and blocks."
    key = page.Html(f"<p>{page.scale(percent(low), percent(high), 'viridis')}</p>")
    return page.join([page.paragraph(lead, "lead"), key, page.Html(f'<div class="pairs">{"".join(figures)}</div>')])


def window(m: Material) -> page.Html:
    """The STDP window as attention weight over the difference of spike counts, and the differences that occur."""
    records = record_attention(m.seen[0], m.seen[1][: m.shown])
    if not records:
        return _absent()
    record = records[0]
    head_dim = record.query.shape[-1]
    differences, weights = window_curve(record.window, head_dim)
    label = f"Attention weight over m from {-head_dim} to {head_dim}: {weights.min():.3f} to {weights.max():.3f}"
    offsets = record.window.constants(weights)[-1].flatten().tolist()
    curve = charts.window_chart(differences.tolist(), weights.tolist(), offsets, label)
    drawn = [
        page.figure(
            curve,
            f"The whole of STDP attention: {2 * head_dim + 1} synaptic values a head. Dashed: the offset"
            + (", which weights tend to as spikes lie further apart." if record.window.jump else "."),
        ),
        page.figure(*_differences(records, head_dim)),
    ]
    lead = (
        "A token that fires more spikes fires its first one earlier. If the query fires before the key, the synapse "
        "is potentiated (m > 0), otherwise depressed (m ≤ 0, ties too). The weight depends on nothing but m, the "
        "difference of the two spike counts"
        + ("; it jumps from its lowest at m = 0 to its highest at m = 1." if record.window.jump else ".")
    )
    return page.join([page.paragraph(lead, "lead"), page.charts(drawn)])


def attention(m: Material) -> page.Html:
    """Weights of the first image: block × head, then every step, and what a token reads and receives."""
    model, x = m.seen
    records = record_attention(model, x[:1])
    if not records:
        return _absent()
    steps, _, heads, tokens, _ = records[0].query.shape
    every = math.ceil(tokens / SIDE)
    curve = window_curve(records[0].window, records[0].query.shape[-1])[1]
    low, high = curve.min().item(), curve.max().item()
    columns = [f"head {h + 1}" for h in range(min(heads, HEADS))]

    def cells(weights: Tensor, what: str) -> list[page.Html]:
        return [
            page.image(
                pictures.heat_map(w, low, high), f"Attention weights, {what}, {name}: mean {w.mean():.2f}", "cells"
            )
            for w, name in zip(weights, columns, strict=False)
        ]

    maps = [_thinned(record, every) for record in records]  # each [T, H, n, n]
    rows = [(f"block {b + 1}", cells(each.mean(0), f"block {b + 1}")) for b, each in enumerate(maps)]
    thinned = f" One token in {every} of all {tokens} is shown." if every > 1 else ""
    key = page.scale(f"{low:.2f}", f"{high:.2f}", "viridis")
    caption = page.Html(f"Row: query token, column: key token, mean over {steps} steps.{thinned} {key}")
    parts = [page.paragraph(_attention_lead(m, records), "lead"), page.picture_table(columns, rows, caption)]
    if steps > 1:
        rows = [
            (f"block {b + 1}, step {t + 1}", cells(each[t], f"block {b + 1}, step {t + 1}"))
            for b, each in enumerate(maps)
            for t in range(min(steps, STEPS))
        ]
        told = "Each step by itself." if steps <= STEPS else f"The first {STEPS} of {steps} steps."
        parts.append(page.details("Every step", page.picture_table(columns, rows, told)))
    parts += _token_view(m, records)
    return page.join(parts)


def rasters(m: Material) -> page.Html:
    """Spike trains of the first image at each block's attention neuron."""
    model, x = m.seen
    trains = {f"block {i + 1}": s[:, 0].cpu() for i, s in enumerate(spike_trains(model, x[:1]).values())}
    panels = {}
    for name, train in trains.items():  # [T, N, D]
        flat = train.flatten(1)
        active = flat.sum(0).nonzero().squeeze(1)
        chosen = active[torch.linspace(0, len(active) - 1, min(RASTER_NEURONS, len(active))).round().long()]
        panels[name] = flat[:, chosen]
    total = sum(int(train.sum()) for train in trains.values())
    chart = charts.raster_chart(panels, f"Spike rasters of the attention neurons of {len(panels)} blocks")
    chosen_how = (
        f"Up to {RASTER_NEURONS} neurons a block, evenly spaced among those that fire at least once, over steps."
    )
    parts = [
        page.paragraph(
            f"The attention neurons of {m.image_name(0)}: {total:,} spikes in all. Each mark is one spike.", "lead"
        ),
        page.charts([page.figure(chart, chosen_how)], "tall"),
    ]
    figures = []
    for name, train in trains.items():
        for step in range(min(len(train), STEPS)):
            rate = percent(train[step].float().mean().item())
            alt = f"All attention neurons of {name} at step {step + 1}: {rate} fire"
            uri = pictures.raster(train[step], SPIKE)
            figures.append(page.figure(page.image(uri, alt, "cells wide"), f"{name}, step {step + 1}: {rate}"))
    parts.append(page.heading("All neurons, step by step"))
    parts.append(
        page.paragraph("Row: token, column: feature. A row without marks is a token that attention leaves silent.")
    )
    parts.append(page.Html(f'<div class="pairs">{"".join(figures)}</div>'))
    return page.join(parts)


def _thinned(record: AttentionRecord, every: int) -> Tensor:
    query, key = (spikes[:, 0, :, ::every] for spikes in (record.query, record.key))
    return stdp_weights(query, key, record.window).cpu()


def _attention_lead(m: Material, records: list[AttentionRecord]) -> str:
    tokens = records[0].query.shape[-2]
    distinct = []
    for record in records:
        counts = record.query[:, 0].sum(-1).flatten(0, 1)  # [T·H, N]
        distinct += [len(row.unique()) for row in counts]
    return (
        f"The synaptic weights between all tokens of {m.image_name(0)}. Bright rows are queries that fire before most "
        f"keys. Queries with equal spike counts have equal rows: on average {sum(distinct) / len(distinct):.1f} "
        f"different rows of {tokens}."
    )


def _token_view(m: Material, records: list[AttentionRecord]) -> list[page.Html]:
    """What one token reads, what each receives, and the rollout, on the token grid."""
    (rows, columns), tokens = m.grid, records[0].query.shape[-2]
    row, column = rows // 2, columns // 2
    token = row * columns + column
    lines: dict[str, list[Tensor]] = {"read by it": [record.from_token(token)[0].mean(0) for record in records]}
    if tokens <= ROLLOUT_TOKENS:
        lines["received"] = [record.received()[0].mean(0) for record in records]
        lines["rollout to it"] = [attention_rollout(records[b:], token)[0] for b in range(len(records))]
    table = []
    for name, maps in lines.items():
        others = torch.stack(maps).flatten(1)[
            :, torch.arange(tokens) != token
        ]  # its own share of the rollout is off scale
        low, high = (others.min().item(), others.max().item()) if tokens > 1 else (0.0, 1.0)
        line = [page.image(pictures.picture(m.picture(0)), m.image_name(0))]
        for b, each in enumerate(maps):
            uri = pictures.heat_map(each, low, high, frame=(row, column))
            line.append(page.image(uri, f"Weight {name}, block {b + 1}: {low:.3g} to {high:.3g}", "cells"))
        table.append((name, line))
    caption = (
        f"The framed token sits in row {row + 1}, column {column + 1} of the {rows} × {columns} grid. Read by it: its "
        "weights to all keys. Received: mean weight that each token gets as a key. Rollout: what reaches the framed "
        "token from this block to the last one. Mean over heads and steps; each line has a scale of its own."
    )
    heads = ["image", *(f"block {b + 1}" for b in range(len(records)))]
    return [page.heading("On the image"), page.picture_table(heads, table, caption)]


def _differences(records: list[AttentionRecord], head_dim: int) -> tuple[page.Html, str]:
    """Histogram of m over all pairs of tokens, without forming the pairs."""
    histogram = torch.zeros(2 * head_dim + 1, dtype=torch.float64)
    for record in records:
        counts = [spikes.sum(-1).flatten(0, -2).long().cpu() for spikes in (record.query, record.key)]  # [T·B·H, N]
        q, k = (torch.nn.functional.one_hot(c, head_dim + 1).sum(1).double() for c in counts)  # tokens by count
        for m in range(-head_dim, head_dim + 1):
            low, high = max(0, m), min(head_dim, head_dim + m)
            histogram[m + head_dim] += (q[:, low : high + 1] * k[:, low - m : high - m + 1]).sum()
    share = 100 * histogram / histogram.sum()
    used = share.nonzero().squeeze(1)
    low, high = int(used.min()), int(used.max())
    values = share[low : high + 1].tolist()
    ms = list(range(low - head_dim, high - head_dim + 1))
    ties = share[head_dim].item()
    label = f"Share of token pairs by m, from {ms[0]} to {ms[-1]}; {ties:.1f} % are ties"
    svg = charts.histogram(ms, values, "m = query's spikes − key's spikes", "% of token pairs", label)
    return svg, f"Which differences occur: all token pairs, heads, steps and blocks. {percent(ties / 100)} are ties."


def _absent() -> page.Html:
    return page.paragraph("This model has no STDP attention: there are no weights to show.", "lead")
