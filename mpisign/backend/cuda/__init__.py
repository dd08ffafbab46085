"""The kernels on CUDA devices: docs/kernels.md. Nothing here is imported until an array asks for it."""
