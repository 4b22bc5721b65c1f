"""What can go wrong in a simulated launch."""


class SimulationError(Exception):
    """A launch did what it must not do; the message ends with the instruction."""


class OutOfBoundsError(SimulationError, MemoryError):
    """A read or a write outside every array, outside shared or outside local memory."""


class MisalignedError(SimulationError):
    """An access whose address is not a multiple of its size."""


class DivergenceError(SimulationError):
    """A barrier or a warp-wide instruction that some of its threads did not reach."""


class RaceError(SimulationError):
    """An access whose result depends on the order of threads that nothing orders."""
