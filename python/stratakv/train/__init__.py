"""Training a `stratakv.nn.StrataLM` on token ids: batches, optimizers, schedule, checkpoints.

Torch only; `stratakv train` brings files, a tokenizer and a progress bar. The invariant: a run that
was stopped and goes on from its checkpoint computes what it would have computed, to the bit on the
same machine with the same number of threads.
"""

from stratakv.train.config import TrainConfig
from stratakv.train.loop import Step, Trainer, draw_batch
from stratakv.train.optimizers import Muon, make_optimizers

__all__ = ["Muon", "Step", "TrainConfig", "Trainer", "draw_batch", "make_optimizers"]
