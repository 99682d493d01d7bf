"""The result of a comparison: tables, and sentences that say what can be concluded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cifar_resnet import arguments
from cifar_resnet.comparison import tables
from cifar_resnet.comparison.arms import Arm, as_arm
from cifar_resnet.comparison.differences import PRECISIONS, PairedRuns
from cifar_resnet.comparison.lines import Line, group, read_results, select
from cifar_resnet.comparison.metrics import METRICS, primary_metric
from cifar_resnet.training.recipe import Recipe

__all__ = ["Comparison"]


@dataclass(frozen=True)
class Comparison(PairedRuns):
    """Runs of several arms over seeds; `str` gives the table, and what can be concluded from it.

    `compare` returns one; `from_results` makes one from result files without training.

    Attributes:
        arms: Names of the arms. The others are compared with the first one.
        runs: The result lines: arm -> seed -> values.
        metric: Name of the metric that decides.
        confidence: Confidence level of the intervals, such as 0.95. With several comparisons, the
            intervals of a metric hold together (Bonferroni).
        power: Probability of detecting a difference, for `detectable` and `needed`.
        detect: Difference of interest in the metric that decides, in the unit of the tables, such
            as 0.1 points of accuracy.
        sequential: Whether the runs could stop as soon as the result was clear. The intervals and
            p-values then hold whenever one stops.
        equal_weights: Fraction of the random initial weights of each arm that were equal to those
            of the first arm in runs with the same seed. None if it is not known.
    """

    @classmethod
    def from_results(
        cls,
        results: str | Path | Sequence[str | Path],
        *arms: Any,
        width: int | None = None,
        epochs: int | None = None,
        held_out: bool | None = None,
        precision: str | None = None,
        metric: str | None = None,
        **options: Any,
    ) -> Comparison:
        """Compare runs that are already in result files. Nothing is trained.

        Args:
            results: A file with a JSON line for each run, the folder of a comparison, or several.
            *arms: As for `compare`; the runs are found by what was trained, not by name. If there
                are none, all that was trained, in the order of the runs.
            width: Width of the runs. If None, the only one in the files; also for the following.
            epochs: Number of epochs of the runs.
            held_out: True for runs that were evaluated on held-out images, False for the test set.
            precision: Precision of the runs.
            metric: Metric that decides. If None, the accuracy with the most views of test-time
                augmentation that all runs have.
            **options: `confidence`, `power`, `detect` and `sequential` of `Comparison`.

        Raises:
            TypeError: If an argument has the wrong type.
            FileNotFoundError: If there is no such file.
            ValueError: If a file is damaged, has no such runs, or several settings to choose from.

        Examples:
            >>> import json, tempfile
            >>> from pathlib import Path
            >>> from cifar_resnet import Comparison, Recipe
            >>> file = Path(tempfile.mkdtemp()) / "results.jsonl"
            >>> lines = [
            ...     {"recipe": Recipe.preset(name).to_dict(), "width": 16, "epochs": 24,
            ...      "seed": seed, "held_out": True, "precision": "32-true", "acc": accuracy}
            ...     for name, accuracies in {"sgd": (0.9, 0.91), "muon": (0.91, 0.923)}.items()
            ...     for seed, accuracy in enumerate(accuracies)
            ... ]
            >>> _ = file.write_text("".join(json.dumps(line) + "\\n" for line in lines))
            >>> found = Comparison.from_results(file, "sgd", "muon")
            >>> round(found.difference("muon").mean, 4)
            0.0115
        """
        if isinstance(results, str | Path):
            results = [results]
        expected = "a path or several paths"
        paths = [
            arguments.path("results", path, expected)
            for path in arguments.sequence("results", results, expected)
        ]
        setting = {
            "width": _integer("width", width),
            "epochs": _integer("epochs", epochs),
            "held_out": None if held_out is None else arguments.boolean("held_out", held_out),
            "precision": arguments.choice("precision", precision, PRECISIONS),
        }
        arguments.choice("metric", metric, (*METRICS, None))
        lines: list[Line] = [*read_results(paths)]
        chosen = [as_arm(arm) for arm in arms] or None
        own_widths = all("arm" in line for line in lines) or any(
            arm.width or arm.network for arm in chosen or []
        )
        if own_widths and width is None:
            del setting["width"]
        found = group(select(lines, **setting), chosen)
        return cls._of_runs(found, metric, **options)

    @classmethod
    def _of_runs(
        cls, runs: Mapping[str, Mapping[int, Line]], metric: str | None, **options: Any
    ) -> Comparison:
        """Compare runs that are assigned to arms: arm -> seed -> values."""
        if metric is None:
            metric = primary_metric(line for each in runs.values() for line in each.values())
        names = tuple(runs)
        weights = options.pop("equal_weights", None) or {
            name: _equal_weights(runs[names[0]], runs[name]) for name in names[1:]
        }
        return cls(names, runs, metric, equal_weights=weights, **options)

    def to_records(self) -> list[dict[str, Any]]:
        """Return the differences in all metrics as dictionaries, for a data frame or JSON."""
        return [
            asdict(each) for metric in self.metrics_in_order() for each in self.differences(metric)
        ]

    def to_markdown(self, metrics: Sequence[str] | None = None) -> str:
        """Return the table, the conclusions and the notes in Markdown.

        Args:
            metrics: Names of the metrics in the table. If None, all that the runs report.

        Raises:
            TypeError: If `metrics` is not a sequence of names.
            ValueError: If it is empty, or the runs do not report one of them.
        """
        if metrics is None:
            return tables.markdown(self, self.metrics_in_order())
        expected = "a sequence of names of metrics"
        message = f"metrics must be {expected}, but got {metrics!r}."
        if isinstance(metrics, str):
            raise TypeError(message)
        chosen = arguments.sequence("metrics", metrics, expected)
        if not chosen:
            raise ValueError(message)
        known = (*self.metrics(),)
        return tables.markdown(self, [arguments.choice("metrics", m, known) for m in chosen])

    def __str__(self) -> str:
        return tables.text(self, self.metrics_in_order())


def _integer(name: str, value: Any) -> int | None:
    return None if value is None else arguments.integer(name, value, minimum=1, instead=" or None")


def _equal_weights(reference: Mapping[int, Line], other: Mapping[int, Line]) -> float | None:
    """Return the fraction of initial weights that runs had in common, or None if not known.

    Older scripts seed the generators once: all weights of equal networks are equal, and it is not
    known which ones of other networks.
    """
    lines = [*reference.values(), *other.values()]
    if any(line.get("network") for line in lines):
        return None
    options = [*Recipe().network_options()]
    built = {
        (line["width"], line.get("initial_weights"), *(line["recipe"][name] for name in options))
        for line in lines
    }
    if len(built) == 1:
        return 1.0
    first, second = next(iter(reference.values())), next(iter(other.values()))
    if {line.get("initial_weights") for line in lines} != {"by layer"}:
        return None
    from cifar_resnet.comparison.initial import build, equal_fraction

    networks = [
        build(Arm(Recipe(**line["recipe"])), line["width"], seed=0) for line in (first, second)
    ]
    return equal_fraction(*networks)
