"""A policy belongs to the Perceiver it was trained with: the check that they still go together."""


class WrongPerceiver(RuntimeError, ValueError):
    """A policy met another Perceiver than it was trained with.

    A RuntimeError too, since SB3's `load` passes those on and replaces some ValueErrors by errors of its own.
    """


def check_fingerprint(found: str | None, expected: str | None, what: str) -> None:
    """Raises WrongPerceiver unless `found` is the fingerprint that `what` was trained with."""
    if found != expected:
        raise WrongPerceiver(
            f"{what} was trained with the model of fingerprint {expected}, got fingerprint {found}, "
            "whose features mean something else; give the checkpoint it was trained with"
        )
