//! Attention over pages on the CPU.
