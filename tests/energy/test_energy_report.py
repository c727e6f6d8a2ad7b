"""Cost tables and the report: what it adds up, prints and hands on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import s2tdpt
from s2tdpt.energy import TABLES, CostTable, EnergyReport, cost_table, count
from s2tdpt.errors import InputError

UNITS = ("sops", "macs", "integer_macs", "table_reads", "neuron_updates")


class Small(nn.Module):
    """Has all five kinds of operations."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.neuron = s2tdpt.LIF(v_threshold=0.05)
        self.attn = s2tdpt.STDPAttention(8, 2, neuron=lambda **kwargs: s2tdpt.LIF(v_threshold=0.01))
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        spikes = self.neuron(self.embed(x))
        mixed = self.attn(spikes)
        return self.fc(spikes + spikes.flip(0)) + self.fc(self.neuron(mixed))


@pytest.fixture(scope="module")
def report() -> EnergyReport:
    torch.manual_seed(0)
    return count(Small(), torch.randn(3, 2, 5, 6), batch_size=2, exact=True)


def test_tables_are_the_published_figures():
    paper = TABLES["paper"]
    assert (paper.mac, paper.ac, paper.integer_mac_pj, paper.table_read, paper.neuron_update) == (4.6, 0.9, 4.6, 0, 0)
    int8 = TABLES["horowitz_45nm_int8"]
    assert (int8.mac, int8.ac) == (pytest.approx(0.3), 0.1)
    assert TABLES["horowitz_45nm_fp32"].mac == pytest.approx(paper.mac)
    for name, table in TABLES.items():
        assert name == table.name
        assert "2511.14691" in table.source or "ISSCC 2014" in table.source
        if name != "paper":
            assert min(table.table_read, table.neuron_update) > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        paper.mac = 1.0  # pyright: ignore[reportAttributeAccessIssue]


def test_energy_is_the_sum_of_all_five_kinds(report):
    prices = {"sops": 2.0, "macs": 3.0, "integer_macs": 5.0, "table_reads": 7.0, "neuron_updates": 11.0}
    table = CostTable("mine", mac=3, ac=2, integer_mac=5, table_read=7, neuron_update=11)
    amounts = {unit: getattr(report.counts, unit) for unit in UNITS}
    assert all(amounts.values())
    assert report.energy_mj(table) == pytest.approx(sum(amounts[u] * prices[u] for u in UNITS) * 1e-9)
    assert report.energy_mj(table, exact=True) == pytest.approx(
        sum(getattr(report.exact, u) * prices[u] for u in UNITS) * 1e-9
    )
    assert dataclasses.replace(table, integer_mac=None).integer_mac_pj == 3


def test_totals_are_the_sums_of_the_rows(report):
    for unit in UNITS[:4]:
        assert getattr(report.counts, unit) == pytest.approx(sum(getattr(r.counts, unit) for r in report.layers))
    assert report.counts.neuron_updates == sum(n.updates for n in report.neurons)
    assert report.nominal_macs == sum(r.nominal_macs for r in report.layers)
    spiking = [r for r in report.layers if r.spiking_macs]
    assert (
        0
        < report.mean_firing_rate
        == pytest.approx(sum(r.counts.sops for r in spiking) / sum(r.spiking_macs for r in spiking))
    )
    assert 0 < report.neuron_firing_rate < 1


def test_the_exact_counter_is_optional_and_apart(report):
    torch.manual_seed(0)
    plain = count(Small(), torch.randn(3, 2, 5, 6), batch_size=2)
    assert plain.counts == report.counts
    assert plain.exact is None
    assert plain.to_dict()["exact"] is None
    assert "exact" not in " ".join(plain.to_dict()["rules"])
    with pytest.raises(InputError, match="exact=True"):
        plain.energy_mj(exact=True)


def test_unknown_and_impossible_tables_get_one_line(report):
    for name in ("papper", ""):
        with pytest.raises(InputError, match=r"paper.*horowitz_45nm_int8") as caught:
            report.energy_mj(name)
        assert "\n" not in str(caught.value)
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="mac"):
            CostTable("bad", mac=value, ac=1.0)
    mine = CostTable("mine", mac=1.0, ac=1.0)
    assert cost_table(mine) is mine
    assert mine.integer_mac_pj == 1.0


def test_to_dict_is_json_with_its_documented_keys(report):
    data = json.loads(json.dumps(report.to_dict("horowitz_45nm_int8"), allow_nan=False))
    top = {"model", "images", "energy_mj", "nominal_macs", *UNITS, "mean_firing_rate", "neuron_firing_rate", "exact"}
    assert set(data) == {*top, "layers", "neurons", "non_binary_edges", "uncounted", "cost_table", "rules"}
    assert set(data["exact"]) == {"energy_mj", *UNITS}
    row = {"name", "op", "operands", "calls", "nominal_macs", "spiking_macs", "rate", "counts", "exact", "energy_mj"}
    assert set(data["layers"][0]) == row
    assert set(data["neurons"][0]) == {"name", "updates", "firing_rate"}
    edge = {"name", "op", "operand", "what", "density", "nominal_macs", "multiplies"}
    assert set(data["non_binary_edges"][0]) == edge
    assert data["energy_mj"] == report.energy_mj("horowitz_45nm_int8")
    assert data["cost_table"]["name"] == "horowitz_45nm_int8"
    assert sum(r["energy_mj"] for r in data["layers"]) < data["energy_mj"]  # neurons cost something by this table


def test_documented_keys_are_in_the_docs(report):
    text = (Path(__file__).parents[2] / "docs" / "energy.md").read_text()
    data = report.to_dict()
    for rows in ([data], data["layers"], data["neurons"], data["non_binary_edges"], [data["cost_table"]]):
        for key in rows[0]:
            assert f"`{key}`" in text, key


def test_printing_shows_rows_rules_and_sources(report):
    text = str(report)
    for row in report.layers:
        assert f"{row.name} " in text
    for rule in report.to_dict()["rules"]:
        assert " ".join(rule.split()) in " ".join(text.split())
    assert TABLES["paper"].source[:40] in text
    assert f"{report.energy_mj():.4g} mJ" in text
    assert "pixels" in text
    assert "only added up" not in text
    table = text.split("\n\n")[1].splitlines()
    assert len({len(line) for line in table}) == 1  # every line ends in the same column
    assert "horowitz_45nm_fp16" in report.format("horowitz_45nm_fp16")
    assert max(map(len, str(report).splitlines())) <= 140
