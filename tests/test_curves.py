"""Test that show_training_curves draws the logged values."""

import csv
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from cifar_resnet import show_training_curves

STEPS = range(9, 40, 10)  # 4 epochs of 10 steps, logged at the last step of each


def write_tensorboard(folder: Path) -> None:
    with SummaryWriter(folder) as writer:
        for epoch, step in enumerate(STEPS):
            writer.add_scalar("train_loss_epoch", 2 - 0.4 * epoch, step)
            writer.add_scalar("val_acc", 0.2 * epoch, step)
            writer.add_scalar("epoch", epoch, step)
        writer.add_scalar("learning_rate", 0.1, 19)
        writer.add_scalar("test_acc", 0.9, 40)  # how Lightning logs a test after training
        writer.add_scalar("epoch", 4, 40)


def write_csv(folder: Path) -> None:
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(
            file, ["epoch", "step", "train_loss_epoch", "val_acc", "learning_rate", "test_acc"]
        )
        writer.writeheader()
        for epoch, step in enumerate(STEPS):
            row = {"epoch": epoch, "step": step, "train_loss_epoch": 2 - 0.4 * epoch}
            writer.writerow(row)
            writer.writerow({"epoch": epoch, "step": step, "val_acc": 0.2 * epoch})
        writer.writerow({"step": 19, "learning_rate": 0.1})
        writer.writerow({"epoch": 4, "step": 40, "test_acc": 0.9})


@pytest.mark.parametrize("write", [write_tensorboard, write_csv])
def test_curves_of_a_log(tmp_path: Path, write: object) -> None:
    write(tmp_path)
    figure = show_training_curves(tmp_path)
    assert [axes.get_title() for axes in figure.axes] == ["Loss", "Accuracy", "Learning rate"]
    loss, accuracy, rate = (axes.lines[0] for axes in figure.axes)
    assert loss.get_xdata() == pytest.approx([1, 2, 3, 4])
    assert loss.get_ydata() == pytest.approx([2, 1.6, 1.2, 0.8])
    assert accuracy.get_ydata() == pytest.approx([0, 0.2, 0.4, 0.6])
    assert (rate.get_xdata(), rate.get_ydata()) == (pytest.approx([2]), pytest.approx([0.1]))
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == [
        "train, mean of epoch"
    ]


def test_each_group_of_parameters_has_its_learning_rate() -> None:
    rates = {"others": [0.4, 0.2], "convolutions": [0.05, 0.025]}
    figure = show_training_curves({f"learning_rate/{k}": ([1, 2], v) for k, v in rates.items()})
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_legend().get_texts()] == list(rates)
    assert {line.get_label(): list(line.get_ydata()) for line in axes.lines} == rates
    assert len({line.get_color() for line in axes.lines}) == 2
    assert show_training_curves({"learning_rate": ([1], [2])}).axes[0].get_legend() is None


def test_a_given_figure_is_used_and_pyplot_is_not(tmp_path: Path) -> None:
    import sys

    given = Figure()
    assert show_training_curves({"val_loss": ([1, 2], [0.5, 0.4])}, fig=given) is given
    assert [axes.get_title() for axes in given.axes] == ["Loss"]
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
    given.savefig(tmp_path / "curves.png")


def test_a_resumed_run_replaces_its_earlier_values(tmp_path: Path) -> None:
    write_tensorboard(tmp_path)
    with SummaryWriter(tmp_path, filename_suffix=".resumed") as writer:
        writer.add_scalar("train_loss_epoch", 9, 39)
    assert show_training_curves(tmp_path).axes[0].lines[0].get_ydata()[-1] == 9


def test_no_log_and_no_curves(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"neither a TensorBoard event file nor a metrics\.csv"
    ):
        show_training_curves(tmp_path)
    with pytest.raises(ValueError, match=r"no training curves, only \['loss'\]"):
        show_training_curves({"loss": ([1], [2])})


def test_an_epoch_that_has_not_ended(tmp_path: Path) -> None:
    write_tensorboard(tmp_path)
    with SummaryWriter(tmp_path, filename_suffix=".more") as writer:
        writer.add_scalar("train_loss_step", 0.5, 44)
        writer.add_scalar("epoch", 4, 44)
    line = show_training_curves(tmp_path).axes[0].lines[0]
    assert line.get_xdata() == pytest.approx([4.5])


def test_a_first_epoch_that_has_not_ended(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as writer:
        for step in (4, 9):
            writer.add_scalar("train_loss_step", 0.5, step)
            writer.add_scalar("epoch", 0, step)
    line = show_training_curves(tmp_path).axes[0].lines[0]
    assert line.get_ydata() == pytest.approx([0.5, 0.5])
    assert line.get_xdata() == pytest.approx([0, 0])  # the log only says that it is epoch 0


def test_a_log_without_epochs(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("reward", 1, 0)
    with pytest.raises(ValueError, match="no training curves"):
        show_training_curves(tmp_path)
