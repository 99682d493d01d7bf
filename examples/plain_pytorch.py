"""The same pieces in a plain PyTorch loop, without Lightning's Trainer.

python examples/plain_pytorch.py --epochs 1
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F

from cifar_resnet import CIFAR10DataModule, CustomResNet, Recipe

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=24)
parser.add_argument("--width", type=int, default=16)
parser.add_argument("--data-dir")
args = parser.parse_args()

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
recipe = Recipe.preset("sgd")
data = CIFAR10DataModule(args.data_dir, val_split=0, device=device, **recipe.data_options())
data.prepare_data()
data.setup()
train, test = data.train_dataloader(), data.test_dataloader()

torch.manual_seed(0)
model = CustomResNet(args.width).to(memory_format=torch.channels_last).to(device)
optimizer = torch.optim.SGD(
    model.parameters(), lr=1.0, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
)
steps = args.epochs * len(train)
for epoch in range(args.epochs):
    for index, (images, labels) in enumerate(train):
        progress = (epoch * len(train) + index + 0.5) / steps
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * recipe.learning_rate_factor(
            progress
        )
        with torch.autocast(device.type, torch.bfloat16):
            scores = model(images)
        loss = F.cross_entropy(scores, labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.3f}")

model.eval()
with torch.inference_mode():
    correct = sum((model(images).argmax(1) == labels).sum().item() for images, labels in test)
print(f"test accuracy {correct / 10_000:.2%}")
