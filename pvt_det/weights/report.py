"""What became of every tensor of a file and of a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from pvt_det.errors import CheckpointError

# The reason given for what the user's patterns name.
ALLOWED = "allowed partial"


@dataclass
class LoadReport:
    """The outcome of loading; printed, it is the coverage line.

    Attributes:
        source: Where the weights came from.
        dialect: The layout that they were in.
        total: Number of tensors of the file, under this package's names.
        loaded: Names of the model's tensors that were set.
        dropped: Reason → names in the file that the model has no use for.
        new: Reason → names in the model that keep their initial values and have yet to be trained.
        defaults: Reason → names in the model that are not weights and stay at their defaults.
        notes: Anything else to know, such as resized position embeddings.
    """

    source: str
    dialect: str
    total: int
    loaded: list[str] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    new: dict[str, list[str]] = field(default_factory=dict)
    defaults: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def require_whole(self) -> None:
        """Check that no weight of the model was left at its initial value, for a model that is not going to be trained.

        What `allow_partial` named counts as wanted so.

        Raises:
            CheckpointError: If some were.
        """
        if lacking := [reason for reason in self.new if reason != ALLOWED]:
            count = sum(len(self.new[reason]) for reason in lacking)
            raise CheckpointError(
                f"{self.source} ({self.dialect}) leaves {count} tensors of the model untrained: {', '.join(lacking)}; "
                "give weights of a whole model with the same classes"
            )

    def __str__(self) -> str:
        parts = [f"{self.total} tensors: {len(self.loaded)} loaded"]
        for what, groups in (("dropped", self.dropped), ("new", self.new), ("at defaults", self.defaults)):
            if groups:
                parts.append(f"{sum(map(len, groups.values()))} {what}: {', '.join(groups)}")
        return "; ".join([f"{self.source} ({self.dialect}): " + ", ".join(parts), *self.notes])


@dataclass
class Faults:
    """Tensors that keep a file from fitting a model, by name, each with what is wrong where that is not plain."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes or self.types)

    def __str__(self) -> str:
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.shapes,
            "without fractions": self.types,
        }
        return "; ".join(
            f"{len(found)} {kind}: {', '.join(found[:10])}{', …' if len(found) > 10 else ''}"
            for kind, found in kinds.items()
            if found
        )
