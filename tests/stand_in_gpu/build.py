"""The stand-in's library, and the environment in which PyTorch takes it for a GPU's."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import torch

HERE = Path(__file__).parent
WORDS = ("__device_builtin__", "__device_builtin_texture_type__", "__device_builtin_surface_type__")
HEADER = (
    "#pragma once\n"
    + "".join(f"#define {word}\n" for word in (*WORDS, "__host__", "__device__", "CUDARTAPI"))
    + "#define CUDART_CB\n"
    + "#define __align__(n) __attribute__((aligned(n)))\n"
    + "#define __builtin_align__(n) __align__(n)\n"
    + "#define __location__(a)\n#define __cudart_builtin__\n"
)
"""In place of the compiler's own header, which the runtime's asks for."""


def missing() -> str | None:
    """Why there can be no stand-in here, if there cannot."""
    if torch.cuda.is_available():
        return "a real GPU is here, which PyTorch would not stop using"
    if not torch.backends.cuda.is_built():
        return "this PyTorch was built without CUDA"
    if shutil.which("gcc") is None:
        return "there is no gcc to build the stand-in's library with"
    if _headers() is None:
        return "CUDA's headers did not come with this PyTorch"
    return None


def environment(folder: Path) -> dict[str, str]:
    """os.environ, and what makes processes begun with it see a GPU; builds into `folder`."""
    library, compiler = folder / "libcuda.so.1", folder / "include" / "crt"
    compiler.mkdir(parents=True)
    (compiler / "host_defines.h").write_text(HEADER)
    headers = [f"-I{compiler.parent}", f"-I{_headers()}"]
    command = ["gcc", "-shared", "-fPIC", "-O1", "-w", "-Wl,-soname,libcuda.so.1", *headers]
    subprocess.run([*command, "-o", str(library), str(HERE / "runtime.c")], check=True)
    return {**os.environ, "LD_PRELOAD": str(library)}


def _headers() -> Path | None:
    found = importlib.util.find_spec("nvidia")
    places = [] if found is None else list(found.submodule_search_locations or [])
    headers = [header for place in places for header in Path(place).rglob("driver_types.h")]
    return headers[0].parent if headers else None
