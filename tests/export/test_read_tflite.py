"""Reading .tflite files of any converter: the numpy reference and the file written again equal the original."""

from __future__ import annotations

import os
from pathlib import Path

import flatbuffers
import networks
import numpy as np
import oracles
import pytest
from fedtiny_export.errors import FedtinyError
from fedtiny_export.graph import reference
from fedtiny_export.graph.ir import Graph, Op, Window
from fedtiny_export.tflite import schema
from fedtiny_export.tflite.read import read_tflite
from fedtiny_export.tflite.write import write_tflite
from networks import Builder
from test_operators import spread

SHARED = Path(os.environ.get("FEDTINY_SHARED", Path(__file__).parents[3] / "shared")) / "models"
YARDSTICK = sorted(SHARED.glob("*.tflite"))


# The published models are no part of the project: without them there is nothing to collect.
if YARDSTICK:

    @pytest.mark.parametrize("path", YARDSTICK, ids=lambda path: path.stem)
    def test_published_models_are_read_exactly(path):
        graph = read_tflite(path)
        inputs = spread(graph)
        expected = reference.run(graph, inputs).reshape(len(inputs), -1)
        assert len(np.unique(expected)) > 5
        original = path.read_bytes()
        assert np.array_equal(oracles.tflite_micro(original, inputs), expected)
        written = write_tflite(graph)
        assert np.array_equal(oracles.tflite_micro(written, inputs), expected)
        assert len(written) < len(original)
        once = reference.run(graph, inputs, single_rounding_dense=True).reshape(len(inputs), -1)
        assert np.array_equal(oracles.litert(original, inputs), once)


def saved(path: Path, model: bytes) -> Path:
    path.write_bytes(model)
    return path


@pytest.mark.parametrize("seed", range(1, 9))
def test_what_is_written_is_read_back(seed, tmp_path):
    graph = networks.anything(seed)
    written = write_tflite(graph)
    again = read_tflite(saved(tmp_path / "m.tflite", written))
    inputs = spread(graph, 20)
    assert np.array_equal(reference.run(again, inputs), reference.run(graph, inputs))
    assert write_tflite(again) == written, "nothing is lost or moved"


def small(seed: int = 0) -> Graph:
    builder = Builder((6, 5, 3), seed)
    builder.conv(4, pads=(1, 1, 1, 1))
    builder.depthwise(1, (3, 3), pads=(1, 1, 1, 1), low=0.0)
    builder.add(Op.AVERAGE_POOL, window=Window((2, 2), (2, 2)))
    builder.dense(4)
    return builder.int8()


def edited(graph: Graph, change) -> bytes:
    """The graph's file with its tables changed."""
    model = schema.ModelT.InitFromPackedBuf(write_tflite(graph), 0)
    change(model, model.subgraphs[0])
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _operator(model, kind, inputs, outputs, options=None):
    code = getattr(schema.BuiltinOperator, kind)
    model.operatorCodes.append(schema.OperatorCodeT(deprecatedBuiltinCode=code, builtinCode=code, version=2))
    union = 0 if options is None else getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
    return schema.OperatorT(
        opcodeIndex=len(model.operatorCodes) - 1,
        inputs=np.array(inputs, np.int32),
        outputs=np.array(outputs, np.int32),
        builtinOptionsType=union,
        builtinOptions=options,
    )


def _like(tensor, kind, scale=None, zero=None):
    quant = None
    if scale is not None:
        quant = schema.QuantizationParametersT(
            scale=np.array([scale], np.float32), zeroPoint=np.array([zero], np.int64)
        )
    return schema.TensorT(shape=tensor.shape, type=kind, buffer=0, name="edge", quantization=quant, hasRank=True)


def edges(kind, shift):
    """Put QUANTIZE before and behind, to float or to uint8 with other or equal steps."""

    def change(model, sub):
        first, last = int(sub.inputs[0]), int(sub.outputs[0])
        for index, front in ((first, True), (last, False)):
            inner = sub.tensors[index].quantization
            scale, zero = float(inner.scale[0]) * shift, int(inner.zeroPoint[0]) + 128
            outer = _like(sub.tensors[index], kind, *((scale, zero) if kind == schema.TensorType.UINT8 else ()))
            sub.tensors.append(outer)
            new = len(sub.tensors) - 1
            if front:
                sub.operators.insert(0, _operator(model, "QUANTIZE", [new], [index], schema.QuantizeOptionsT()))
                sub.inputs = np.array([new], np.int32)
            else:
                name, options = ("QUANTIZE", schema.QuantizeOptionsT())
                if kind == schema.TensorType.FLOAT32:
                    name, options = "DEQUANTIZE", schema.DequantizeOptionsT()
                sub.operators.append(_operator(model, name, [index], [new], options))
                sub.outputs = np.array([new], np.int32)

    return change


def test_float_edges_are_left_off(tmp_path):
    graph = small()
    file = edited(graph, edges(schema.TensorType.FLOAT32, 1.0))
    again = read_tflite(saved(tmp_path / "m.tflite", file))
    inputs = spread(graph, 20)
    quant, answer = graph.tensors[graph.input].quant, graph.tensors[graph.output].quant
    real = ((inputs.astype(np.float32) - quant.zero_point) * np.float32(quant.scale)).astype(np.float32)
    found = oracles.tflite_micro(file, real)
    expected = reference.run(again, inputs).reshape(20, -1)
    assert np.array_equal(found, (expected.astype(np.float32) - answer.zero_point) * np.float32(answer.scale))
    assert len(again.nodes) == len(graph.nodes)


@pytest.mark.parametrize(("shift", "more"), [(1.0, 0), (1.25, 2)])
def test_uint8_edges_become_int8(shift, more, tmp_path):
    graph = small()
    file = edited(graph, edges(schema.TensorType.UINT8, shift))
    again = read_tflite(saved(tmp_path / "m.tflite", file))
    inputs = spread(graph, 20)
    found = oracles.tflite_micro(file, (inputs.astype(np.int16) + 128).astype(np.uint8))
    expected = reference.run(again, inputs).reshape(20, -1)
    assert np.array_equal(found.astype(np.int16) - 128, expected)
    assert len(again.nodes) == len(graph.nodes) + more


def test_buffers_behind_the_flatbuffer_are_read(tmp_path):
    """TFLite Micro gives garbage for such files, so only the reader is asked."""
    graph, tail = small(), []

    def change(model, sub):
        for buffer in model.buffers[1:]:
            tail.append(bytes(buffer.data))
            buffer.data, buffer.offset, buffer.size = None, 2, len(tail[-1])

    empty = edited(graph, change)
    place = len(empty) + 64

    def fill(model, sub):
        at = place
        for buffer, content in zip(model.buffers[1:], tail, strict=True):
            buffer.data, buffer.offset, buffer.size = None, at, len(content)
            at += len(content)

    file = edited(graph, fill)
    assert len(file) <= place
    path = saved(tmp_path / "m.tflite", file.ljust(place, b"\0") + b"".join(tail))
    assert write_tflite(read_tflite(path)) == write_tflite(graph)
    saved(path, path.read_bytes()[:-1])
    with pytest.raises(FedtinyError, match="are not in the file"):
        read_tflite(path)


@pytest.mark.parametrize("rest", [[], [-1]])
def test_a_missing_bias_is_zero(rest, tmp_path):
    """Left off, or -1, which TFLite Micro takes from a dense layer only."""

    def change(model, sub):
        for operator in sub.operators:
            if len(operator.inputs) == 3 and (not rest or operator is sub.operators[-1]):
                operator.inputs = np.array([*operator.inputs[:2], *rest], np.int32)

    graph = small()
    file = edited(graph, change)
    again = read_tflite(saved(tmp_path / "m.tflite", file))
    inputs = spread(graph, 20)
    expected = reference.run(again, inputs).reshape(20, -1)
    assert np.array_equal(oracles.tflite_micro(file, inputs), expected)
    assert not np.array_equal(reference.run(graph, inputs).reshape(20, -1), expected)


def _per_tensor(model, sub):
    for operator in sub.operators:
        if len(operator.inputs) == 3:
            quant = sub.tensors[operator.inputs[1]].quantization
            quant.scale, quant.zeroPoint = quant.scale[:1], quant.zeroPoint[:1]
            data = sub.tensors[operator.inputs[0]].quantization
            scale = np.array([np.float32(data.scale[0]) * quant.scale[0]], np.float32)
            bias = schema.QuantizationParametersT(scale=scale, zeroPoint=np.zeros(1, np.int64))
            sub.tensors[operator.inputs[2]].quantization = bias


def test_weights_with_one_scale_are_exact_and_stay_so(tmp_path):
    for seed in range(6):
        graph = small(seed)
        file = edited(graph, _per_tensor)
        again = read_tflite(saved(tmp_path / "m.tflite", file))
        assert all(node.constants["weight_scale"].size == 1 for node in again.nodes if "weight" in node.constants)
        inputs = spread(graph, 60)
        expected = reference.run(again, inputs).reshape(60, -1)
        assert np.array_equal(oracles.tflite_micro(file, inputs), expected)
        assert np.array_equal(oracles.tflite_micro(write_tflite(again), inputs), expected)


def test_padding_and_views_go_into_their_readers(tmp_path):
    builder = Builder((6, 5, 3), 2)
    builder.add(Op.PAD, constants={"pads": np.array([[1, 0], [2, 1], [0, 0]])})
    builder.conv(4, pads=(0, 0, 0, 0))
    builder.add(Op.RESHAPE, constants={"shape": np.array([builder.tensors[builder.last].elements])})
    builder.dense(4)
    graph = builder.int8()
    file = write_tflite(graph)
    again = read_tflite(saved(tmp_path / "m.tflite", file))
    assert [node.op for node in again.nodes] == [Op.CONV, Op.DENSE]
    assert again.nodes[0].window.pads == (1, 2, 0, 1)
    inputs = spread(graph, 20)
    assert np.array_equal(reference.run(again, inputs), reference.run(graph, inputs))


def _set(**values):
    """Change fields of the first convolution's options."""

    def change(model, sub):
        for name, value in values.items():
            setattr(sub.operators[0].builtinOptions, name, value)

    return change


def _tensor(place, **values):
    def change(model, sub):
        for name, value in values.items():
            setattr(sub.tensors[sub.operators[0].inputs[place]], name, value)

    return change


def _quant(place, **values):
    def change(model, sub):
        for name, value in values.items():
            setattr(sub.tensors[sub.operators[0].inputs[place]].quantization, name, np.array(value))

    return change


def _custom(model, sub):
    code = schema.BuiltinOperator.CUSTOM
    model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = code


def _two_outputs(model, sub):
    sub.outputs = np.array([0, 1], np.int32)


def _itself(model, sub):
    operator = sub.operators[0]
    operator.inputs = np.array([operator.outputs[0], *operator.inputs[1:]], np.int32)


REFUSED = {
    "custom operator": (_custom, "operator 0 of type CUSTOM is not supported"),
    "two outputs": (_two_outputs, "one input and one output"),
    "reads itself": (_itself, "not written before"),
    "stride of zero": (_set(strideH=0), "between 1 and 255"),
    "tanh": (_set(fusedActivationFunction=4), "fused activation 4"),
    "batch of two": (_tensor(0, shape=np.array([2, 6, 5, 3], np.int32)), "batch of one"),
    "a negative side": (_tensor(0, shape=np.array([1, -6, 5, 3], np.int32)), "not supported"),
    "int16 activations": (_tensor(0, type=schema.TensorType.INT16), "is INT16"),
    "no scale": (_tensor(0, quantization=None), "needs one scale"),
    "weights that are no constant": (_tensor(1, buffer=0), "must be a constant of int8"),
    "weights of another size": (_tensor(1, shape=np.array([4, 3, 3, 9], np.int32)), "holds 108 bytes"),
    "buffer out of range": (_tensor(1, buffer=99), "has buffer 99"),
    "asymmetric weights": (_quant(1, zeroPoint=[3]), "must be symmetric"),
    "scales along another side": (_quant(1, quantizedDimension=3), "along side 3"),
    "scale that is no number": (_quant(1, scale=np.full(4, np.nan, np.float32)), "must be symmetric"),
    "zero point beyond int8": (_quant(0, zeroPoint=[300]), "does not fit int8"),
    "a state": (_tensor(0, isVariable=True), "or a state"),
    "another file": (_tensor(1, externalBuffer=1), "lies in another file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(case, tmp_path):
    change, message = REFUSED[case]
    path = saved(tmp_path / "m.tflite", edited(small(), change))
    with pytest.raises(FedtinyError, match=message) as caught:
        read_tflite(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def _product_by_channel(zero_point: int = 0, sides: int = 1):
    """Turn the depthwise convolution of one pixel into a product with a constant."""

    def change(model, sub):
        depthwise = next(one for one in sub.operators if isinstance(one.builtinOptions, schema.DepthwiseConv2DOptionsT))
        numbers = sub.tensors[depthwise.inputs[1]]
        numbers.shape = np.array([1] * (sides - 1) + [4], np.int32)
        numbers.quantization.scale = numbers.quantization.scale[:1]
        numbers.quantization.zeroPoint = np.array([zero_point], np.int64)
        options = schema.MulOptionsT(fusedActivationFunction=schema.ActivationFunctionType.RELU)
        places = [depthwise.inputs[1], depthwise.inputs[0]] if sides == 1 else depthwise.inputs[:2]
        sub.operators[1] = _operator(model, "MUL", places, depthwise.outputs, options)

    return change


def _scaled_image() -> Graph:
    builder = Builder((6, 5, 3), 0)
    builder.conv(4, low=None)
    builder.depthwise(1, (1, 1), low=0.0)
    builder.dense(4)
    return builder.int8()


@pytest.mark.parametrize("sides", [1, 4])
def test_a_product_with_a_constant_for_each_channel(sides, tmp_path):
    file = edited(_scaled_image(), _product_by_channel(sides=sides))
    graph = read_tflite(saved(tmp_path / "m.tflite", file))
    assert [node.op for node in graph.nodes] == [Op.CONV, Op.DEPTHWISE, Op.DENSE]
    inputs = spread(graph, 50)
    assert np.array_equal(oracles.tflite_micro(file, inputs), reference.run(graph, inputs).reshape(50, -1))


def test_such_a_product_around_another_zero_point_is_refused(tmp_path):
    file = edited(_scaled_image(), _product_by_channel(zero_point=100))
    with pytest.raises(FedtinyError, match="takes a constant of 4 numbers"):
        read_tflite(saved(tmp_path / "m.tflite", file))


def _enlarged() -> Graph:
    builder = Builder((6, 5, 3), 0)
    builder.conv(4)
    builder.add(Op.RESIZE, settings={"height": 18, "width": 5})
    builder.dense(4)
    return builder.int8()


def _repeated(tiles=(1, 1, 3, 1, 1), axis=2, target=(1, -1, 5, 4)):
    """Turn the resize into what Keras writes: EXPAND_DIMS, TILE, and a RESHAPE to a shape that is put together."""

    def change(model, sub):
        def new(values, shape=None):
            values = np.array(values, np.int32)
            model.buffers.append(schema.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
            kind, buffer = schema.TensorType.INT32, len(model.buffers) - 1
            shape = np.array(values.shape if shape is None else shape, np.int32)
            sub.tensors.append(schema.TensorT(shape=shape, type=kind, buffer=buffer, hasRank=True))
            return len(sub.tensors) - 1

        def made(like, shape):
            quantization = sub.tensors[like].quantization
            shape = np.array(shape, np.int32)
            sub.tensors.append(
                schema.TensorT(shape=shape, type=schema.TensorType.INT8, quantization=quantization, hasRank=True)
            )
            return len(sub.tensors) - 1

        resize = sub.operators[1]
        source, output = int(resize.inputs[0]), int(resize.outputs[0])
        wide, long, parts = made(source, (1, 6, 1, 5, 4)), made(source, (1, 6, 3, 5, 4)), new([0] * 4)
        sub.tensors[parts].buffer = 0
        sub.tensors[output].shape = np.array([1, 1, 5, 4], np.int32)  # what the file leaves open
        sub.operators[1:2] = [
            _operator(model, "EXPAND_DIMS", [source, new([axis], ())], [wide], schema.ExpandDimsOptionsT()),
            _operator(model, "TILE", [wide, new(tiles)], [long]),
            _operator(
                model, "CONCATENATION", [new(target[:2]), new(target[2:])], [parts], schema.ConcatenationOptionsT()
            ),
            _operator(model, "RESHAPE", [long, parts], [output], schema.ReshapeOptionsT()),
        ]

    return change


def test_rows_that_are_repeated_are_a_resize(tmp_path):
    graph = _enlarged()
    again = read_tflite(saved(tmp_path / "m.tflite", edited(graph, _repeated())))
    inputs = spread(graph, 20)
    assert np.array_equal(reference.run(again, inputs), reference.run(graph, inputs))
    assert [node.op for node in again.nodes] == [Op.CONV, Op.RESIZE, Op.DENSE]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_repeated(tiles=(1, 1, 1, 3, 1)), "TILE.*rows or columns"),
        (_repeated(tiles=(1, 1, 3, 1, 2)), "TILE.*rows or columns"),
        (_repeated(tiles=(1, 1, 0, 1, 1)), "TILE.*rows or columns"),
        (_repeated(tiles=(1, 1, 3)), "TILE.*rows or columns"),
        (_repeated(axis=4), r"shape \\(1, 6, 1, 5, 4\\)|1 to 3 sides"),
        (_repeated(tiles=(1, 1, 100000, 1, 1)), "65,535"),
    ],
)
def test_repetitions_of_other_kinds_are_refused(change, message, tmp_path):
    with pytest.raises(FedtinyError, match=message):
        read_tflite(saved(tmp_path / "m.tflite", edited(_enlarged(), change)))


def _dealt_out(steps=(2, 3), pads=((2, 3), (3, 5)), crops=((0, 1), (0, 2)), first="CONV_2D"):
    """Turn the dilated convolution into what TensorFlow's converter writes."""

    def change(model, sub):
        def new(values):
            values = np.array(values, np.int32)
            model.buffers.append(schema.BufferT(data=np.frombuffer(values.tobytes(), np.uint8)))
            kind, buffer = schema.TensorType.INT32, len(model.buffers) - 1
            shape = np.array(values.shape, np.int32)
            sub.tensors.append(schema.TensorT(shape=shape, type=kind, buffer=buffer, hasRank=True))
            return len(sub.tensors) - 1

        conv = sub.operators[0]
        source, output = int(conv.inputs[0]), int(conv.outputs[0])
        sub.tensors += [_like(sub.tensors[index], schema.TensorType.INT8) for index in (source, output)]
        apart, inner = len(sub.tensors) - 2, len(sub.tensors) - 1
        for index, like in ((apart, source), (inner, output)):
            sub.tensors[index].quantization = sub.tensors[like].quantization
        conv.builtinOptions.dilationHFactor = conv.builtinOptions.dilationWFactor = 1
        conv.builtinOptions.padding = schema.Padding.VALID
        conv.inputs, conv.outputs = np.array([apart, *conv.inputs[1:]], np.int32), np.array([inner], np.int32)
        deal = _operator(model, "SPACE_TO_BATCH_ND", [source, new(steps), new(pads)], [apart])
        gather = _operator(model, "BATCH_TO_SPACE_ND", [inner, new((2, 3)), new(crops)], [output])
        relu = _operator(model, "RELU", [apart], [inner])
        sub.operators[0:1] = [deal, conv if first == "CONV_2D" else relu, gather]

    return change


def _dilated() -> Graph:
    builder = Builder((9, 10, 3), 0)
    builder.add(Op.CONV, constants=builder._weights(4, 3, 3, 3), window=Window((3, 3), (1, 1), (2, 3, 2, 3), (2, 3)))
    builder.dense(4)
    return builder.int8()


def test_a_convolution_of_dealt_out_pixels_is_a_dilated_one(tmp_path):
    graph = _dilated()
    again = read_tflite(saved(tmp_path / "m.tflite", edited(graph, _dealt_out())))
    inputs = spread(graph, 20)
    assert np.array_equal(reference.run(again, inputs), reference.run(graph, inputs))
    assert [node.op for node in again.nodes] == [Op.CONV, Op.DENSE]
    assert again.nodes[0].window == graph.nodes[0].window


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_dealt_out(steps=(2, 2)), "not those that the pixels were dealt out by"),
        (_dealt_out(steps=(0, 3)), r"steps \[0, 3\]"),
        (_dealt_out(steps=(2,)), r"steps \[2\]"),
        (_dealt_out(pads=((2, -3), (3, 5))), "is no number of rows"),
        (_dealt_out(pads=((2, 3),)), "is no number of rows"),
        (_dealt_out(crops=((3, 1), (0, 2))), "cuts off more than was padded"),
        (_dealt_out(first="RELU"), "only one convolution may"),
    ],
)
def test_pixels_dealt_out_in_other_ways_are_refused(change, message, tmp_path):
    with pytest.raises(FedtinyError, match=message):
        read_tflite(saved(tmp_path / "m.tflite", edited(_dilated(), change)))
