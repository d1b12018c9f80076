"""A convolutional network on an NVIDIA GPU: build in fp16, keep data on the card, measure.

Run it from a checkout:  pip install -e ".[build,cuda]" && python examples/gpu.py
It makes a small network with random weights, so that it needs no download; give it a model of your
own with  python examples/gpu.py model.onnx.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import numpy as np
import onnx
import onnx.parser

import enginesmith as es
from enginesmith.cli.load import random_feeds, symbols_of_shapes
from enginesmith.errors import DeviceError, EnginesmithError
from enginesmith.runtime.cuda_context import CudaExecutionContext

NETWORK = """
<ir_version: 8, opset_import: ["" : 18]>
small (float[batch, 3, 128, 128] image) => (float[batch, 64, 1, 1] features) {
  a = Conv <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (image, stem)
  b = Relu (a)
  c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b, middle)
  d = Add (c, b)
  e = Relu (d)
  features = GlobalAveragePool (e)
}
"""


def network() -> onnx.ModelProto:
    """The network above with random weights."""
    random = np.random.default_rng(0)
    model = onnx.parser.parse_model(NETWORK)
    for name, shape in (("stem", (64, 3, 3, 3)), ("middle", (64, 64, 3, 3))):
        fan_in = shape[1] * shape[2] * shape[3]
        data = (random.standard_normal(shape) * (2 / fan_in) ** 0.5).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(data, name))
    return model


def main(path: str | None = None) -> None:
    """Build, run from the host, run on the card, measure."""
    engine = es.build(path or network(), target="cuda", precision="fp16")
    print(engine.report)
    feeds = random_feeds(engine.plan, symbols_of_shapes(engine.plan, {}))

    context = engine.context()
    assert isinstance(context, CudaExecutionContext)
    on_host = context.execute(feeds)
    print({name: array.shape for name, array in on_host.items()})

    # Results that stay on the card: libraries that know __cuda_array_interface__ (torch.as_tensor,
    # CuPy, Numba) use them without a copy, and the engine reads such arrays where they are.
    on_card: dict[str, Any] = context.execute(feeds, results="device")
    for name, array in on_card.items():
        np.testing.assert_array_equal(array.numpy(), on_host[name])

    # Two inferences in flight: copies of one overlap the other's compute.
    pending = [context.enqueue(feeds) for _ in range(4)]
    assert all(np.array_equal(p.result()[n], on_host[n]) for p in pending for n in on_host)

    times = context.gpu_times(feeds, 50)
    print(f"{statistics.median(times) * 1e3:.3f} ms on the GPU (median of {len(times)})")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except DeviceError as error:
        sys.exit(f"this example needs an NVIDIA GPU: {error}")
    except EnginesmithError as error:
        sys.exit(str(error))
