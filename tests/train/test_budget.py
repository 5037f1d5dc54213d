"""Width and density from bytes: what a budget and a board decide, and that an export keeps to it."""

from __future__ import annotations

import dataclasses
import logging

import pytest
from fedtiny_export.board.devices import load_device
from fedtiny_export.errors import UsageError
from fedtiny_export.export import make_export
from fedtiny_export.ftm.fitting import need_of
from fedtiny_export.source import read_source

from fedtiny_train import budget, models, rounds
from fedtiny_train.config import apply_flags, read_bytes, settle
from fedtiny_train.models import ModelSpec
from fedtiny_train.options import Config
from fedtiny_train.packing import dense_width, density_for, model_bytes

SHAPE = (3, 32, 32)


def decided(**flags):
    config = settle(apply_flags(Config(), {"model": "resnet8", **flags}))
    return budget.within(config, models.choose(config.model, SHAPE, 10))


@pytest.mark.parametrize(("text", "count"), [("24576", 24576), ("24K", 24576), ("1.5k", 1536), ("2M", 2**21)])
def test_bytes_are_read_with_their_unit(text, count):
    assert read_bytes(text) == count


@pytest.mark.parametrize("text", ["", "K", "0", "-4K", "12 kB", "1e99", "nan", "inf"])
def test_what_is_no_number_of_bytes_is_refused(text):
    with pytest.raises(ValueError, match=r"give bytes, as in 24576, 24K or 1\.5M"):
        read_bytes(text)


def test_a_budget_alone_decides_on_method_width_and_density():
    config, spec = decided(flash_budget="8K")
    assert config.train.method == "fedpack"
    assert config.train.density == density_for(spec, 8192 - 163)  # two percent stay free
    assert 0.95 * 8192 < model_bytes(spec, config.train.density) <= 8192 - 163
    assert 2 / 3 < config.train.density / budget.WISHED < 3 / 2


def test_what_is_given_stays():
    config, spec = decided(flash_budget="8K", width=16)
    assert spec.width == 16
    assert config.train.density == density_for(spec, 8192 - 163) < 0.05
    config, spec = decided(flash_budget="8K", density=0.1, method="fedtiny")
    assert config.train.method == "fedtiny"
    assert 0.08 < config.train.density <= 0.1
    config, spec = decided(flash_budget="8K", method="fedavg")
    assert (config.train.density, spec.width) == (1.0, dense_width(spec, 8192))
    unlimited, spec = decided(density=0.3)
    assert (unlimited.train.method, unlimited.train.density, spec.width) == ("fedtiny", 0.3, 8)


def test_a_board_limits_the_width_by_its_ram():
    _, spec = decided(target="qemu-m4", density=0.1)
    assert spec.width == 2 * 8  # RAM and flash leave more than twice the network's own
    wide, _ = decided(target="qemu-m4", width=40)
    assert wide.train.density == 1.0  # 1 MB of flash
    need = budget._need(spec, 0.1, "qemu-m4")
    assert need.model <= need.model_room < 2**20
    assert need.arena <= need.arena_room < 192 * 1024


def test_little_ram_makes_a_narrow_network(monkeypatch):
    real = need_of

    def small(onnx, board):
        return dataclasses.replace(real(onnx, board), arena_room=12_000)

    monkeypatch.setattr(budget, "need_of", small)
    config, spec = decided(target="qemu-m4")
    assert budget._need(spec, config.train.density, "qemu-m4").arena <= 12_000
    assert budget._need(dataclasses.replace(spec, width=spec.width + 1), 1.0, "qemu-m4").arena > 12_000
    monkeypatch.setattr(budget, "need_of", lambda *a: dataclasses.replace(real(*a), arena_room=900))
    with pytest.raises(UsageError, match=r"resnet8 of width 1 needs [\d,]+ bytes of arena; qemu-m4 leaves 900"):
        decided(target="qemu-m4")
    monkeypatch.setattr(budget, "need_of", lambda *a: dataclasses.replace(real(*a), model_room=-5))
    with pytest.raises(UsageError, match="qemu-m4 has no flash left for a model"):
        decided(target="qemu-m4")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"flash_budget": "8K", "target": "esp32"}, "leave out one of the two"),
        ({"flash_budget": "8K", "density": 0.1, "width": 8}, "density and width decide how large the model is"),
        ({"flash_budget": "8K", "method": "adp"}, "adp takes no flash_budget"),
        ({"flash_budget": "8K", "method": "fedavg-small"}, "a dense network that fills it is --method fedavg"),
        ({"flash_budget": "600"}, "resnet8 of width 1 takes"),
        ({"flash_budget": "2K", "width": 64}, "does not fit into 2,048 bytes at any density"),
        ({"flash_budget": "2K", "width": 8, "method": "fedavg"}, "does not fit into 2,048 bytes dense"),
        ({"target": "arduino"}, "unknown board"),
    ],
)
def test_budgets_that_cannot_be_are_refused(flags, words):
    with pytest.raises(UsageError, match=words):
        decided(**flags)


def test_a_network_of_ones_own_takes_a_density_only():
    spec = ModelSpec("own:build", SHAPE, 10, 0)
    with pytest.raises(UsageError, match="leave out one"):
        settle(apply_flags(Config(), {"model": "own:build", "flash_budget": "8K", "density": 0.1}))
    assert spec.width == 0


def test_an_export_keeps_to_the_budget(tmp_path, caplog):
    flags = {"flash_budget": "4K", "model": "resnet8", "rounds": 3, "local_epochs": 1, "clients": 3}
    with caplog.at_level(logging.INFO, "fedtiny_train.budget"):
        summary = rounds.carry_out(settle(apply_flags(Config(), flags)), tmp_path / "run", lambda line: None)
    assert summary["method"] == "fedpack"
    assert f"width {summary['width']}, density {summary['density']:.3g}, " in caplog.text
    exported = make_export(
        read_source(tmp_path / "run", calibration=None, evaluation=None), load_device("qemu-m4"), None
    )
    assert exported.ftm is not None
    assert 0.8 * 4096 < len(exported.ftm.data) <= 4096
    again = read_config(tmp_path / "run")
    assert (again.train.flash_budget, again.train.density, again.model.width) == ("4K", 0.0, 0)


def read_config(folder):
    from fedtiny_train.config import read_toml

    return settle(read_toml(folder / "config.toml"))
