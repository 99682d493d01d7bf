"""Train the custom ResNet on CIFAR-10 for 24 epochs: the whole composition on one screen.

    python examples/train_24.py --width 16

`cifar-resnet train` trains in the same way, with resuming, a report and more options. Test accuracy
with six views at width 16, measured with benchmarks/accuracy.py in bfloat16 on an AMD EPYC: 92.42 %
(standard deviation 0.15, 5 seeds), with `--recipe best` 93.32 % (0.24, 5 seeds). Raw results:
benchmarks/results/accuracy.jsonl.
"""

import argparse

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import TensorBoardLogger

from cifar_resnet import (
    CIFAR10DataModule,
    CustomResNet,
    ImageClassifier,
    Recipe,
    show_misclassified,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the custom ResNet on CIFAR-10.")
    parser.add_argument("--recipe", default="muon", choices=Recipe.presets())
    parser.add_argument("--width", type=int, default=64, help="16 is enough for a CPU")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    pl.seed_everything(args.seed, workers=True)

    # The recipe holds all hyperparameters; data and network each take their own.
    recipe = Recipe.preset(args.recipe)
    data = CIFAR10DataModule(val_split=0, seed=args.seed, **recipe.data_options())
    network = CustomResNet(args.width, **recipe.network_options())
    model = ImageClassifier(network.to(memory_format=torch.channels_last), recipe)

    trainer = pl.Trainer(
        max_epochs=args.epochs,
        precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
        logger=TensorBoardLogger("runs", name="train_24"),
        callbacks=[LearningRateMonitor("step")],
        log_every_n_steps=10,
        limit_val_batches=0,  # no images are held out
    )
    trainer.fit(model, data)
    trainer.test(model, data)

    figure = show_misclassified(model, data, n=25)
    figure.savefig("misclassified.png", dpi=150)


if __name__ == "__main__":
    main()
