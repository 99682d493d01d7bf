"""Try variations of a recipe on 5,000 held-out training images; the test set is never read.

    python benchmarks/tune.py --data-dir DATA --width 16 learning_rate=0.8 weight_decay=0.001

One run per call; appends a JSON line to benchmarks/results/tuning.jsonl.
"""

from __future__ import annotations

import argparse
import ast
import json
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from cifar_resnet.data import cifar10, sources
from cifar_resnet.data.augment import Augmentation, ImageBank
from cifar_resnet.data.order import BatchOrder, stratified_split
from cifar_resnet.network import CustomResNet
from cifar_resnet.recipe import Recipe

RESULTS = Path(__file__).parent / "results" / "tuning.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("changes", nargs="*", help="recipe fields to change, name=value")
    parser.add_argument("--recipe", default="sgd")
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    changes = {}
    for change in args.changes:
        name, value = change.split("=")
        changes[name] = ast.literal_eval(value)
    recipe = replace(Recipe.preset(args.recipe), **changes)

    if recipe.optimizer != "sgd":
        parser.error("only recipes with the optimizer sgd can be tuned here")

    arrays = sources.load(args.data_dir or sources.default_data_dir())
    train, held_out = stratified_split(arrays.train_labels, 5000)
    augmentation = Augmentation(recipe.crop_padding, recipe.flip, recipe.cutout)
    bank = ImageBank(
        arrays.train_images[train], cifar10.MEAN, cifar10.STD, augmentation=augmentation
    )
    held_out_bank = ImageBank(arrays.train_images[held_out], cifar10.MEAN, cifar10.STD)
    labels = torch.from_numpy(arrays.train_labels)

    torch.manual_seed(args.seed)
    model = CustomResNet(args.width).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.momentum > 0,
        fused=True,
    )
    order = BatchOrder(len(train), recipe.batch_size, shuffle=True, drop_last=False, seed=args.seed)
    total, step, start = args.epochs * len(order), 0, time.perf_counter()
    for epoch in range(args.epochs):
        parameters = augmentation.draw(50_000, 32, seed=args.seed, epoch=epoch)
        for rows in order.batches(epoch):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * recipe.learning_rate_factor(
                    (step + 0.5) / total
                )
            samples = train[rows]
            images = bank.batch(rows, parameters.take(samples))
            with torch.autocast("cpu", torch.bfloat16):
                scores = model(images)
            loss = F.cross_entropy(scores, labels[samples], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        print(
            f"epoch {epoch} loss {loss.item():.3f} {time.perf_counter() - start:.0f} s", flush=True
        )

    model.eval()
    images = held_out_bank.batch(np.arange(len(held_out)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain, mirrored = (
            torch.cat([model(part).float() for part in view.split(1000)])
            for view in (images, images.flip(3))
        )
    line = {
        "recipe": args.recipe,
        "changes": changes,
        "width": args.width,
        "epochs": args.epochs,
        "seed": args.seed,
        "held_out_images": len(held_out),
        "plain": 100 * (plain.argmax(1) == labels[held_out]).float().mean().item(),
        "mirror": 100 * ((plain + mirrored).argmax(1) == labels[held_out]).float().mean().item(),
        "train_loss": loss.item(),
        "seconds": time.perf_counter() - start,
        "torch": torch.__version__,
        "hardware": {"device": platform.processor(), "threads": torch.get_num_threads()},
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(line)


if __name__ == "__main__":
    main()
