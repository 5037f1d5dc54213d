"""Which device computes: what is chosen, what is refused, and that networks and samples go there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fedtiny_export.errors import FedtinyError, ToolMissingError, UsageError

from fedtiny_train import client, models, runfolder
from fedtiny_train.data import Shard
from fedtiny_train.models import place
from fedtiny_train.options import RunOptions

SPEC = models.ModelSpec("mlp", (4,), 3, 1)


@pytest.mark.parametrize(
    ("there", "options", "expected"),
    [
        (False, {}, "cpu"),
        (True, {}, "cuda"),
        (True, {"device": "cpu"}, "cpu"),
        (True, {"device": "cuda"}, "cuda"),
        (True, {"workers": 2}, "cpu"),
        (True, {"engine": "flower"}, "cpu"),
    ],
)
def test_the_device_that_is_chosen(monkeypatch, there, options, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert place.chosen(RunOptions(**options)) == expected


def test_without_a_gpu_cuda_is_refused(monkeypatch, tools, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ToolMissingError, match=r"device cuda needs a GPU, and torch .* sees none; use --device cpu"):
        place.chosen(RunOptions(device="cuda"))
    train, _, _, flags = tools
    assert train(*flags, "--device", "cuda", "--out", tmp_path / "run") == 6
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("options", [{"workers": 2}, {"engine": "flower"}])
def test_a_gpu_is_not_shared_by_processes(monkeypatch, options):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match="leave out --workers and --engine"):
        place.chosen(RunOptions(device="cuda", **options))


@pytest.fixture
def elsewhere():
    """A device without any values: where a network and its samples go can be seen all the same."""
    models.shared.cache_clear()
    place.use("meta")
    yield torch.device("meta")
    place.use("cpu")
    models.shared.cache_clear()


def test_networks_and_samples_go_to_the_device(elsewhere):
    assert models.layout(torch.zeros(2, 3, 4, 4)).device == elsewhere
    assert models.layout(torch.zeros(2, 3)).device == elsewhere
    model = models.shared(SPEC)
    assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {elsewhere}
    shard = Shard(0, np.zeros((20, 4), np.float32), np.zeros(20, np.int64))
    assert {part.device for part in client.development(shard, 0)} == {elsewhere}
    models.load(model, models.initial_state(SPEC, 0))


def test_a_step_of_training_stays_on_the_device(elsewhere, monkeypatch):
    # Without values there is no loss to look at: the network is asked for one, and what it is asked with is seen.
    seen = []

    def forward(x):
        seen.append(x.device)
        raise KeyboardInterrupt

    model = models.shared(SPEC)
    monkeypatch.setattr(model, "forward", forward)
    shard = Shard(0, np.zeros((4, 4), np.float32), np.zeros(4, np.int64))
    local = client.LocalSpec(SPEC, 0, 2, 1, 0.9, 0.0)
    with pytest.raises(KeyboardInterrupt):
        client.fit(model, shard, {}, [np.arange(2)], 0.1, local)
    assert seen == [elsewhere]


def test_a_run_does_not_go_on_on_another_device(tmp_path):
    runfolder._check_origin(
        tmp_path, runfolder.Origin("d", {"device": "cpu"}), runfolder.Origin("d", {"device": "cpu"})
    )
    with pytest.raises(FedtinyError, match="was begun on device 'cpu'; 'cuda' computes other bytes; name the device"):
        runfolder._check_origin(
            tmp_path, runfolder.Origin("d", {"device": "cpu"}), runfolder.Origin("d", {"device": "cuda"})
        )
