"""Builds the native library: a plain C-ABI shared library that needs neither torch nor Python headers, loaded with ctypes.

The CUDA C sources are shipped as they are: NVRTC compiles them at run time.
No compiler, or a failed compilation, still installs: the pure-PyTorch references answer and ``fastscape status`` says so.
``FASTSCAPE_NATIVE=require`` makes a failed build an error (CI), ``FASTSCAPE_NATIVE=0`` skips it.
"""

import hashlib
import json
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

X86 = platform.machine() in ("x86_64", "AMD64")
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", *(["-DFS_X86"] if X86 else [])]
# directions are the same bits everywhere only without fused multiply-adds; sqrt must be the instruction
FLAGS += ["-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512"]
AVX512 += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # g++ 12 warns about its own intrinsics
SOURCES = {"csrc/cpu/library.cpp": [], "csrc/cpu/isa_baseline.cpp": []}
if X86:
    SOURCES |= {"csrc/cpu/isa_avx2.cpp": AVX2, "csrc/cpu/isa_avx512.cpp": AVX512}
HEADERS = sorted(str(path) for pattern in ("*.h", "cpu/*.h", "cpu/*.inc") for path in Path("csrc").glob(pattern))
COMPILED_AT_RUN_TIME = ["csrc/philox.h", *sorted(str(path) for path in Path("csrc/cuda").glob("*.cu"))]
MODE = os.environ.get("FASTSCAPE_NATIVE", "")


def describe(library):
    """Write size and SHA-256 beside a library: it is compared with them before it is loaded."""
    content = library.read_bytes()
    description = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    target = described(library)
    target.write_text(json.dumps(description) + "\n")
    return target


def described(library):
    """The file that :func:`describe` writes."""
    return library.with_name(library.name + ".json")


class NativeLibrary(build_ext):
    """Compile each source with the flags of its instruction set and link one library without a Python suffix."""

    def get_ext_filename(self, fullname):
        return fullname.replace(".", os.sep) + ".so"

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)

        def compiled(source):
            return self.compiler.compile([source], self.build_temp, extra_postargs=[*FLAGS, *SOURCES[source]], depends=HEADERS)

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # an instruction set takes a minute of a slow processor
            objects = [path for paths in pool.map(compiled, SOURCES) for path in paths]
        self.compiler.link_shared_object(objects, str(target), target_lang="c++")
        describe(target)

    def run(self):
        if MODE == "0":
            print("FASTSCAPE_NATIVE=0: native library not built", file=sys.stderr)
            return
        try:
            super().run()
        except Exception as error:
            if MODE == "require":
                raise
            print(f"warning: native library not built ({error}); the PyTorch references will be used", file=sys.stderr)

    def copy_extensions_to_source(self):
        """Editable installs: copy what was built, which may be nothing."""
        if all(Path(path).exists() for path in super().get_outputs()):
            super().copy_extensions_to_source()
            describe(Path("fastscape", "_native.so"))

    def get_outputs(self):
        libraries = [Path(path) for path in super().get_outputs()]
        return [str(path) for library in libraries for path in (library, described(library)) if path.exists()]


class WithSources(build_py):
    """Ship what is compiled at run time as ``fastscape/csrc``; an editable install finds it in the checkout."""

    def run(self):
        super().run()
        for source in [] if self.editable_mode else COMPILED_AT_RUN_TIME:
            target = Path(self.build_lib, "fastscape", source)
            self.mkpath(str(target.parent))
            self.copy_file(source, str(target))


class AnyPython(bdist_wheel):
    """One wheel for every Python: ``py3-none-<platform>``."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("fastscape._native", sources=list(SOURCES), depends=HEADERS, optional=MODE != "require")],
    cmdclass={"build_py": WithSources, "build_ext": NativeLibrary, "bdist_wheel": AnyPython},
)
