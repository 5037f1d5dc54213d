"""Files of TensorFlow's converter from Keras networks, as people have them: the file's own answers, byte for byte."""

from __future__ import annotations

import importlib

import numpy as np
import oracles
import pytest
from fedtiny_export.errors import FedtinyError
from fedtiny_export.graph import reference
from fedtiny_export.tflite.read import read_tflite
from test_operators import runtime_agrees, spread


@pytest.fixture(scope="module")
def tensorflow(need_extra):
    need_extra("tensorflow", "tensorflow")
    return importlib.import_module("tensorflow")


def causal(layers, inputs):
    """A dilated signal, dealt out by SPACE_TO_BATCH_ND."""
    x = layers.Conv1D(8, 3, padding="causal", activation="relu")(inputs)
    x = layers.Conv1D(8, 3, padding="causal", dilation_rate=2, activation="relu")(x)
    x = layers.SeparableConv1D(6, 3, padding="same", dilation_rate=3)(x)
    return layers.Dense(5)(layers.Flatten()(x))


def dilated(layers, inputs):
    x = layers.Conv2D(8, 3, dilation_rate=2, activation="relu")(inputs)
    x = layers.Conv2D(6, (3, 2), dilation_rate=(1, 3), padding="same")(x)
    x = layers.DepthwiseConv2D(3, dilation_rate=3, padding="same", activation="relu")(x)
    return layers.Dense(5)(layers.GlobalMaxPooling2D()(x))


def enlarged(layers, inputs):
    """Rows and columns repeated by TILE, and a shape that is computed at run time."""
    x = layers.MaxPool2D(2)(inputs)
    x = layers.Concatenate()(
        [inputs, layers.UpSampling2D(2)(x), layers.UpSampling2D((4, 2))(layers.MaxPool2D((4, 2))(inputs))]
    )
    return layers.MaxPool2D(2)(x)


def squeezed(layers, inputs):
    """Numbers added and multiplied: a hard sigmoid, and a rescaled image."""
    x = layers.Rescaling(0.5, offset=-1.0)(inputs)
    x = layers.Conv2D(8, 3, activation="tanh")(x)
    gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
    gate = layers.Conv2D(8, 1, activation="hard_sigmoid")(gate)
    x = layers.Multiply()([x, gate])
    return layers.Dense(4, activation="sigmoid")(layers.Flatten()(x))


def pre_activated(layers, inputs):
    """Batch norm in front of a convolution, which cannot go into the one before."""
    x = layers.Conv2D(8, 3, padding="same")(inputs)
    h = layers.ReLU()(layers.BatchNormalization(gamma_initializer="random_normal", beta_initializer="random_normal")(x))
    x = layers.Add()([x, layers.Conv2D(8, 3, padding="same")(h)])
    return layers.Dense(4)(layers.GlobalAveragePooling2D()(x))


CASES = {
    "causal": (causal, (32, 4)),
    "dilated": (dilated, (14, 13, 3)),
    "enlarged": (enlarged, (8, 8, 3)),
    "squeezed": (squeezed, (10, 10, 3)),
}


def converted(tf, build, shape) -> bytes:
    tf.keras.utils.set_random_seed(1)
    inputs = tf.keras.layers.Input(shape)
    converter = tf.lite.TFLiteConverter.from_keras_model(tf.keras.Model(inputs, build(tf.keras.layers, inputs)))
    random = np.random.default_rng(0)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
        [random.normal(0, 1, (1, *shape)).astype(np.float32)] for _ in range(20)
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_file_and_what_was_read_give_the_same_bytes(case, tensorflow, tmp_path):
    build, shape = CASES[case]
    path = tmp_path / "model.tflite"
    path.write_bytes(converted(tensorflow, build, shape))
    graph = read_tflite(path)
    inputs = spread(graph, 20)
    expected = reference.run(graph, inputs)
    assert len(np.unique(expected)) > 8
    once = reference.run(graph, inputs, single_rounding_dense=True)
    # the reference kernels lack TILE; nothing is multiplied there
    kernels = "BUILTIN_WITHOUT_DEFAULT_DELEGATES" if case == "enlarged" else "BUILTIN_REF"
    assert np.array_equal(oracles.litert(path.read_bytes(), inputs, kernels), once.reshape(20, -1))
    runtime_agrees(graph, inputs, expected)


def normalized(layers, inputs):
    x = layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.04, 0.05, 0.06])(inputs)
    return layers.Dense(2)(layers.Flatten()(x))


@pytest.mark.slow
@pytest.mark.parametrize(("build", "kind", "count"), [(normalized, "SUB", 3), (pre_activated, "MUL", 8)])
def test_a_constant_for_each_channel_is_refused_in_words(build, kind, count, tensorflow, tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(converted(tensorflow, build, (8, 8, 3)))
    with pytest.raises(
        FedtinyError, match=rf"\({kind}\) takes a constant of {count} numbers; supported are one number"
    ):
        read_tflite(path)
