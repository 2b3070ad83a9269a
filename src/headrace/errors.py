"""The exceptions of headrace, one small tree.

HeadraceError
├── DeclarationError    a pipeline is declared wrongly; mend the file, a retry cannot help
├── InputError          a file, topic or frame lacks what the pipeline needs; a retry cannot help
├── SetupError          something this machine must have is missing (an extra, a binary, a first download)
├── Unreachable         a broker or Redis does not answer; a retry can help
├── Refused             a server answered and said no (fenced, full, read only); a restart can help
├── SnapshotError       a snapshot is missing, torn, tampered with, or of another pipeline
└── StreamStopped       the worker will not go on: bad records, a gap, a model that is not finite
"""


class HeadraceError(Exception):
    """Something a user can act on; the message says what, where, and the next step."""


class DeclarationError(HeadraceError, ValueError):
    """A pipeline is declared wrongly."""


class InputError(HeadraceError):
    """A file, topic or frame lacks what the pipeline needs."""


class SetupError(HeadraceError):
    """This machine lacks something: an extra, a binary, a first download."""


class Unreachable(HeadraceError, ConnectionError):
    """A broker or Redis does not answer; trying again can help."""


class Refused(HeadraceError):
    """A server answered and said no."""


class SnapshotError(HeadraceError):
    """A snapshot is missing, torn, tampered with, or of another pipeline."""


class StreamStopped(HeadraceError):
    """The worker will not go on, and says why."""
