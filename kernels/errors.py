"""What the operator's tools refuse with."""


class KernelError(ValueError):
    """Shapes, k, target or driver do not fit; the message says what was expected."""
