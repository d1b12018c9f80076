"""Compiles one Triton kernel, in a process of its own: `python triton_worker.py FOLDER`.

A crash of the compiler then fails one build with its log, and never the user's process. Imports
nothing of Enginesmith; `triton_aot.py` writes and reads the folder:

    kernel.py     the text of the function
    request.json  {"name", "parameters": [[type, divisor], ...], "warps", "stages", "arch"}
    kernel.cubin, kernel.ptx, metadata.json   the answer
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any


def compile_kernel(folder: Path) -> None:
    """Writes the answer for the folder's request."""
    from triton import knobs
    from triton._C.libtriton import ir
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler.compiler import make_backend

    knobs.compilation.disable_line_info = True  # which would name the folder
    request = json.loads((folder / "request.json").read_text())
    function = _function(folder / "kernel.py", request["name"])
    names, parameters = function.arg_names, request["parameters"]
    source = ASTSource(
        fn=function,
        signature={name: kind for name, (kind, _) in zip(names, parameters, strict=True)},
        attrs={
            (i,): [["tt.divisibility", divisor]]
            for i, (_, divisor) in enumerate(parameters)
            if divisor > 1
        },
    )
    # triton.compile() does the same and keeps every stage in a cache of its own.
    target = GPUTarget("cuda", request["arch"], 32)
    backend = make_backend(target)
    options = backend.parse_options(
        {"num_warps": request["warps"], "num_stages": request["stages"]}
    )
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, source.language)
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module = source.make_ir(
        target, options, backend.get_codegen_implementation(options), backend.get_module_map(),
        context,
    )  # fmt: skip
    metadata: dict[str, Any] = {"num_warps": options.num_warps}
    for stage, compile_stage in stages.items():
        module = compile_stage(module, metadata)
        if stage == "ptx":
            (folder / "kernel.ptx").write_text(module)
    (folder / "kernel.cubin").write_bytes(module)
    wanted = (
        "name", "shared", "num_warps", "global_scratch_size", "profile_scratch_size",
        "tensordesc_meta",
    )  # fmt: skip
    (folder / "metadata.json").write_text(json.dumps({key: metadata[key] for key in wanted}))


def _function(path: Path, name: str) -> Any:
    """The function in the file: Triton reads its source from there."""
    spec = importlib.util.spec_from_file_location("kernel", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


if __name__ == "__main__":
    compile_kernel(Path(sys.argv[1]))
