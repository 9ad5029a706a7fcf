#!/usr/bin/python3
"""Trains the example models again: python3 train.py

Needs Debian's python3-torch, python3-sklearn, python3-onnx and python3-numpy.
Everything is seeded; with the same versions the files come out the same.

Two models, each with an older version of itself:

  digits  the UCI handwritten digits that ship with scikit-learn (1,797 images
          of 8 x 8 pixels) to ten classes
  credit  a credit-style scorer on applicants that generate() makes up, with a
          decision threshold of 0.5

The graphs take normalised input; mean and standard deviation are beside them,
in preprocess.json, and the server applies them. The cases hold raw features.
"""
import csv
import hashlib
import json
import os

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits

HERE = os.path.dirname(os.path.abspath(__file__))
FEATURES = ["income", "debt_ratio", "account_years", "late_payments", "utilisation", "open_loans", "age", "inquiries"]


def generate(n, rng):
    """Applicants and whether they paid back. Nobody in it exists."""
    age = rng.uniform(19, 75, n)
    account_years = np.clip(rng.gamma(2.0, 4.0, n), 0, age - 18)
    income = np.exp(rng.normal(10.4, 0.5, n)) * (0.7 + 0.01 * np.minimum(age, 55))
    debt_ratio = np.clip(rng.beta(2, 4, n) + 0.1 * rng.normal(size=n), 0, 1.5)
    late_payments = rng.poisson(0.3 + 2.5 * debt_ratio)
    utilisation = np.clip(rng.beta(2, 3, n) + 0.2 * debt_ratio, 0, 1.2)
    open_loans = rng.poisson(1 + 2 * debt_ratio)
    inquiries = rng.poisson(0.5 + utilisation)
    x = np.stack([income, debt_ratio, account_years, late_payments, utilisation, open_loans, age, inquiries], 1)
    z = (1.1 * np.log(income / 35000) - 2.2 * debt_ratio + 0.06 * account_years - 0.45 * late_payments
         - 1.4 * utilisation - 0.12 * open_loans + 0.008 * (age - 40) - 0.2 * inquiries + 2.6
         - 1.5 * debt_ratio * utilisation)
    paid = rng.uniform(size=n) < 1 / (1 + np.exp(-z))
    return x.astype(np.float32), paid.astype(np.int64)


def network(sizes):
    layers = []
    for a, b in zip(sizes, sizes[1:]):
        layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers[:-1])


class WithSoftmax(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return torch.softmax(self.net(x), 1)


def train(net, x, y, epochs, checkpoint_at):
    """Trains, and returns the state after checkpoint_at epochs as well."""
    opt = torch.optim.Adam(net.parameters(), lr=2e-3, weight_decay=1e-4)
    g = torch.Generator().manual_seed(11)
    older = None
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=g)
        for i in range(0, len(x), 64):
            batch = order[i:i + 64]
            opt.zero_grad()
            torch.nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            opt.step()
        if epoch + 1 == checkpoint_at:
            older = {k: v.clone() for k, v in net.state_dict().items()}
    return older


def export(net, path, inputs):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    net.eval()
    torch.onnx.export(WithSoftmax(net), torch.zeros(1, inputs), path, input_names=["features"], output_names=["probabilities"],
                      dynamic_axes={"features": {0: "batch"}, "probabilities": {0: "batch"}}, opset_version=13)
    onnx.checker.check_model(onnx.load(path))


def accuracy(net, x, y):
    with torch.no_grad():
        return (net(x).argmax(1) == y).float().mean().item()


def number(v):
    """The shortest decimal that reads back as the same float32."""
    return float(str(np.float32(v)))


def write_cases(path, prefix, x, labels, slices):
    with open(path, "w") as f:
        for i in range(len(x)):
            case = {"id": "%s-%04d" % (prefix, i), "label": labels[i], "slice": slices[i],
                    "inputs": {"features": {"datatype": "FP32", "shape": [1, x.shape[1]], "data": [number(v) for v in x[i]]}}}
            f.write(json.dumps(case, sort_keys=True, separators=(",", ":")) + "\n")


def write_json(path, value):
    with open(path, "w") as f:
        json.dump(value, f, indent=2)
        f.write("\n")


def build(name, old, new, x, y, labels, sizes, epochs, checkpoint_at, held_out, slices, threshold=None):
    torch.manual_seed(7)
    folder = os.path.join(HERE, name)
    os.makedirs(folder, exist_ok=True)
    train_x, train_y = x[:-held_out], y[:-held_out]
    test_x, test_y = x[-held_out:], y[-held_out:]
    mean, std = train_x.mean(0), train_x.std(0)
    std[std == 0] = 1
    normal = lambda a: torch.tensor((a - mean) / std)
    net = network(sizes)
    older = train(net, normal(train_x), torch.tensor(train_y), epochs, checkpoint_at)
    export(net, os.path.join(folder, new, "model.onnx"), x.shape[1])
    newer_accuracy = accuracy(net, normal(test_x), torch.tensor(test_y))
    net.load_state_dict(older)
    export(net, os.path.join(folder, old, "model.onnx"), x.shape[1])
    older_accuracy = accuracy(net, normal(test_x), torch.tensor(test_y))
    for version in (old, new):
        pre = {"name": name, "input": "features", "output": "probabilities", "mean": [number(v) for v in mean],
               "std": [number(v) for v in std], "labels": labels}
        if threshold is not None:
            pre.update(threshold=threshold, positive=labels[1])
        write_json(os.path.join(folder, version, "preprocess.json"), pre)
    write_cases(os.path.join(folder, "cases.jsonl"), name, test_x, [labels[i] for i in test_y], slices[-held_out:])
    print("%s %s: accuracy %.3f on %d held-out cases; %s: %.3f" % (name, old, older_accuracy, held_out, new, newer_accuracy))


def main():
    torch.set_num_threads(1)
    rng = np.random.default_rng(20260301)

    digits = load_digits()
    order = rng.permutation(len(digits.target))
    x, y = digits.images.reshape(-1, 64).astype(np.float32)[order], digits.target[order].astype(np.int64)
    slices = [{"half": "upper" if img[:4].sum() > img[4:].sum() else "lower"} for img in x.reshape(-1, 8, 8)]
    build("digits", "1.0.0", "1.1.0", x, y, [str(i) for i in range(10)], [64, 128, 64, 10], 30, 2, 500, slices)
    write_json(os.path.join(HERE, "digits", "dataset.json"), {
        "name": "UCI Optical Recognition of Handwritten Digits, test part, as shipped with scikit-learn",
        "how": "sha256 over the 1797 x 64 pixel values as little-endian float32, row by row, then the labels as int64",
        "sha256": hashlib.sha256(digits.images.reshape(-1, 64).astype("<f4").tobytes() + digits.target.astype("<i8").tobytes()).hexdigest()})

    x, y = generate(4800, rng)
    slices = [{"age": "under-30" if a[6] < 30 else "over-60" if a[6] > 60 else "30-60"} for a in x]
    build("credit", "1.3.0", "1.4.0", x, y, ["decline", "approve"], [8, 32, 2], 30, 1, 800, slices, threshold=0.5)
    with open(os.path.join(HERE, "credit", "train.csv"), "w", newline="") as f:
        w = csv.writer(f)
        w.writerow(FEATURES + ["paid_back"])
        for a, b in zip(x[:-800], y[:-800]):
            w.writerow([number(v) for v in a] + [int(b)])


if __name__ == "__main__":
    main()
