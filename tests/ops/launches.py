"""What a launcher launches, caught before the launch: the job that compiles that kernel, and its arguments for the simulator."""

from dataclasses import dataclass
from importlib import import_module

import torch
from ptx.aot import TritonJob
from ptx.simulator import launch

TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass(frozen=True)
class Launch:
    """A launch of the kernel of an op, ``fastscape.ops.<op>.triton:<op>_kernel``."""

    op: str
    grid: tuple[int, ...]
    arguments: dict
    constants: dict
    options: dict
    unspecialised: tuple[str, ...]

    def job(self, arch):
        """As Triton would compile it for these arguments."""
        types = {name: TYPES[value.dtype] if self.tensor(name) else "i32" for name, value in self.arguments.items()}
        divisible = [
            name
            for name, value in self.arguments.items()
            if self.tensor(name) or (name not in self.unspecialised and value % 16 == 0)
        ]
        kernel = f"fastscape.ops.{self.op}.triton:{self.op}_kernel"
        return TritonJob(kernel, types, self.constants, arch, divisible, self.options)

    def tensor(self, name):
        return isinstance(self.arguments[name], torch.Tensor)

    def simulated(self, compiled, limit=1_000_000):
        """The result of the executed PTX, and the steps it took."""
        result = self.arguments["y"]
        values = {name: bits(value) if self.tensor(name) else value for name, value in self.arguments.items()}
        values["y"] = bits(torch.full_like(result, torch.nan))
        done = launch(compiled, self.grid, list(values.values()), limit=limit)
        place = [name for name in values if self.tensor(name)].index("y")
        found = torch.from_numpy(done.arrays[place])
        return (found.view(torch.bfloat16) if result.dtype == torch.bfloat16 else found).view(result.shape), done.steps


def bits(tensor):
    """As the simulator wants it."""
    tensor = tensor.contiguous()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def caught(op, *arguments):
    """The launch that the Triton launcher of an op makes for these arguments."""
    module = import_module(f"fastscape.ops.{op}.triton")
    name = f"{op}_kernel"
    kernel, launches = getattr(module, name), []

    class Recorder:
        def __getitem__(self, grid):
            return lambda *values, **named: launches.append((grid, values, named))

    setattr(module, name, Recorder())
    try:
        getattr(module, op)(*arguments)
    finally:
        setattr(module, name, kernel)
    ((grid, values, named),) = launches
    options = {name: named.pop(name) for name in OPTIONS if name in named}
    given = dict(zip(kernel.arg_names, values, strict=False))
    return Launch(op, grid, given, named, options, tuple(kernel.kwargs.get("do_not_specialize") or ()))
