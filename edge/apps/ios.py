"""Not yet."""

from edge.apps.bundle import Bundle


def files(bundle: Bundle) -> dict[str, bytes]:
    """Return files."""
    raise NotImplementedError
