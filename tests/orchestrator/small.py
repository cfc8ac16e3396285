"""A study of one cell, and what makes a training of digits take seconds."""

from __future__ import annotations

STUDY = """
name: mine
title: One head
source: Table 1
seeds: [0]
cells:
  - {name: half, label: one half, set: {head: {kind: subvector, d0: 1/2}}}
evaluations: [knn]
tables:
  - name: heads
    title: Heads
    source: Table 1
    metric: knn/top1
    columns: [Head]
    rows: [{cell: half, columns: [half]}]
"""
TINY = (
    "data.image_size=8",
    "data.train_images=300",
    "backbone={kind: thin_resnet, width: 4, blocks: [1, 1]}",
    "epochs=2",
    "schedule.warmup_epochs=1",
    "batch_size=64",
    "projector_dim=16",
)
