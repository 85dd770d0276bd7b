"""Sparse decoding on a model's device: select, fetch, attend, over pages that are kept there.

`summaries` and `choosing` say which blocks matter; `reads` what attention is given; `reference` is plain
PyTorch for any device and `kernels` its Triton twin; `backend` picks between them; `tier` keeps the pages
and summaries on the device and drives a step.
"""
