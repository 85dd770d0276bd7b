//! Which pages stay in RAM. A policy sees keys and sizes only, never bytes or files.
