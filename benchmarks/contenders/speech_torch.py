"""PyTorch's DataLoader over recordings."""

import sys
from pathlib import Path

import torch
from pictures import timed
from speech import decode
from torch.utils.data import DataLoader, Dataset

folder, workers = Path(sys.argv[1]), int(sys.argv[2])


class Recordings(Dataset):
    def __init__(self):
        self.paths = sorted(folder.rglob("*.ogg"))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, row):
        return torch.from_numpy(decode(self.paths[row]))


if __name__ == "__main__":
    dataset = Recordings()
    loader = DataLoader(
        dataset, batch_size=128, num_workers=workers, persistent_workers=True, collate_fn=lambda rows: rows
    )
    timed(lambda: sum(len(batch) for batch in loader), len(dataset))
