"""Trains a small denoiser: python -m examples.train FILE PATIENT_TO_LEAVE_OUT NETWORK.pt"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader

from ctpatches.torch import PatchDataset, patient_names

if __name__ == "__main__":
    file, left_out, output = sys.argv[1:]
    torch.manual_seed(0)
    train = PatchDataset(file, set(patient_names(file)) - {left_out}, augment=True)
    layers = nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
    net = nn.Sequential(*layers, nn.Conv2d(16, 1, 3, padding=1))  # what it finds is the noise
    adam = torch.optim.Adam(net.parameters(), lr=5e-3)
    for epoch in range(4):
        train.set_epoch(epoch)  # other orientations than before
        for low, full in DataLoader(train, batch_size=8, shuffle=True, num_workers=2):
            adam.zero_grad()
            nn.functional.mse_loss(low - net(low), full).backward()
            adam.step()
    torch.save(net.state_dict(), output)
