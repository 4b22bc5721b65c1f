"""Other processes in tests: limited by the processor time that they take, never by a clock, and heard through a pipe."""

import os
import resource
import signal
import subprocess

PROCESSOR_SECONDS = 600  # what no test needs, on any machine: work that takes more has no end


def limited(seconds=PROCESSOR_SECONDS):
    """A function for ``preexec_fn``: SIGXCPU ends the process after so much processor time."""
    return lambda: resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))


def _prepare():
    """As from a terminal: a shell that runs the tests in the background makes them ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    limited()()


class Heard:
    """A process whose code calls ``os.write(int(os.environ["READY"]), b"x")`` where the test waits for it.

    Use as a context: at its end the process is killed.
    """

    def __init__(self, command, *, environment=None, **options):
        self._reader, writer = os.pipe()
        environment = (os.environ if environment is None else environment) | {"READY": str(writer)}
        self.process = subprocess.Popen(command, env=environment, pass_fds=[writer], preexec_fn=_prepare, **options)
        os.close(writer)

    def wait_until_ready(self):
        """Return at the next message; fail if the process ends without one."""
        assert os.read(self._reader, 1) == b"x", "the process ended early"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.close(self._reader)
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
