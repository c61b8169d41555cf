"""Train the network for some seconds and write net.pt and digits.npz."""

from pathlib import Path

import numpy as np
import torch
from net import Net
from sklearn.datasets import load_digits

HERE = Path(__file__).parent
EPOCHS, BATCH, HELD_OUT = 12, 64, 500


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the network is too small for more
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x, y = pixels[order].astype(np.float32).reshape(-1, 8, 8, 1), labels[order]
    # The raw pixels (0..16) are stored; edgekit.toml declares the scale, as the app will apply it.
    np.savez(
        HERE / "digits.npz",
        x_train=x[HELD_OUT:], y_train=y[HELD_OUT:], x_test=x[:HELD_OUT], y_test=y[:HELD_OUT],
    )  # fmt: skip
    inputs, targets = torch.from_numpy(x[HELD_OUT:].transpose(0, 3, 1, 2) / 16), torch.from_numpy(y[HELD_OUT:])
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(targets)).split(BATCH):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(inputs[chosen]), targets[chosen]).backward()
            optimizer.step()
    torch.save(net.state_dict(), HERE / "net.pt")
    print("Wrote net.pt and digits.npz")


if __name__ == "__main__":
    main()
