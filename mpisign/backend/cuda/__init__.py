"""The kernels on CUDA devices: docs/gpu.md. Nothing here is imported until an array asks for it."""
