"""The kernels on CUDA devices: docs/kernels.md. Imported when an array on one is used."""
