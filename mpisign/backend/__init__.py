"""Arrays of every framework, threads, and the CUDA kernels' launches."""
