"""Train with the recipe "muon" in a plain PyTorch loop, without Lightning's Trainer.

python examples/plain_pytorch.py --epochs 1
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F

from cifar_resnet import CIFAR10DataModule, CustomResNet, Recipe, make_optimizer, make_scheduler

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--recipe", choices=Recipe.presets(), default="muon")
parser.add_argument("--epochs", type=int, default=24)
parser.add_argument("--width", type=int, default=16)
parser.add_argument("--data-dir")
args = parser.parse_args()

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
recipe = Recipe.preset(args.recipe)
data = CIFAR10DataModule(args.data_dir, val_split=0, device=device, **recipe.data_options())
data.prepare_data()
data.setup()
train, test = data.train_dataloader(), data.test_dataloader()

torch.manual_seed(0)
model = CustomResNet(args.width, **recipe.network_options())
model = model.to(memory_format=torch.channels_last).to(device)
optimizer = make_optimizer(model, recipe)
scheduler = make_scheduler(optimizer, recipe, total_steps=args.epochs * len(train))

for epoch in range(args.epochs):
    for images, labels in train:
        # Some processors emulate bfloat16, which is many times slower.
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            scores = model(images)
        loss = F.cross_entropy(scores, labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.3f}")

model.eval()
with torch.inference_mode():
    correct = sum((model(images).argmax(1) == labels).sum().item() for images, labels in test)
print(f"test accuracy {correct / 10_000:.2%}")
