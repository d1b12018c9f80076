"""Build an engine, run it at two batch sizes, save it, load it.

python examples/quickstart.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

import enginesmith as es

# Any ONNX file will do; this one is small enough to be written here.
CLASSIFIER = """
<ir_version: 9, opset_import: ["" : 17]>
classifier (float[batch, 3, 32, 32] image, float[16, 3, 3, 3] kernel, float[16] bias,
            float[16, 10] weight) => (float[batch, 10] probability) {
    convolved = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>
                     (image, kernel, bias)
    active = Relu (convolved)
    pooled = GlobalAveragePool (active)
    flat = Flatten (pooled)
    logits = MatMul (flat, weight)
    probability = Softmax <axis = 1> (logits)
}
"""


def classifier() -> onnx.ModelProto:
    """A small image classifier with random weights: image [batch, 3, 32, 32] -> [batch, 10]."""
    model = onnx.parser.parse_model(CLASSIFIER)
    rng = np.random.default_rng(0)
    while len(model.graph.input) > 1:  # the inputs after the image are its weights
        value = model.graph.input.pop(1)
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        weights = rng.standard_normal(shape).astype(np.float32) / 4
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, value.name))
    return model


def main() -> None:
    """Build, run, save, load."""
    engine = es.build(classifier(), target="cpu", precision="fp32")
    print("inputs ", *engine.inputs)
    print("outputs", *engine.outputs)

    rng = np.random.default_rng(1)
    for batch in (1, 3):  # one engine serves every batch
        image = rng.standard_normal((batch, 3, 32, 32), np.float32)
        probability = engine({"image": image})["probability"]
        print(f"batch {batch}: most likely classes {probability.argmax(axis=1)}")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "classifier.plan"
        engine.save(path)
        loaded = es.load(path)  # a machine that only does this needs no builder package
        same = np.array_equal(loaded({"image": image})["probability"], probability)
        print(f"the saved plan gives the same result: {same}")

    print(engine.report)


if __name__ == "__main__":
    main()
