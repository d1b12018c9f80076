"""The zoo's made-up weights: the same every time, and activations that mean something."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from bench import zoo
from bench.zoo import packages

SMALL = ["densenet121", "efficientnet_b0", "mobilenet_v3_large", "regnet_y_400mf", "unet"]
LARGE = sorted({*zoo.names()} - {*SMALL})


def test_weights_are_the_same_every_time() -> None:
    first, again = (zoo.filled("mobilenet_v3_large").SerializeToString() for _ in range(2))
    assert first == again


def test_graphs_come_without_weights_and_leave_with_them() -> None:
    external = onnx.TensorProto.EXTERNAL
    bare = onnx.load(str(zoo.fill.GRAPHS / "unet.onnx"), load_external_data=False)
    assert any(t.data_location == external for t in bare.graph.initializer)
    assert all(t.data_location != external for t in zoo.filled("unet").graph.initializer)


@pytest.mark.parametrize(
    "name", [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
)
def test_outputs_depend_on_the_input(name: str) -> None:
    """Finite, spread over the elements, and different for another input."""
    runtime = pytest.importorskip("onnxruntime")
    model = zoo.filled(name)
    session = runtime.InferenceSession(model.SerializeToString())
    first = session.run(None, zoo.example_inputs(model, seed=0))
    second = session.run(None, zoo.example_inputs(model, seed=1))
    for a, b in zip(first, second, strict=True):
        assert np.isfinite(a).all()
        assert np.linalg.norm(a - b) > 5e-3 * np.linalg.norm(a)
        if a.size > 1:
            assert 0.05 * np.abs(a).max() < a.std() < 1e3


def test_example_inputs_follow_batch_and_seed() -> None:
    model = zoo.filled("mobilenet_v3_large")
    (name, first), *_ = zoo.example_inputs(model, batch=3, seed=4).items()
    assert (first.shape, first.dtype) == ((3, 3, 224, 224), np.float32)
    assert np.array_equal(first, zoo.example_inputs(model, batch=3, seed=4)[name])
    assert not np.array_equal(first, zoo.example_inputs(model, batch=3, seed=5)[name])


def test_ids_are_small_and_masks_are_ones() -> None:
    bare = onnx.load(str(zoo.fill.GRAPHS / "bert_base.onnx"), load_external_data=False)
    ids, mask = zoo.example_inputs(bare).values()
    assert ids.dtype == np.int64
    assert 0 <= ids.min() < ids.max() < 1000
    assert (mask == 1).all()


@pytest.mark.parametrize("name", zoo.PACKAGE_MODELS)
def test_package_models_are_found_and_take_their_shapes(name: str) -> None:
    try:
        path = zoo.find(name)
    except LookupError as missing:
        pytest.skip(str(missing))
    model = onnx.load(str(path))
    assert [i.name for i in model.graph.input] == [n for n, _ in zoo.PACKAGE_MODELS[name].shapes]


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = packages.PackageModel("no-such-package", "x.onnx", ())
    monkeypatch.setitem(packages.PACKAGE_MODELS, "absent", absent)
    with pytest.raises(LookupError, match=r"no-such-package, .* pip install --no-deps -r"):
        zoo.find("absent")


def test_unknown_model_lists_the_names() -> None:
    with pytest.raises(LookupError, match=r"'resnet51'.*resnet50.*ppocr_det"):
        zoo.load("resnet51")


@pytest.mark.parametrize("name", zoo.PACKAGE_MODELS)
def test_trained_models_see_the_photo(name: str) -> None:
    """Pictures of the right shape with contrast, and no two of a batch the same."""
    pytest.importorskip("PIL")
    ((key, shape),) = zoo.typical_shapes(name, 2).items()
    pictures = zoo.feeds(name, onnx.ModelProto(), 2)[key]
    assert (pictures.shape, pictures.dtype) == (shape, np.float32)
    assert pictures.std() > 0.1
    assert not np.array_equal(pictures[0], pictures[1])
    other = {key: (3, 3, 40, 52), "absent": (1,)}
    model = onnx.ModelProto()
    model.graph.input.add().name = key
    resized = zoo.feeds(name, model, 2, other)
    assert {k: v.shape for k, v in resized.items()} == {key: (3, 3, 40, 52)}


def test_zoo_models_get_random_feeds() -> None:
    model = zoo.filled("unet")
    (first,) = zoo.feeds("unet", model, 2).values()
    (other,) = zoo.feeds("unet", model, 3).values()
    assert (len(first), len(other)) == (2, 3)
