"""Every network of the trainer, trained a round by clients and exported: numpy, TFLite Micro and LiteRT agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracles
import pytest
from fedtiny_export.export import quantized
from fedtiny_export.graph import reference
from fedtiny_export.graph.evaluate import to_int8
from fedtiny_export.graph.reduce import reduce_graph
from fedtiny_export.source import read_source
from fedtiny_export.tflite.write import write_tflite
from fedtiny_export.tflm.decode import decoded_bytes
from test_operators import spread

NETWORKS = [
    ("resnet8", 8),
    ("resnet18", 8),
    ("vgg11", 8),
    ("mobilenetv1", 8),
    ("mobilenetv2", 8),
    ("dscnn", 16),
    ("cnn", 8),
    ("cnn", 20),
    ("mlp", 16),
    ("mlp", 48),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three classes of noise around three patterns, as images and as vectors."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    y = random.integers(0, 3, 260)
    patterns = random.uniform(40, 215, (3, 20, 20, 3))
    x = np.clip(patterns[y] + random.normal(size=(260, 20, 20, 3)) * 40, 0, 255).astype(np.uint8)
    for name, values in (("images", x), ("vectors", x[:, ::4, ::4].reshape(260, -1))):
        parts = {"x_train": values[:200], "y_train": y[:200], "x_test": values[200:], "y_test": y[200:]}
        np.savez(folder / f"{name}.npz", **parts)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), NETWORKS)
def test_a_trained_network_is_exported_exactly(name, width, data, tmp_path):
    from fedtiny_train.cli import main

    options = {
        "data": data / ("vectors.npz" if name == "mlp" else "images.npz"),
        **{"model": name, "width": width, "method": "random", "density": 0.5, "out": tmp_path / "run"},
        **{"rounds": 1, "local-epochs": 3, "clients": 2, "public": "none", "partition": "iid", "lr": 0.03},
    }
    given = [text for key, value in options.items() for text in (f"--{key}", str(value))]
    with pytest.raises(SystemExit) as end:
        main([*given, "--no-first-dense", "--no-depthwise-dense"])
    assert not end.value.code
    source = read_source(tmp_path / "run", calibration=None, evaluation=None)
    whole = quantized(source)
    graph = reduce_graph(whole)
    inputs = np.concatenate([spread(graph, 60), to_int8(graph, source.samples.x[:40])])
    expected = reference.run(graph, inputs).reshape(100, -1)
    assert len(np.unique(expected)) > 5
    assert np.isin(expected, (-128, 127)).mean() < 0.5, "saturated outputs would prove nothing"
    assert np.array_equal(reference.run(whole, inputs).reshape(100, -1), expected)
    model = write_tflite(graph)
    assert np.array_equal(oracles.tflite_micro(model, inputs), expected)
    once = reference.run(graph, inputs, single_rounding_dense=True).reshape(100, -1)
    assert np.array_equal(oracles.litert(model, inputs), once)
    if decoded_bytes(graph):
        coded = write_tflite(graph, decode=True)
        assert len(coded) < len(model)
        assert np.array_equal(oracles.tflite_micro(coded, inputs), expected)
