"""PyTorch's DataLoader."""

import sys
from pathlib import Path

import torch
from pictures import decode, normalise, timed
from torch.utils.data import DataLoader, Dataset

folder, size, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])


class Pictures(Dataset):
    def __init__(self):
        self.paths = sorted(folder.rglob("*.jpg"))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, row):
        return torch.from_numpy(normalise(decode(self.paths[row].read_bytes(), size)))


if __name__ == "__main__":
    dataset = Pictures()
    loader = DataLoader(dataset, batch_size=128, num_workers=workers, persistent_workers=True)
    timed(lambda: sum(len(batch) for batch in loader), len(dataset))
